from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from m3score import hub, load_model, loading
from m3score.errors import M3ScoreError, MissingExtraError
from m3score.llava_checkpoint import LlavaCheckpoint
from m3score.model import EncodedImage
from m3score.preprocess import preprocess
from m3score.prompts import CONVERSATIONS, build_prompt, training_example
from m3score.settings import M3Settings
from tests.goldens import (
    CHECKPOINTS,
    GOLDEN,
    IMAGES,
    LLAVA,
    NAMES,
    NEXT,
    SCALES,
    SEPARATE,
    encoded,
    model,
    picture,
)

QUESTION = GOLDEN["questions"]["q1"]


# -- loading ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as the bundled model's: transformers' format, byte-level tokenizer.json, bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "small"
    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(image_size=224, patch_size=14, projection_dim=16, **sizes)
    text = LlamaConfig(vocab_size=len(alphabet), bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    config = LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-1, image_token_index=300
    )
    config.m3score = {"image_aspect_ratio": "square", "conversation": "short", "max_length": 400}
    torch.manual_seed(0)
    network: Any = LlavaForConditionalGeneration(config)
    network.to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_transformers_format(small_llava: Path) -> None:
    m3 = load_model(small_llava, device="cpu")
    assert m3.ladder == (1, 4, 16, 64, 256)
    assert (m3.dtype, m3.device.type) == (torch.float32, "cpu")
    assert m3.settings.conversation == "short"
    assert m3.tokenizer.decode(m3.prompt_ids("Why?")[1:7]) == "USER: "
    image = m3.encode(picture("land_640x480"))
    assert image.features.shape == (1, 256, 32)
    assert isinstance(m3.answer(image, "Why?", 16, max_new_tokens=3), str)
    with pytest.raises(M3ScoreError, match="400"):
        m3.answer(image, "Why? " * 100)


def test_a_bundled_name(small_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small_llava, tmp_path / "assets" / "m3-tiny")
    monkeypatch.setattr(hub.resources, "files", lambda package: tmp_path)
    assert load_model("m3-tiny", device="cpu").name == "m3-tiny"
    shutil.rmtree(tmp_path / "assets")
    with pytest.raises(M3ScoreError, match="install m3score anew"):
        load_model("m3-tiny")


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    m3 = model(name)
    m3.save(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert (again.settings, again.stop_ids) == (m3.settings, m3.stop_ids)
    assert again.prompt_ids(QUESTION) == m3.prompt_ids(QUESTION)
    image = again.encode(picture("wide_1200x300"))
    for tokens in (1, 36):
        logits = again.next_token_logits(image, QUESTION, tokens)
        torch.testing.assert_close(
            logits, m3.next_token_logits(encoded(name, "wide_1200x300"), QUESTION, tokens)
        )
        expected = m3.answer(encoded(name, "wide_1200x300"), QUESTION, tokens)
        assert again.answer(image, QUESTION, tokens) == expected


def test_plain_llava_next_folders_name_pinpoints_the_other_way_round(tmp_path: Path) -> None:
    model(NEXT).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["m3score"]
    assert loading.transformers_settings(tmp_path, config) == model(NEXT).settings


def copied(name: str, folder: Path, **changes: Any) -> Path:
    """A writable copy of a checkpoint; config keys changed, or dropped where None."""
    target = folder / name
    shutil.copytree(CHECKPOINTS / name, target)
    path = target / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target


def test_few_config_keys_suffice(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "clip-vit-tiny-patch14-336", tmp_path / "clip-vit-tiny-patch14-336")
    needless = (
        "bos_token_id",
        "pretraining_tp",
        "use_cache",
        "mm_projector_type",
        "mm_vision_select_feature",
    )
    folder = copied(LLAVA, tmp_path, **dict.fromkeys(needless), matryoshka_vis_token_scale="[576, 1]")
    m3 = load_model(folder, device="cpu")
    assert m3.ladder == (1, 576)
    logits = m3.next_token_logits(m3.encode(picture("land_640x480")), QUESTION, 1)
    torch.testing.assert_close(
        logits, model(LLAVA).next_token_logits(encoded(LLAVA, "land_640x480"), QUESTION, 1)
    )


def test_a_ladder_that_is_not_named_is_the_papers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(CHECKPOINTS / "clip-vit-tiny-patch14-336", tmp_path / "clip-vit-tiny-patch14-336")
    settings = LlavaCheckpoint(copied(LLAVA, tmp_path, matryoshka_vis_token_scale=None)).settings()
    assert settings.ladder == SCALES
    assert "matryoshka_vis_token_scale" in caplog.text


def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo_id: str, patterns: Any, revision: Any = None) -> Path:
        raise M3ScoreError(f"Could not get {repo_id!r}.")

    monkeypatch.setattr(hub, "fetch", fail)


