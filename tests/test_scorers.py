"""Scorers beside the model: measures of pixels, CAT with tiny chat models, ALIT, and compare --scorers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from m3score import M3ScoreError
from m3score.baselines import BASELINES, baseline, grey_entropy
from m3score.cat import parse_rating, read_prompts
from m3score.cli import options
from m3score.cli.main import app
from m3score.scorers import SCORERS

RANDOM = np.random.default_rng(3)
PLAIN = Image.new("RGB", (320, 200), (90, 120, 30))
NOISE = Image.fromarray(RANDOM.integers(0, 256, (200, 320, 3), np.uint8))


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    folder = tmp_path / "in"
    folder.mkdir()
    half = np.array(PLAIN)
    half[:, 160:] = np.array(NOISE)[:, 160:]
    for name, image in {"plain": PLAIN, "half": Image.fromarray(half), "noise": NOISE}.items():
        image.save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_every_scorer_is_an_option_of_rank() -> None:
    assert {scorer.value for scorer in options.Scorer} - {"model", "predictor", "cascade"} == set(SCORERS)


def test_importing_scorers_imports_no_torch() -> None:
    code = "import m3score.scorers, m3score.baselines, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- measures of pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_plain_is_zero_and_noise_is_more(name: str) -> None:
    value, size = baseline(name, PLAIN)
    assert 0 <= value < 0.001 and size == (320, 200)
    assert 0.1 < baseline(name, NOISE)[0] <= 1


@pytest.mark.parametrize("name", BASELINES)
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_measures_are_shares_at_any_size(name: str, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    value, measured = baseline(name, pixels)
    assert 0 <= value <= 1 and measured == (size[1], size[0])


def test_measures_by_hand() -> None:
    two = np.zeros((256, 256, 3), np.uint8)
    two[:, 128:] = 255
    assert grey_entropy(Image.fromarray(two)) == pytest.approx(1 / 8)
    edges, _ = baseline("edges", two)
    assert 2 / 256 <= edges <= 6 / 256  # one upright edge, a few pixels wide
    assert baseline("edges", np.repeat(np.repeat(two, 3, 0), 3, 1))[0] == pytest.approx(edges, abs=3 / 256)


@pytest.mark.parametrize("name", BASELINES)
def test_rank_by_measures(name: str, pictures: Path) -> None:
    done = run("rank", pictures, "--scorer", name, "--out", "scores.csv")
    assert done.exit_code == 3 and "1 input failed" in done.stderr
    table = pd.read_csv("scores.csv")
    assert [Path(path).stem for path in table["path"]] == ["noise", "half", "plain", "broken"]
    assert list(table["rank"])[:3] == [1, 2, 3] and table["complexity"].iloc[2] < 0.001
    assert "Pillow" in table["error"].iloc[3] and table["width"].iloc[0] == 320


def test_options_that_a_scorer_has_not_are_refused(pictures: Path) -> None:
    for arguments, named in (
        (["--scorer", "jpeg", "--question", "why?"], "--question"),
        (["--scorer", "cat"], "--cat-llm"),
        (["--scorer", "alit", "--alit-model", "nowhere"], "--alit-model"),
        (["--scorer", "cat", "--cat-llm", "no where"], "neither a folder nor a hub id"),
    ):
        done = run("rank", pictures, *arguments)
        assert done.exit_code == 2 and named in " ".join(done.stderr.split()), done.stderr


# ---- CAT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("7", 7),
        ("Rating: 4.", 4),
        ("**Score: 6.5**/9", 6.5),
        ("On a scale from 1 to 9 this is an 8.", 8),
        ("I see 3 dogs; complexity is 5 out of 9", 5),
        ("9/9", 9),
        ("7/9", 7),
        ("It holds much detail.", None),
        ("12", None),
        ("0", None),
        ("-3", None),
        ("x7y", None),
        ("", None),
    ],
)
def test_ratings_in_answers(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


@given(st.text(max_size=60))
def test_any_answer_gives_a_rating_or_none(text: str) -> None:
    assert (value := parse_rating(text)) is None or 1 <= value <= 9


def test_prompts_and_their_mistakes(tmp_path: Path) -> None:
    prompts = read_prompts()
    assert [prompts.factor(rating) for rating in (1, 3, 3.5, 6, 6.1, 9)] == [32, 32, 16, 16, 8, 8]
    good = (Path(__file__).parents[1] / "m3score" / "assets" / "cat.toml").read_text()
    for change, named in (
        (("{description}", "it"), "{description}"),
        (("[rate]", "[rank]"), "'rate'"),
        (("up_to = 9", "up_to = 8"), "up_to"),
        (("max_new_tokens = 16", "max_new_tokens ="), "not a file of prompts"),
    ):
        assert change[0] in good
        (tmp_path / "own.toml").write_text(good.replace(*change))
        with pytest.raises(M3ScoreError, match=r"own\.toml") as error:
            read_prompts(tmp_path / "own.toml")
        assert named in str(error.value)
    with pytest.raises(M3ScoreError, match=r"none\.toml: cannot read"):
        read_prompts(tmp_path / "none.toml")


def save_llm(folder: Path, says: str | None) -> Path:
    """A random Llama of two layers with a chat template; or one that says one word whatever it is told."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [
        "<unk>",
        "<s>",
        "</s>",
        "<image>",
        *(str(digit) for digit in range(10)),
        *["much", "detail", "here", ":", ".", "user"],
    ]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("<image>", "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = "{% for one in messages %}{{ one.role }} : {{ one.content }} {% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    if says is not None:
        _always(model, words.index(says))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _always(model: Any, word: int) -> None:
    """Make one word the likeliest after whatever was said."""
    import torch

    with torch.no_grad():
        for layer in model.model.layers:  # nothing is added to the embeddings ...
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)  # ... which all are the same
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.fill_(-0.1)
        model.lm_head.weight[word] = 1.0


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llms")
    for name, says in {"seven": "7", "chatty": "detail", "random": None}.items():
        save_llm(folder / name, says)
    return folder


def test_cat_describes_and_rates(pictures: Path, llms: Path) -> None:
    done = run("rank", pictures, "--scorer", "cat", "--cat-llm", llms / "seven", "--out", "cat.csv")
    assert done.exit_code == 3, done.stderr
    table = pd.read_csv("cat.csv")
    good, (broken,) = table[table["error"].isna()], table[table["error"].notna()].to_dict("records")
    assert len(good) == 3 and "broken" in broken["path"]
    assert set(good["cat_score"]) == {7} and set(good["cat_compression"]) == {8}
    assert set(good["complexity"]) == {0.75} and good["caption"].str.len().gt(0).all()
    again = run("rank", pictures, "--scorer", "cat", "--cat-llm", llms / "seven", "--out", "again.jsonl")
    rows = [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()]
    assert again.exit_code == 3 and [row["caption"] for row in rows[:3]] == list(good["caption"])


def test_an_answer_without_a_number_is_an_error_row(pictures: Path, llms: Path) -> None:
    done = run("rank", pictures, "--scorer", "cat", "--cat-llm", llms / "chatty", "--out", "cat.csv")
    table = pd.read_csv("cat.csv")
    assert done.exit_code == 3 and table["complexity"].isna().all() and len(table) == 4
    assert table["error"].str.contains("no rating from 1 to 9: 'detail detail").sum() == 3
    assert table["caption"].notna().sum() == 3  # what was described is kept


def test_cat_with_any_chat_model(pictures: Path, llms: Path) -> None:
    describer = save_describer(llms / "describer", llms / "random")
    done = run(
        "rank", pictures, "--scorer", "cat", "--model", describer, "--cat-llm", llms / "seven", "-o", "c.csv"
    )
    assert done.exit_code == 3, done.stderr
    table = pd.read_csv("c.csv")
    assert list(table["cat_score"].dropna()) == [7, 7, 7] and table["error"].notna().sum() == 1


def test_prompts_of_ones_own(pictures: Path, llms: Path) -> None:
    own = """
        [describe]
        questions = ["What is it?"]
        max_new_tokens = 2
        [rate]
        prompt = "user {description}"
        max_new_tokens = 4
        [[compression]]
        up_to = 6.5
        factor = 4
        [[compression]]
        up_to = 9
        factor = 2
        """
    Path("own.toml").write_text(own)
    asked = ("rank", pictures, "--scorer", "cat", "--cat-llm", llms / "seven", "--cat-prompts")
    done = run(*asked, "own.toml", "--out", "own.csv")
    assert done.exit_code == 3, done.stderr
    good = pd.read_csv("own.csv").dropna(subset=["cat_score"])
    assert len(good) == 3 and set(good["cat_score"]) == {7} and set(good["cat_compression"]) == {2}
    assert max(len(caption.split()) for caption in good["caption"]) <= 2  # one question, two tokens
    Path("own.toml").write_text(own.replace("{description}", "it"))
    wrong = run(*asked, "own.toml", "--out", "wrong.csv")
    assert wrong.exit_code == 2 and "own.toml: needs questions, and {description}" in " ".join(
        wrong.stderr.split()
    )
    missing = run(*asked, "none.toml", "--out", "wrong.csv")
    assert missing.exit_code == 2 and "none.toml: cannot read" in missing.stderr
    assert not Path("wrong.csv").exists()


def save_describer(folder: Path, llm: Path) -> Path:
    """A random image-text-to-text model that is no LLaVA, in transformers' format."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaProcessor,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = None
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig.from_pretrained(llm)
    config = VipLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=3,
        vision_feature_layer=[-1, -2],
        image_seq_length=4,
    )
    VipLlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for one in messages %}{% for part in one.content %}"
            "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
            "{% endfor %}{% endfor %}"
        ),
    ).save_pretrained(folder)
    return folder


# ---- ALIT -----------------------------------------------------------------------------------------------


def test_fewest_tokens_under_the_threshold() -> None:
    from m3score.alit import score_errors

    counts = (4, 8, 12)
    found = score_errors([0.3, 0.2, 0.1, 0.05], counts, 0.15)
    assert (found.tokens, found.error) == (8, 0.05) and found.complexity == pytest.approx(6 / 12)
    assert score_errors([0.01, 0.2, 0.1, 0.05], counts, 0.15).complexity == 0
    never = score_errors([0.3, 0.2, 0.1, 0.05], counts, 0.01)
    assert never.tokens is None and never.complexity == 1
    assert score_errors([0.3, 0.1, 0.2, 0.05], counts, 0.15).tokens == 4  # the fewest, whatever comes later


@given(
    st.lists(st.floats(0.001, 0.6), min_size=4, max_size=4),
    st.floats(0.001, 0.6),
    st.floats(0.001, 0.6),
)
def test_a_stricter_threshold_never_needs_fewer_tokens(errors: list[float], one: float, other: float) -> None:
    from m3score.alit import score_errors

    strict, loose = (score_errors(errors, (4, 8, 12), value) for value in sorted((one, other)))
    assert 0 <= loose.complexity <= strict.complexity <= 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from m3score.alit import AlitSettings
    from m3score.calibration.alit import train

    small = AlitSettings(image_size=16, patch_size=4, thumbnail_size=8, width=16, heads=2, layers=1, rounds=3)
    model, known = train(small, seed=0, pool=24, seconds=600, steps=60, batch_size=8, unseen=24)
    assert known["steps"] == 60 and known["mean_error_by_tokens"][12] < 0.3
    folder = tmp_path_factory.mktemp("alit")
    model.save(folder)
    return folder


def test_training_lowers_the_error(tokenizer: Path) -> None:
    import torch

    from m3score.alit import AlitModel, load_alit
    from m3score.calibration.alit import drawings

    trained = load_alit(str(tokenizer))
    torch.manual_seed(0)
    untrained = AlitModel(trained.settings).eval()
    seen = drawings(77, 12, 16).float() / 255
    assert trained.errors(seen)[:, -1].mean() < 0.95 * untrained.errors(seen)[:, -1].mean()


def test_a_stopped_training_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from m3score.alit import AlitSettings
    from m3score.calibration import alit

    small = AlitSettings(image_size=16, patch_size=4, thumbnail_size=8, width=8, heads=2, layers=1, rounds=2)

    def trained(folder: Path | None, seed: int = 0) -> dict[str, torch.Tensor]:
        how: dict[str, Any] = {"pool": 8, "seconds": 600, "steps": 8, "batch_size": 4, "unseen": 4}
        return alit.train(small, seed=seed, folder=folder, **how)[0].state_dict()

    undisturbed = trained(None)
    monkeypatch.setattr(alit, "SAVE_SECONDS", 0)
    saves, save = [], alit.Run.save

    def stop_after_three(run: alit.Run, file: Path) -> None:
        save(run, file)
        saves.append(file)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(alit.Run, "save", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    with pytest.raises(M3ScoreError, match="other options"):
        trained(tmp_path, seed=1)
    for name, value in trained(tmp_path).items():
        assert torch.equal(value, undisturbed[name]), name
    assert len(saves) == 8


def test_rank_by_adaptive_tokens(pictures: Path, tokenizer: Path) -> None:
    asked = ("rank", pictures, "--scorer", "alit", "--alit-model", tokenizer)
    done = run(*asked, "--alit-threshold", "0.05", "--out", "alit.csv")
    assert done.exit_code == 3, done.stderr
    table = pd.read_csv("alit.csv").set_index("path")
    assert {"alit_tokens", "alit_error"} <= set(table.columns)
    scores = {Path(str(path)).stem: row for path, row in table.iterrows()}
    assert scores["plain"]["complexity"] == 0 and scores["plain"]["alit_tokens"] == 4
    assert scores["half"]["complexity"] > 0
    loose = run(
        "rank",
        pictures,
        "--scorer",
        "alit",
        "--alit-model",
        tokenizer,
        "--alit-threshold",
        "1",
        "-o",
        "l.csv",
    )
    assert loose.exit_code == 3 and pd.read_csv("l.csv")["complexity"].dropna().eq(0).all()


def test_the_bundled_tokenizer(pictures: Path) -> None:
    from m3score.calibration.drawn import draw

    for kind in ("plane", "chart"):
        draw(11, 0, kind).image.save(pictures / f"{kind}.png")
    done = run("rank", pictures, "--scorer", "alit", "--out", "alit.csv")
    assert done.exit_code == 3, done.stderr
    rows = pd.read_csv("alit.csv").dropna(subset=["complexity"]).to_dict("records")
    scores = {Path(row["path"]).stem: row["complexity"] for row in rows}
    assert scores["plain"] == 0 and 0 <= scores["plane"] < scores["chart"] <= 1


def test_what_is_no_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    from m3score.alit import load_alit

    (tmp_path / "config.json").write_text('{"kind": "other"}')
    with pytest.raises(M3ScoreError, match="no tokenizer"):
        load_alit(str(tmp_path))
    (tmp_path / "config.json").write_bytes((tokenizer / "config.json").read_bytes())
    with pytest.raises(M3ScoreError, match="can't be loaded"):
        load_alit(str(tmp_path))


# ---- compare --scorers ----------------------------------------------------------------------------------


def test_compare_scores_what_is_missing(pictures: Path) -> None:
    people = [
        "path,rating,category",
        *(f"{name}.png,{place},a" for place, name in enumerate(["plain", "half", "noise"])),
    ]
    Path("people.csv").write_text("\n".join(people) + "\n")
    asked = ["compare", pictures, "--scorers", "jpeg,edges", "--ratings", "people.csv", "--keep", "kept"]
    done = run(*asked)
    assert done.exit_code == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "jpeg - edges" in shown and "Spearman, per category" in shown and "1.00" in shown
    before = {path.name: path.stat().st_mtime_ns for path in Path("kept").iterdir()}
    assert set(before) == {"jpeg.csv", "edges.csv"}
    again = run(*asked[:3], "jpeg,edges,entropy", *asked[4:], "--json")
    assert [pair["spearman"]["value"] for pair in json.loads(again.stdout)["pairs"]] == pytest.approx(
        [1, 1, 1]
    )
    assert "taken from" in again.stderr
    assert all((Path("kept") / name).stat().st_mtime_ns == time for name, time in before.items())


def test_compare_with_the_model_beside(pictures: Path) -> None:
    done = run("compare", pictures, "--scorers", "model,jpeg", "--out", "all.csv", "--keep", "kept")
    assert done.exit_code == 0, done.stderr
    table = pd.read_csv("all.csv").dropna(subset=["model"])
    assert len(table) == 3 and {"model", "jpeg", "model_rank", "moved"} <= set(table.columns)
    assert "agreement_576" in pd.read_csv("kept/model.csv").columns


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scorers", "jpeg,beauty"], "no scorer 'beauty'; there are model,"),
        (["--scorers", "jpeg"], "needs two scorers, or one and --ratings"),
        (["--scorers", ","], "needs names"),
        (["--keep", "kept"], "--keep goes with --scorers"),
    ],
)
def test_compare_usage_errors(arguments: list[str], expected: str, pictures: Path) -> None:
    done = run("compare", pictures, *arguments)
    assert done.exit_code == 2 and expected in " ".join(done.stderr.split())
