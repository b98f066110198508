"""Varied drawings: files of many sizes, the same from the same seed, whose questions keep their answers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from m3score.calibration.drawings.drawing import draw
from m3score.calibration.drawings.variations import LOCAL_TASKS, vary
from m3score.calibration.predictor.labelling.sources import find_source, image_named, questions_named


def test_they_differ_in_size_shape_and_format():
    files = [Image.open(io.BytesIO(vary(3, index).content)) for index in range(40)]
    assert len({file.size for file in files}) > 30
    assert any(file.width != file.height for file in files) and any(
        file.width == file.height for file in files
    )
    assert {file.format for file in files} == {"JPEG", "PNG"}
    assert all(150 <= side <= 1300 for file in files for side in file.size)


def test_they_are_the_drawings_of_the_same_stream():
    for index in range(12):
        varied, drawing = vary(3, index), draw(3, index)
        assert vary(3, index) == varied
        back = Image.open(io.BytesIO(varied.content)).convert("RGB").resize((24, 24), Image.Resampling.BOX)
        same = drawing.image.resize((24, 24), Image.Resampling.BOX)
        assert np.abs(np.asarray(back, float) - np.asarray(same, float)).mean() < 8
        assert {a.question for a in varied.questions} <= {a.question for a in drawing.questions}


def test_what_hangs_on_places_is_not_asked_of_stretched_pictures():
    for index in range(60):
        varied = vary(3, index)
        width, height = Image.open(io.BytesIO(varied.content)).size
        if width != height:
            assert not {a.task for a in varied.questions} & LOCAL_TASKS


def test_a_source_of_labels():
    items = list(find_source("varied", seed=3).items(8))
    assert items and all(item.name.startswith("varied:3/") for item in items)
    opened = items[0].open()
    assert opened.error is None and opened.questions[0].answers
    assert image_named(items[0].name) == items[0].source
    assert questions_named(items[0].name) == [question.question for question in opened.questions]
