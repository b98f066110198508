"""Numbers of different models, ladders and sources of agreement are not mixed; older tables are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from m3score.analysis.compare import compare
from m3score.analysis.report.score_summary import summarise_scores
from m3score.analysis.select import select, select_rows
from m3score.common.errors import M3ScoreError
from m3score.scoring.oracle import rescore, score_trace
from m3score.scoring.traces import TraceRow

FACTS = {"model": "qwen", "ladder": "64,256", "agreement_from": "logits"}
CHANGES = [
    ("model", "gemma", "different models"),
    ("ladder", "64,1024", "different ladders"),
    ("agreement_from", "answers", "different sources of agreement"),
]


def scores(**facts: Any) -> pd.DataFrame:
    table = pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "complexity": [0.7, 0.8, 1.0]})
    return table.assign(required_tokens=[64, 64, 256], judged_by="agreement", solved=True, **facts)


def one_report(table: pd.DataFrame) -> object:
    return summarise_scores(
        [{str(key): value for key, value in row.items()} for row in table.to_dict("records")], 9
    )


@pytest.mark.parametrize(("fact", "other", "told"), CHANGES)
@pytest.mark.parametrize("use", [select, one_report])
def test_one_table_of_two_kinds(use: Callable[..., object], fact: str, other: str, told: str) -> None:
    mixed = pd.concat([scores(**FACTS), scores(**{**FACTS, fact: other})], ignore_index=True)
    with pytest.raises(M3ScoreError, match=rf"the table: numbers of {told} \('.*{other}'\)"):
        use(mixed)
    use(scores(**FACTS))


@pytest.mark.parametrize(("fact", "other", "told"), CHANGES)
def test_tables_that_do_not_compare(fact: str, other: str, told: str) -> None:
    tables = {"first": scores(**FACTS), "second": scores(**{**FACTS, fact: other})}
    with pytest.raises(M3ScoreError, match=rf"first and second: numbers of {told} .* --anyway"):
        compare(tables)
    assert compare(tables, anyway=True).pairs[0].images == 3


def test_what_does_compare() -> None:
    ours = scores(**FACTS)
    assert compare({"old": scores(), "new": ours}).pairs[0].images == 3  # older tables do not say
    jpeg = scores().drop(columns=["required_tokens", "judged_by", "solved"])
    vision = scores(**{**FACTS, "ladder": "1,4,16"}).assign(judged_by="vision")
    predicted = scores(**{**FACTS, "model": "m3-tiny"}).assign(
        judged_by=None, required_tokens=None, solved=None
    )
    predicted = predicted.assign(predicted_tokens=64)
    for other in (jpeg, vision, predicted):
        assert compare({"ours": ours, "other": other}).pairs[0].images == 3


def test_images_that_failed_do_not_count() -> None:
    failed = pd.DataFrame({"path": ["d.jpg"], "complexity": [None], "error": ["damaged"]})
    assert len(select(pd.concat([scores(**FACTS), failed], ignore_index=True))) == 3


def test_a_budget_of_tokens_counts_exactly() -> None:
    table = scores(**FACTS).assign(visual_tokens=[40, 50, 200])
    assert select_rows(table, token_budget=100).tokens == 90
    assert select_rows(table.drop(columns="visual_tokens"), token_budget=100).tokens == 64
    assert select_rows(table, per_level=1, token_budget=1000).per_level == {64: 1, 256: 1}


def trace_rows(**changes: Any) -> list[TraceRow]:
    told: dict[str, Any] = {
        "question_id": 0, "question": "Why?", "answer": "x", "agreement": 1.0, "consistent": True,
        "metric": None, "metric_score": None, "correct": None, "answer_logprob": 0.0, "cut": False,
        "references": (), "options": (), "model": "qwen", "width": 9, "height": 9, **changes,
    }  # fmt: skip
    return [
        TraceRow(**{"image": "a", "tokens": tokens, "visual_tokens": seen, **told})
        for tokens, seen in ((64, 40), (256, 40))
    ]


def test_a_score_says_what_it_is_relative_to() -> None:
    (score,) = score_trace(trace_rows()).values()
    row = score.to_row()
    assert (row["required_tokens"], row["visual_tokens"], row["ladder"]) == (64, 40, "64,256")
    assert (row["model"], row["agreement_from"]) == ("qwen", "logits")


def test_traces_of_different_agreements_are_not_scored_together() -> None:
    mixed = [*trace_rows(), *trace_rows(image="b", agreement_from="answers")]
    with pytest.raises(M3ScoreError, match="agreements from answers and logits are different numbers"):
        rescore(pd.DataFrame([row.to_dict() for row in mixed]))


def test_traces_of_older_versions_are_from_logits() -> None:
    older = pd.DataFrame([row.to_dict() for row in trace_rows()]).drop(columns="agreement_from")
    assert rescore(older)["agreement_from"].tolist() == ["logits"]
