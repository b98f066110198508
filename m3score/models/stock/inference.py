"""Answers of a stock model at every budget: the finest answers, the others read its answer.

Knows transformers' `generate` and `forward`; the verdicts are those of models/inference. Budgets that show a
picture with the same pixels are worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.common.profiling import stage
from m3score.models.base import ScaleAnswer
from m3score.models.budgets.base import Family, Square
from m3score.models.inference.generation import Decoded, check_number, is_finished
from m3score.models.inference.verdicts import Verdict, agreed, groups_to_judge, judge, scale_answer
from m3score.models.stock.prompts import Inputs, Prompter


@dataclass(frozen=True)
class Pair:
    """A picture and the prompt with the question about it."""

    image: Image.Image
    prompt: str


class Network:
    """One model's network: what it says, and what it makes of what was said."""

    def __init__(
        self, hf_model: Any, tokenizer: Any, prompter: Prompter, stop_ids: frozenset[int], pad_token: int
    ) -> None:
        """
        Args:
            hf_model: transformers' model.
            tokenizer: its tokenizer.
            prompter: makes its inputs.
            stop_ids: end tokens.
            pad_token: id of padding.
        """
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.prompter = prompter
        self.stop_ids = stop_ids
        self._pad = pad_token
        # Rotations of text alone do not depend on where a row begins, those of pictures are the model's own.
        self._own_positions = hasattr(getattr(hf_model, "model", hf_model), "get_rope_index")
        text = hf_model.config.get_text_config()
        self._longest = getattr(text, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.hf_model.get_input_embeddings().weight.device
        return device

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, stripped, without special tokens."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.strip()

    def inputs(
        self, pairs: Sequence[Pair], budget: int, tails: Sequence[Sequence[int]] | None = None
    ) -> Inputs:
        """Prompts at a budget, each followed by the tokens of its tail."""
        with stage("preprocess"):
            made = self.prompter.inputs([p.image for p in pairs], [p.prompt for p in pairs], budget)
            return self.prompter.continued(made, tails) if tails is not None else made

    @torch.no_grad()
    def generate(
        self, inputs: Inputs, limits: Sequence[int], *, keep_distributions: bool = False
    ) -> list[Decoded]:
        """Decode greedily.

        Args:
            inputs: prompts, from `inputs`.
            limits: per prompt, the most tokens.
            keep_distributions: fill in `Decoded.log_probs`.
        """
        self._check_length(inputs, max(limits))
        made = self.hf_model.generate(
            **self._placed(inputs),
            max_new_tokens=max(limits),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        start = inputs["input_ids"].shape[1]
        log_probs = torch.log_softmax(torch.stack(made.logits, dim=1).float(), dim=-1)
        ids = made.sequences[:, start:]
        chosen = log_probs.gather(-1, ids[..., None])[..., 0].tolist()
        return [
            self._decoded(row.tolist(), chances, log_probs[number], limit, keep_distributions)
            for number, (row, chances, limit) in enumerate(zip(ids, chosen, limits, strict=True))
        ]

    def _decoded(
        self, row: list[int], chances: list[float], log_probs: torch.Tensor, limit: int, keep: bool
    ) -> Decoded:
        ids: list[int] = []
        for token in row:
            if is_finished(ids, limit, self.stop_ids):
                break
            check_number(chances[len(ids)])
            ids.append(token)
        return Decoded(ids, sum(chances[: len(ids)]), log_probs[: len(ids)].clone() if keep else None)

    @torch.no_grad()
    def read(self, pairs: Sequence[Pair], budget: int, drafts: Sequence[Decoded]) -> list[Verdict]:
        """What a budget makes of the finest budget's answers, from one forward pass."""
        inputs = self.inputs(pairs, budget, [draft.ids[:-1] for draft in drafts])
        self._check_length(inputs, 1)
        longest = max(len(draft.ids) for draft in drafts)
        with stage("verify"):
            logits = self.hf_model(
                **self._placed(inputs), **self._positions(inputs), logits_to_keep=longest, use_cache=False
            ).logits
            verdicts: list[Verdict] = []
            for group in groups_to_judge(drafts):
                rows = torch.cat([logits[row, longest - len(drafts[row].ids) :] for row in group])
                verdicts += judge(rows.float(), [drafts[row] for row in group])
        return verdicts

    @torch.inference_mode()
    def look(self, squares: Sequence[Image.Image], square: Square) -> list[torch.Tensor]:
        """The visual tokens of pictures of one square size: per picture (1, tokens, width)."""
        blank = self.prompter.text("")
        inputs = self.prompter.inputs(squares, [blank] * len(squares), square.budget)
        along = inputs["input_ids"].shape
        seen = {name: value for name, value in self._placed(inputs).items() if value.shape != along}
        made = self.hf_model.get_image_features(**seen)
        features = getattr(made, "pooler_output", made)
        parts = [features] if isinstance(features, torch.Tensor) else list(features)
        width = parts[0].shape[-1]
        tokens = torch.cat([part.reshape(-1, width) for part in parts]).reshape(len(squares), -1, width)
        return list(tokens[:, None, : square.grid**2].unbind())

    def _placed(self, inputs: Inputs) -> Inputs:
        dtype = self.hf_model.dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }

    def _positions(self, inputs: Inputs) -> Inputs:
        """Positions that begin at each prompt's own first token, as `generate` has them."""
        if self._own_positions:
            return {}
        positions = (inputs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
        return {"position_ids": positions.to(self.device)}

    def _check_length(self, inputs: Inputs, more: int) -> None:
        length = inputs["input_ids"].shape[1] + more
        if self._longest is not None and length > self._longest:
            raise M3ScoreError(
                f"The prompt with its visual tokens and answer is {length} tokens long, more than the "
                f"{self._longest} that the model takes: leave out the largest budgets, or ask less."
            )


def answer_pairs(
    network: Network,
    family: Family,
    ladder: Sequence[int],
    pairs: Sequence[Pair],
    max_new_tokens: int,
    *,
    decode_coarse: bool,
) -> list[tuple[ScaleAnswer, ...]]:
    """Answer one batch of pairs at every budget.

    Args:
        network: the model.
        family: the model's.
        ladder: budgets, smallest first.
        pairs: pictures with a prompt each.
        max_new_tokens: at most this many tokens per answer.
        decode_coarse: decode smaller budgets' answers where they differ.

    Returns:
        Per pair, one ScaleAnswer per budget.
    """
    *coarser, top = ladder
    with stage("decode"):
        inputs = network.inputs(pairs, top)
        finest = network.generate(inputs, [max_new_tokens] * len(pairs), keep_distributions=True)
    verdicts = {top: [agreed(own) for own in finest]}
    above = top
    for budget in reversed(coarser):
        anew = [i for i, pair in enumerate(pairs) if not family.same_pixels(pair.image.size, budget, above)]
        verdicts[budget] = list(verdicts[above])
        if anew:
            read = network.read([pairs[i] for i in anew], budget, [finest[i] for i in anew])
            if decode_coarse:
                read = _finished(network, [pairs[i] for i in anew], budget, read, max_new_tokens)
            for i, verdict in zip(anew, read, strict=True):
                verdicts[budget][i] = verdict
        above = budget
    decode = network.decode
    return [
        tuple(
            scale_answer(
                verdicts[budget][i],
                budget,
                family.visual_tokens(pair.image.size, budget),
                decode,
                network.stop_ids,
                known=decode_coarse or not verdicts[budget][i].differs,
            )
            for budget in ladder
        )
        for i, pair in enumerate(pairs)
    ]


def _finished(
    network: Network, pairs: Sequence[Pair], budget: int, verdicts: Sequence[Verdict], max_new_tokens: int
) -> list[Verdict]:
    """The verdicts, with the rest of answers that differ and have not come to their end."""
    going = [
        i
        for i, verdict in enumerate(verdicts)
        if verdict.differs and not is_finished(verdict.ids, max_new_tokens, network.stop_ids)
    ]
    done = list(verdicts)
    if going:
        with stage("decode"):
            begun = [verdicts[i].ids for i in going]
            inputs = network.inputs([pairs[i] for i in going], budget, begun)
            rest = network.generate(inputs, [max_new_tokens - len(ids) for ids in begun])
        for i, more in zip(going, rest, strict=True):
            own = verdicts[i]
            done[i] = replace(own, ids=own.ids + more.ids, logprob=own.logprob + more.logprob)
    return done