def test_vit_l_is_known_by_heart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_hub(monkeypatch)
    folder = copied(LLAVA, tmp_path, mm_vision_tower="openai/clip-vit-large-patch14-336")
    checkpoint = LlavaCheckpoint(folder)
    assert checkpoint.settings() == model(LLAVA).settings
    assert checkpoint.clip.vision_config()["hidden_size"] == 1024
    assert len(caplog.records) == 1 and "built in" in caplog.text


def test_another_vision_tower_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_hub(monkeypatch)
    with pytest.raises(M3ScoreError, match="someone/else"):
        load_model(copied(LLAVA, tmp_path, mm_vision_tower="someone/else"), device="cpu")


def test_vision_weights_inside_count_only_if_they_were_tuned(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "clip-vit-tiny-patch14-336", tmp_path / "clip-vit-tiny-patch14-336")
    untuned = load_model(copied(LLAVA, tmp_path, unfreeze_mm_vision_tower=False), device="cpu")
    features = untuned.encode(picture("land_640x480")).features
    torch.testing.assert_close(features, encoded(SEPARATE, "land_640x480").features)


def test_unknown_names() -> None:
    for name in ("m3-huge", "./no/such/folder", "a/b/c", ""):
        with pytest.raises(M3ScoreError, match=r"m3-tiny.*mucai"):
            load_model(name)


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(M3ScoreError, match=r"mucai/llava-v1.5-7b-m3.*no route\)\.$"):
        load_model("mucai/llava-v1.5-7b-m3", device="cpu")


def test_the_hub_is_asked_for_pickles_only_without_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo_id, revision) == ("some/model", "v1")
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.locate("some/model", "v1") == tmp_path
    assert ["*.safetensors" in patterns for patterns in asked] == [True, False]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int3"}, "float32, float16, bfloat16"),
        ({"dtype": torch.int8}, "float32, float16, bfloat16"),
        ({"device": "gpu"}, "cuda"),
        ({"device": "meta"}, "cuda"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"quantize": "2bit"}, "'4bit', '8bit'"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(M3ScoreError, match=says):
        load_model(CHECKPOINTS / LLAVA, **{"device": "cpu", **options})


def test_quantize_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"m3score\[quantize\]"):
        load_model(CHECKPOINTS / LLAVA, device="cpu", quantize="4bit")


def test_quantized_is_the_language_model_only(small_llava: Path) -> None:
    pytest.importorskip("bitsandbytes")
    core = load_model(small_llava, quantize="8bit").hf_model.model
    assert type(core.language_model.layers[0].mlp.up_proj) is not torch.nn.Linear
    assert type(core.vision_tower.encoder.layers[0].mlp.fc1) is torch.nn.Linear
    assert type(core.multi_modal_projector.linear_1) is torch.nn.Linear


def test_damaged_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(M3ScoreError, match=r"no config\.json"):
        load_model(tmp_path / "empty", device="cpu")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(M3ScoreError, match=r"'bert'.*llava_llama"):
        load_model(tmp_path / "empty", device="cpu")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(M3ScoreError, match="JSON"):
        load_model(tmp_path / "empty", device="cpu")


@pytest.mark.parametrize(
    ("file", "says"),
    [("model.safetensors", "no weights"), ("tokenizer.model", "no tokenizer")],
)
def test_missing_files(tmp_path: Path, file: str, says: str) -> None:
    shutil.copytree(CHECKPOINTS / "clip-vit-tiny-patch14-336", tmp_path / "clip-vit-tiny-patch14-336")
    folder = copied(LLAVA, tmp_path)
    (folder / file).write_bytes(b"nothing")
    with pytest.raises(M3ScoreError, match=file):
        load_model(folder, device="cpu")
    (folder / file).unlink()
    with pytest.raises(M3ScoreError, match=says):
        load_model(folder, device="cpu")


