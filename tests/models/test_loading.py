"""Where models come from: formats, folders, the hub, options, and what goes wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from m3score import load_model
from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.models import hub, placing
from m3score.models.m3 import loading
from m3score.models.m3.checkpoint import LlavaCheckpoint
from m3score.models.m3.config import M3Config
from m3score.models.m3.model import M3Model
from tests.support.goldens import (
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
    assert m3.config.conversation == "short"
    assert m3.tokenizer.decode(m3.prompt_ids("Why?")[1:7]) == "USER: "
    image = m3.encode(picture("land_640x480"))
    assert image.features.shape == (1, 256, 32)
    assert isinstance(m3.answer(image, "Why?", 16, max_new_tokens=3), str)
    with pytest.raises(M3ScoreError, match="400"):
        m3.answer(image, "Why? " * 100)


def test_a_bundled_name(small_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small_llava, tmp_path / "assets" / "m3-tiny")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert load_model("m3-tiny", device="cpu").name == "m3-tiny"
    shutil.rmtree(tmp_path / "assets")
    with pytest.raises(M3ScoreError, match="install m3score anew"):
        load_model("m3-tiny")


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    m3 = model(name)
    m3.save(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert (again.config, again.stop_ids) == (m3.config, m3.stop_ids)
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
    assert loading.read_m3_config(tmp_path, config) == model(NEXT).config


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
    settings = LlavaCheckpoint(copied(LLAVA, tmp_path, matryoshka_vis_token_scale=None)).m3_config()
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
    assert checkpoint.m3_config() == model(LLAVA).config
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
    assert placing.resolve_dtype("auto", cpu) is torch.float32
    assert placing.resolve_dtype("bfloat16", cpu) is torch.bfloat16
    half = load_model(CHECKPOINTS / NEXT, device="cpu", dtype="bfloat16")
    image = half.encode(picture("gray_336x336"))
    assert image.features.dtype is torch.bfloat16
    logits = half.next_token_logits(image, QUESTION, 9)
    assert logits.dtype is torch.float32
    full = model(NEXT).next_token_logits(encoded(NEXT, "gray_336x336"), QUESTION, 9)
    assert (logits - full).abs().max() < 1


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
            M3Config.from_dict(entry, image_size=336, patch_size=14)


def test_loading_is_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_model(CHECKPOINTS / SEPARATE, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


BUNDLED = Path(hub.__file__).parent / "assets" / "m3-tiny" / "config.json"


@pytest.mark.skipif(not BUNDLED.is_file(), reason="not in this checkout")
def test_the_bundled_model_answers_at_every_scale() -> None:
    m3 = load_model("m3-tiny", device="cpu")
    assert m3.ladder == SCALES
    (answers,) = m3.answer_ladder([picture("land_640x480")], [["What colour is the sky?"]])[0]
    assert [answer.visual_tokens for answer in answers] == list(SCALES)


def test_identity_is_of_the_weights_and_the_configuration(tmp_path: Path) -> None:
    m3 = model(LLAVA)
    assert m3.identity == load_model(CHECKPOINTS / LLAVA, device="cpu", dtype="bfloat16").identity
    assert m3.identity != model(NEXT).identity
    in_memory = M3Model(m3.hf_model, m3.tokenizer, m3.config, "in memory")
    assert in_memory.identity == M3Model(m3.hf_model, m3.tokenizer, m3.config, "again").identity
    coarser = dataclasses.replace(m3.config, ladder=SCALES[:-1])
    assert in_memory.identity != M3Model(m3.hf_model, m3.tokenizer, coarser, "coarser").identity
    weight = m3.hf_model.get_output_embeddings().weight
    before = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = before + 1
        changed = M3Model(m3.hf_model, m3.tokenizer, m3.config, "changed").identity
        weight[0, 0] = before
    assert changed != in_memory.identity


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_visual_tokens_are_counted_before_an_image_is_opened(name: str) -> None:
    for image in IMAGES:
        for tokens in SCALES:
            expected = model(name).visual_token_count(encoded(name, image), tokens)
            assert model(name).count_visual_tokens(picture(image).size, tokens) == expected
