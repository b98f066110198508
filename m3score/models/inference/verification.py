"""How coarser scales answer, compared with the finest scale's answer.

Each coarser scale reads the finest answer in one forward pass (teacher forcing). This shows how much it
agrees, and where its own greedy choice first differs. Up to there its own answer is known; only from there on
it has to decode, in one batch with all others that must. (This is the verification of speculative decoding.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from m3score.common.profiling import stage
from m3score.models.inference.generation import (
    Decoded,
    LadderModel,
    Pair,
    build_prompt_forest,
    continue_decoding,
    is_finished,
)
from m3score.models.inference.prompt_tree import Leaf, PromptTrees
from m3score.models.inference.verdicts import Verdict, groups_to_judge, judge

_PACKED_TOKENS = {"cpu": 256, "cuda": 4096}
"""Visual tokens of one image that several scales may share a row with, per kind of device.

Scales in one row save passes and padding. But masked attention computes values that it then discards, and
their number grows with the square of the row's length.
"""


class _Reading:
    """A batch's prompts at some scales, each followed by the finest answer."""

    def __init__(
        self, model: LadderModel, pairs: Sequence[Pair], scales: Sequence[int], finest: Sequence[Decoded]
    ) -> None:
        self._drafts = [answer for answer in finest for _ in scales]
        self._forest, self.leaves = build_prompt_forest(
            model, pairs, scales, [answer.ids[:-1] for answer in finest]
        )
        self.trees = PromptTrees(model.hf_model, self._forest, trunk_first=len(scales) == 1)
        self.verdicts = list(self._compare())

    def _compare(self) -> Iterator[Verdict]:
        """Compare each leaf's distributions over the draft with the finest scale's."""
        for chosen in groups_to_judge(self._drafts):
            parts = []
            for number in chosen:
                row, node = self.leaves[number]
                stop = len(self._forest[row][node].embeddings)
                parts.append((row, node, stop - len(self._drafts[number].ids), stop))
            yield from judge(self.trees.logits(parts), [self._drafts[number] for number in chosen])

    def forget_drafts(self, numbers: Sequence[int]) -> list[Leaf]:
        """Remove from these leaves the draft tokens after the shared ones; returns the leaves."""
        chosen = [self.leaves[number] for number in numbers]
        for number, (row, node) in zip(numbers, chosen, strict=True):
            prompt = len(self._forest[row][node].embeddings) - (len(self._drafts[number].ids) - 1)
            self.trees.forget((row, node), prompt + self.verdicts[number].shared)
        return chosen


@torch.no_grad()
def verify(
    model: LadderModel,
    pairs: Sequence[Pair],
    scales: Sequence[int],
    finest: Sequence[Decoded],
    max_new_tokens: int,
    *,
    decode_coarse: bool = True,
) -> list[list[Verdict]]:
    """Teacher-force the finest answers at coarser scales; decode from where greedy choices differ.

    Args:
        model: the model.
        pairs: encoded images with a question each.
        scales: visual tokens per grid.
        finest: the finest scale's answers, with their distributions.
        max_new_tokens: at most this many tokens per answer.
        decode_coarse: decode the rest of answers that differ.

    Returns:
        Per pair, one verdict per scale.
    """
    with stage("verify"):
        readings = [_Reading(model, pairs, group, finest) for group in _groups(model, pairs, scales)]
    if decode_coarse:
        with stage("decode"):
            _finish_answers(model, readings, max_new_tokens)
    verdicts: list[list[Verdict]] = [[] for _ in pairs]
    for reading in readings:
        width = len(reading.verdicts) // len(pairs)
        for number, verdict in enumerate(reading.verdicts):
            verdicts[number // width].append(verdict)
    return verdicts


def _groups(model: LadderModel, pairs: Sequence[Pair], scales: Sequence[int]) -> list[list[int]]:
    """Group scales that share a row: as many as _PACKED_TOKENS allows, from the coarsest on."""
    limit = _PACKED_TOKENS["cuda" if pairs[0][0].features.device.type == "cuda" else "cpu"]
    groups: list[list[int]] = []
    held = 0
    for tokens in scales:
        size = max(model.visual_token_count(encoded, tokens) for encoded, _ in pairs)
        held += size
        if not groups or held > limit:
            groups.append([])
            held = size
        groups[-1].append(tokens)
    return groups


def _finish_answers(model: LadderModel, readings: Sequence[_Reading], max_new_tokens: int) -> None:
    """Decode the rest of unfinished answers that differ from the finest scale's, in place."""
    trees: PromptTrees | None = None
    leaves: list[Leaf] = []
    going: list[tuple[_Reading, int]] = []
    for reading in readings:
        numbers = [
            number
            for number, verdict in enumerate(reading.verdicts)
            if verdict.differs and not is_finished(verdict.ids, max_new_tokens, model.stop_ids)
        ]
        if numbers:
            kept = reading.trees.keep(reading.forget_drafts(numbers))
            leaves += trees.concat(reading.trees, kept) if trees else kept
            trees = trees or reading.trees
            going += [(reading, number) for number in numbers]
    if trees is None:
        return
    trees.start(leaves)
    begun = [reading.verdicts[number] for reading, number in going]
    last = torch.tensor([verdict.ids[-1] for verdict in begun], device=trees.device)
    limits = [max_new_tokens - len(verdict.ids) for verdict in begun]
    rest = continue_decoding(trees, trees.append(last), model.stop_ids, limits)
    for (reading, number), verdict, more in zip(going, begun, rest, strict=True):
        reading.verdicts[number] = replace(
            verdict, ids=verdict.ids + more.ids, logprob=verdict.logprob + more.logprob
        )
