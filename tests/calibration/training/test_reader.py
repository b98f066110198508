"""The reader can be trained anew: the same for a seed, and better than it began."""

from __future__ import annotations

import numpy as np
import torch

from m3score.calibration.drawings.unasked.typefaces import find_typefaces
from m3score.calibration.training.reader import cells, draw_pool, judge, loss_of, train
from m3score.models.vision.reader import ReaderNet, bundled_reader


def test_cells_say_how_much_of_them_is_text_and_how_high() -> None:
    height = np.zeros((8, 8), np.float32)
    height[:4, :2] = 12
    found = cells(height)
    assert found.shape == (2, 2, 2)
    assert found[0, 0].tolist() == [0.5, 12] and found[1, 1].tolist() == [0, 0]


def test_training_learns_and_is_the_same_again() -> None:
    pixels, labels = draw_pool(3, 6, find_typefaces([]))
    one, other = (train(pixels, labels, seed=0, steps=30, batch_size=2) for _ in range(2))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0)
    torch.manual_seed(0)
    seen = pixels[:, None].float() / 255
    with torch.no_grad():
        assert loss_of(one, seen, labels) < 0.9 * loss_of(ReaderNet().eval(), seen, labels)


def test_the_bundled_reader_reads_drawings_that_it_never_saw() -> None:
    figures = judge(bundled_reader(), *draw_pool(77, 24, find_typefaces([])))
    assert figures["recall"] > 0.6 and figures["false_per_thousand"] < 25
