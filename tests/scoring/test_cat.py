"""Complexity after CAT: a model describes the picture, a chat model rates the description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3score import M3ScoreError
from m3score.scoring.scorers.cat_prompts import parse_rating, read_prompts
from tests.support.runs import invoke as run


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
    good = (Path(__file__).parents[2] / "m3score" / "assets" / "cat.toml").read_text()
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