def test_a_missing_shard_and_a_missing_tensor(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "clip-vit-tiny-patch14-336", tmp_path / "clip-vit-tiny-patch14-336")
    sharded = copied("tiny-llava-v1.5-7b-m3-sharded-bin", tmp_path)
    os.remove(sharded / "pytorch_model-00003-of-00004.bin")
    with pytest.raises(M3ScoreError, match="00003-of-00004"):
        load_model(sharded, device="cpu")
    folder = copied(LLAVA, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.mm_projector.0.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(M3ScoreError, match=r"lacks 1 .*multi_modal_projector\.linear_1\.weight"):
        load_model(folder, device="cpu")


def test_pickles_may_hold_tensors_only(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "clip-vit-tiny-patch14-336", tmp_path / "clip-vit-tiny-patch14-336")
    folder = copied(LLAVA, tmp_path)
    os.remove(folder / "model.safetensors")
    torch.save({"lm_head.weight": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(M3ScoreError, match=r"pytorch_model\.bin"):
        load_model(folder, device="cpu")


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert loading.resolve_dtype("auto", cpu) is torch.float32
    assert loading.resolve_dtype("bfloat16", cpu) is torch.bfloat16
    half = load_model(CHECKPOINTS / NEXT, device="cpu", dtype="bfloat16")
    image = half.encode(picture("gray_336x336"))
    assert image.features.dtype is torch.bfloat16
    logits = half.next_token_logits(image, QUESTION, 9)
    assert logits.dtype is torch.float32
    full = model(NEXT).next_token_logits(encoded(NEXT, "gray_336x336"), QUESTION, 9)
    assert (logits - full).abs().max() < 1


# -- images and prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_one_in_one_out_a_list_in_a_list_out(name: str) -> None:
    m3, alone = model(name), [encoded(name, image) for image in IMAGES]
    together = m3.encode([picture(image) for image in IMAGES])
    for one, other in zip(alone, together, strict=True):
        assert (one.size, one.tiles) == (other.size, other.tiles)
        torch.testing.assert_close(one.features, other.features, rtol=0, atol=1e-4)
    assert m3.encode([]) == []
    assert m3.encode(alone[0]) is alone[0]
    mixed = m3.encode([alone[1], picture(IMAGES[0])])
    assert mixed[0] is alone[1] and mixed[1].size == alone[0].size
    questions = [QUESTION, "Why?", "Where?"]
    answers = [
        m3.answer(image, text, 9, max_new_tokens=6) for image, text in zip(alone, questions, strict=True)
    ]
    assert m3.answer(alone, questions, 9, max_new_tokens=6) == answers
    assert m3.answer(alone, questions, 9, max_new_tokens=6, batch_size=2) == answers
    with pytest.raises(M3ScoreError, match="equally many"):
        m3.answer(alone, ["Why?"])


def test_images_of_every_kind(tmp_path: Path) -> None:
    reference = encoded(LLAVA, "land_640x480").features
    path = tmp_path / "image.png"
    picture("land_640x480").save(path)
    for image in (path, str(path), path.read_bytes(), np.asarray(picture("land_640x480"))):
        torch.testing.assert_close(model(LLAVA).encode(image).features, reference)
    with pytest.raises(M3ScoreError, match="missing"):
        model(LLAVA).encode(tmp_path / "missing.png")


@pytest.mark.parametrize("name", [LLAVA, NEXT])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (300, 1), (1, 300), (300, 3), (40_000, 2)])
def test_thin_images_are_images_like_any_other(name: str, size: tuple[int, int]) -> None:
    colour = (255, 0, 0)
    red, green, _ = preprocess(Image.new("RGB", size, colour), model(name).settings).pixel_values[0]
    if min(size) * 336 >= max(size):  # else the image is less than a pixel of the square
        assert (red - green).max() > 0.5  # the padding is grey: 0 in every channel
    if size[0] == size[1]:
        assert (red - green).min() > 3
    assert model(name).encode(Image.new("RGB", size, colour)).size == size


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["pad", "square", "anyres"]))
def test_any_size_gives_tiles(width: int, height: int, aspect: str) -> None:
    chosen = M3Settings(image_aspect_ratio=aspect, image_grid_pinpoints=((336, 672), (672, 336)))
    tiles = preprocess(Image.new("RGB", (width, height)), chosen)
    assert tiles.pixel_values.shape == (3 if aspect == "anyres" else 1, 3, 336, 336)
    assert tiles.pixel_values.flags.c_contiguous


def test_long_images_keep_their_middle_when_cropped() -> None:
    stripes = Image.new("RGB", (20_000, 10))
    stripes.paste((255, 255, 255), (9_990, 0, 10_010, 10))
    pixels = preprocess(stripes, M3Settings(image_aspect_ratio="square")).pixel_values
    assert pixels[0, 0, 168, 168] > 1.9


@pytest.mark.parametrize("tokens", [0, 577, 1000, 2.5])
def test_a_scale_that_makes_no_sense(tokens: Any) -> None:
    for ask in (model(LLAVA).visual_tokens, model(LLAVA).visual_token_count):
        with pytest.raises(M3ScoreError, match="1 to 576"):
            ask(encoded(LLAVA, "land_640x480"), tokens)


def test_a_prompt_that_is_too_long_is_no_answer() -> None:
    image = encoded(LLAVA, "land_640x480")
    with pytest.raises(M3ScoreError, match=r"2048.*coarser"):
        model(LLAVA).answer(image, "word " * 2000, 576)
    with pytest.raises(M3ScoreError, match="2048"):
        model(LLAVA).answer_ladder([image], [["word " * 2000]])


def test_image_tags() -> None:
    image = encoded(LLAVA, "land_640x480")
    assert model(LLAVA).prompt_ids(f"<image>\n{QUESTION}") == model(LLAVA).prompt_ids(QUESTION)
    with pytest.raises(M3ScoreError, match="2 <image> tags"):
        model(LLAVA).answer(image, "<image> or <image>?")
    with pytest.raises(M3ScoreError, match="room for 1"):
        model(LLAVA).logits(model(LLAVA).prompt_ids("Why?"), [image, image])
    assert build_prompt("Why?", "short", 0) == "USER: Why? ASSISTANT:"


def test_an_encoded_image_is_a_value() -> None:
    image = encoded(LLAVA, "land_640x480")
    assert isinstance(image, EncodedImage) and not image.features.requires_grad
    with pytest.raises(AttributeError):
        image.size = (1, 1)  # type: ignore[misc]


# -- training --------------------------------------------------------------------------------------------

TURNS = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A square."}]
LONGER = [*TURNS, {"from": "human", "value": "Red?"}, {"from": "gpt", "value": "Yes, all of it."}]


def test_a_batch_of_conversations() -> None:
    m3 = model(NEXT)
    images = [picture("gray_336x336"), picture("land_640x480")]
    with torch.no_grad():
        together = m3.training_loss(images, [TURNS, LONGER], scales=(1, 9))
        alone = [
            m3.training_loss([image], [turns], (1, 9))
            for image, turns in zip(images, [TURNS, LONGER], strict=True)
        ]
    counts = [
        sum(label >= 0 for label in training_example(turns, m3.tokenizer)[1]) for turns in (TURNS, LONGER)
    ]
    for tokens in (1, 9):
        expected = sum(
            loss.per_scale[tokens] * count for loss, count in zip(alone, counts, strict=True)
        ) / sum(counts)
        torch.testing.assert_close(together.per_scale[tokens], expected)
    torch.testing.assert_close(together.average, sum(together.per_scale.values()) / 2)


def test_the_vision_tower_learns_only_if_asked() -> None:
    m3 = model(LLAVA)
    tower = m3.hf_model.model.vision_tower
    for train_vision in (False, True):
        m3.hf_model.zero_grad(set_to_none=True)
        m3.training_loss(
            [picture("land_640x480")], [TURNS], (9,), train_vision=train_vision
        ).average.backward()
        learnt = any(parameter.grad is not None and parameter.grad.any() for parameter in tower.parameters())
        assert learnt is train_vision
    m3.hf_model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_labels_are_the_answers_and_their_ends(conversation: str) -> None:
    tokenizer = model(LLAVA).tokenizer
    ids, labels = training_example(LONGER, tokenizer, conversation)
    assert len(ids) == len(labels)
    learnt = [label for label in labels if label >= 0]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "A square.</s> Yes, all of it.</s>"


def test_what_is_no_conversation() -> None:
    for turns in ([], TURNS[:1], TURNS[::-1]):
        with pytest.raises(M3ScoreError, match="human"):
            model(LLAVA).training_loss([picture("land_640x480")], [turns])
    with pytest.raises(M3ScoreError, match="as many images"):
        model(LLAVA).training_loss([], [TURNS])


def test_settings_say_what_is_wrong() -> None:
    for entry, says in (
        ({"image_aspect_ratio": "stretch"}, "'pad', 'anyres', 'square'"),
        ({"conversation": "llama"}, "vicuna_v1"),
        ({"merge": "x"}, "spatial_unpad"),
        ({"ladder": ["many"]}, "settings"),
        ({"image_aspect_ratio": "anyres"}, "pinpoints"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[100, 336]]}, "100x336"),
    ):
        with pytest.raises(M3ScoreError, match=says):
            M3Settings.from_dict(entry, image_size=336, patch_size=14)


def test_loading_is_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_model(CHECKPOINTS / SEPARATE, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("size", [(1000, 17), (17, 1000), (340, 339), (5000, 2501), (2501, 5000)])
def test_padding_in_strips_is_padding_at_once(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, side = Image.fromarray(noise), max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    padded, plain = M3Settings(), M3Settings(image_aspect_ratio="square")
    pixels = preprocess(image, padded).pixel_values
    np.testing.assert_array_equal(pixels, preprocess(square, plain).pixel_values)
