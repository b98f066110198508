"""Prompts that share beginnings, as trees in the language model: shared parts are read once.

Knows the language model's forward pass, cache, positions and masks; knows nothing about images, scales or
questions. A tree's nodes are runs of embeddings. A token attends to the tokens before it in its own node and
to all nodes above, as if the path to it were a sequence of its own. All questions about one image form such a
tree, and so does one question at several scales. A batch holds one tree per row, and nothing in a row is
copied per question: many leaves decode in one row, and each step adds one token to each of them.

Rows are padded on the *right*. So a row's own tokens come before its padding, every query has a key, and
plain causal attention never sees padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

_STEPS_AHEAD = 16
"""The cache grows by room for this many decoding steps at once, because growing copies it."""


@dataclass(frozen=True, eq=False)
class Node:
    """A run of tokens that continues another node."""

    embeddings: torch.Tensor
    """(length, hidden)"""
    parent: int | None = None
    """Index of the node that it continues; None for a root."""


Leaf = tuple[int, int]
"""(row, node)"""
Cell = tuple[int, int]
"""(row, column) of a token that is read in one step."""


@dataclass
class _Place:
    """Where a node's tokens are stored."""

    slot: int
    """Cache slot of its first token."""
    position: int
    """Position of its first token in its sequence."""
    length: int


class PromptTrees:
    """A batch of trees that the language model has read."""

    def __init__(self, hf_model: Any, trees: Sequence[Sequence[Node]], *, trunk_first: bool = True) -> None:
        """Read the trees.

        Args:
            hf_model: transformers' LLaVA model.
            trees: per row, its nodes; parents come before their children.
            trunk_first: read the part that all leaves of a row share in a pass of its own. Causal attention
            then
                needs no mask and half the computation; this pays off if the trunk is most of the tree.
        """
        self._embed = hf_model.get_input_embeddings()
        self._head = hf_model.get_output_embeddings()
        self._decoder = hf_model.model.language_model
        self._cache = Cache(layer_class_to_replicate=_GrowingLayer)
        self._places: list[list[_Place]] = [[] for _ in trees]
        self._sees = [_visibility(tree) for tree in trees]
        self._owner = np.empty((len(trees), 0), np.int64)  # each slot's node; -1 for none
        self._first = 0  # cache slot of the first token in `_hidden`
        if all(_chain(tree) == len(tree) for tree in trees):
            self._read(trees, causal=True)
            return
        trunks = [_trunk(tree) if trunk_first else 0 for tree in trees]
        if any(trunks):
            self._read([tree[:length] for tree, length in zip(trees, trunks, strict=True)], causal=True)
        self._read([tree[length:] for tree, length in zip(trees, trunks, strict=True)], causal=False)

    @property
    def device(self) -> torch.device:
        return self._embed.weight.device

    def _read(self, trees: Sequence[Sequence[Node]], *, causal: bool) -> None:
        """Read more nodes of every row; `_hidden` is then (rows, longest, hidden)."""
        rows = [[node.embeddings for node in tree] for tree in trees]
        longest = max(sum(map(len, row)) for row in rows)
        past = self._first = self._owner.shape[1]
        owner = np.full((len(trees), longest), -1)
        positions = np.zeros((len(trees), longest), np.int64)
        if causal:  # padding too: the positions are then those of any causal sequence
            positions[:] = np.arange(longest)
        for row, tree in enumerate(trees):
            slot = 0
            for node in tree:
                start = 0 if node.parent is None else self._end(row, node.parent)
                length = len(node.embeddings)
                owner[row, slot : slot + length] = len(self._places[row])
                positions[row, slot : slot + length] = np.arange(start, start + length)
                self._places[row].append(_Place(past + slot, start, length))
                slot += length
        self._owner = np.concatenate([self._owner, owner], axis=1)
        empty = self._embed.weight.new_empty(0, self._embed.weight.shape[1])
        embeddings = torch.nn.utils.rnn.pad_sequence(
            [torch.cat([empty, *row]) for row in rows], batch_first=True
        )
        mask = None if causal else self._mask_of(owner, causal_from=past)
        if (positions == positions[0]).all():
            positions = positions[:1]  # one row of rotations serves all rows
        self._hidden = self._forward(embeddings, torch.from_numpy(positions).to(self.device), mask)

    def _end(self, row: int, node: int) -> int:
        place = self._places[row][node]
        return place.position + place.length

    def _mask_of(self, askers: np.ndarray, causal_from: int) -> torch.Tensor:
        """Additive mask (rows or 1, 1, queries, slots) of queries that belong to the nodes `askers`.

        Query i is in slot causal_from + i, and sees no later slot.
        """
        queries, slots = askers.shape[1], self._owner.shape[1]
        earlier = np.tri(queries, slots, causal_from, dtype=bool)
        kinds: dict[bytes, np.ndarray] = {}
        keys = []
        for row, sees in enumerate(self._sees):
            keys.append(askers[row].tobytes() + self._owner[row].tobytes() + sees.tobytes())
            if keys[-1] not in kinds:
                # First a line of slots per node, then one per query: copying whole lines is fast.
                mask = sees[:, self._owner[row]][askers[row]] & earlier
                np.fill_diagonal(mask[:, causal_from:], True)  # padding sees itself: no query without a key
                kinds[keys[-1]] = mask
        masks = list(kinds.values()) if len(kinds) == 1 else [kinds[key] for key in keys]
        return self._additive(torch.from_numpy(np.stack(masks)))

    def _additive(self, mask: torch.Tensor) -> torch.Tensor:
        seen = mask.to(self.device)[:, None]
        return torch.zeros(seen.shape, dtype=self._embed.weight.dtype, device=self.device).masked_fill_(
            ~seen, -torch.inf
        )

    def _forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return self._decoder(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    # -- results ----------------------------------------------------------------------------------

    def logits_at_ends(self, leaves: Sequence[Leaf]) -> torch.Tensor:
        """float32 (leaves, vocabulary): the logits after each leaf."""
        lengths = [self._places[row][node].length for row, node in leaves]
        return self.logits([(row, node, n - 1, n) for (row, node), n in zip(leaves, lengths, strict=True)])

    def logits(self, parts: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
        """Logits after some tokens of leaves: float32 (tokens, vocabulary).

        Args:
            parts: (row, node, first, last + 1) of runs of tokens; the nodes were read last.
        """
        rows: list[int] = []
        slots: list[int] = []
        for row, node, first, stop in parts:
            start = self._places[row][node].slot - self._first
            rows.extend([row] * (stop - first))
            slots.extend(range(start + first, start + stop))
        hidden = self._hidden[torch.tensor(rows, device=self.device), torch.tensor(slots, device=self.device)]
        return self._head(hidden).float()

    def forget(self, leaf: Leaf, keep: int) -> None:
        """Remove a leaf's tokens except for the first `keep`."""
        row, node = leaf
        place = self._places[row][node]
        self._owner[row, place.slot + keep : place.slot + place.length] = -1
        place.length = keep

    # -- decoding ----------------------------------------------------------------------------------------

    def keep(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Drop the rows that have none of these leaves; returns the leaves' new places."""
        rows = sorted({row for row, _ in leaves})
        if len(rows) < len(self._places):
            self._cache.batch_select_indices(torch.tensor(rows, device=self.device))
            self._places = [self._places[row] for row in rows]
            self._sees = [self._sees[row] for row in rows]
            self._owner = self._owner[rows]
        return [(rows.index(row), node) for row, node in leaves]

    def concat(self, other: PromptTrees, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Append another batch's rows; returns its leaves' new places."""
        before, slots = len(self._places), max(self._owner.shape[1], other._owner.shape[1])
        layers: list[Any] = self._cache.layers
        for layer, more in zip(layers, other._cache.layers, strict=True):
            layer.concat(more, slots)
        self._owner = np.concatenate([_widened(self._owner, slots), _widened(other._owner, slots)])
        self._places += other._places
        self._sees += other._sees
        return [(before + row, node) for row, node in leaves]

    def start(self, leaves: Sequence[Leaf]) -> None:
        """Prepare to append tokens to these leaves and no others; every row must have one."""
        rows = range(len(self._places))
        columns: list[list[int]] = [[] for _ in rows]
        at: list[Cell] = []
        for row, node in leaves:
            at.append((row, len(columns[row])))
            columns[row].append(node)
        width = max(map(len, columns))
        askers = np.full((len(rows), width), -1)
        positions = np.zeros((len(rows), width), np.int64)
        for row, nodes in enumerate(columns):
            askers[row, : len(nodes)] = nodes
            positions[row, : len(nodes)] = [self._end(row, node) for node in nodes]
        self._at = at
        self._positions = torch.from_numpy(positions).to(self.device)
        sees = np.stack([self._sees[row][askers[row]][:, self._owner[row]] for row in rows])
        own = np.broadcast_to(np.eye(width, dtype=bool), (len(rows), width, width))
        self._mask = self._additive(torch.from_numpy(sees))
        self._own = self._additive(torch.from_numpy(own.copy()))
        self._plain = width == 1 and bool(sees.all())  # without a mask attention is faster

    def select(self, kept: Sequence[int]) -> None:
        """Keep only some of the leaves of `start`, by their index."""
        at = [self._at[place] for place in kept]
        rows = sorted({row for row, _ in at})
        columns: list[list[int]] = [[] for _ in rows]
        self._at = []
        for row, column in at:
            line = rows.index(row)
            self._at.append((line, len(columns[line])))
            columns[line].append(column)
        width = max(map(len, columns))
        # A short row repeats its first query; no other token sees what this adds.
        padded = [of_row + of_row[:1] * (width - len(of_row)) for of_row in columns]
        index = torch.tensor(rows, device=self.device)
        chosen = torch.tensor(padded, device=self.device)
        self._cache.batch_select_indices(index)
        self._positions = self._positions[index].gather(1, chosen)
        self._mask = self._mask[index[:, None], :, chosen].transpose(1, 2)
        self._own = self._own[: len(rows), :, :width, :width]

    def append(self, ids: torch.Tensor) -> torch.Tensor:
        """Append ids (leaves,) to the leaves of `start`; returns logits, float32 (leaves, vocabulary)."""
        fed = torch.zeros(self._positions.shape, dtype=torch.long, device=self.device)
        row, column = torch.tensor(self._at, device=self.device).T
        fed[row, column] = ids
        mask = None
        if not self._plain:
            self._mask = mask = torch.cat([self._mask, self._own], dim=-1)
        hidden = self._forward(self._embed(fed), self._positions, mask)
        self._positions = self._positions + 1
        return self._head(hidden[row, column]).float()


def _chain(tree: Sequence[Node]) -> int:
    """How many leading nodes are each the child of the one before."""
    for index, node in enumerate(tree):
        if node.parent != (index - 1 if index else None):
            return index
    return len(tree)


def _trunk(tree: Sequence[Node]) -> int:
    """How many leading nodes are each the child of the one before, and not leaves."""
    parents = {node.parent for node in tree}
    return next((index for index in range(_chain(tree)) if index not in parents), _chain(tree))


def _visibility(tree: Sequence[Node]) -> np.ndarray:
    """bool (nodes + 1, nodes + 1): whether a node sees another. The last entry is for no node, index -1."""
    sees = np.zeros((len(tree) + 1, len(tree) + 1), bool)
    for index, node in enumerate(tree):
        if node.parent is not None:
            sees[index] = sees[node.parent]
        sees[index, index] = True
    return sees


def _widened(owner: np.ndarray, slots: int) -> np.ndarray:
    return np.pad(owner, ((0, 0), (0, slots - owner.shape[1])), constant_values=-1)


class _GrowingLayer(DynamicLayer):
    """A cache layer with spare room at its end, so that not every step copies all of it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms: dict[str, torch.Tensor] = {}
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        self.keys = keys = self._behind("keys", self.keys, key_states)
        self.values = values = self._behind("values", self.values, value_states)
        return keys, values

    def _behind(self, name: str, old: Any, new: torch.Tensor) -> torch.Tensor:
        held, more = old.shape[2], new.shape[2]
        room = self._rooms.get(name)
        if room is None or room.shape[2] < held + more:
            rows, heads, _, size = old.shape
            room = self._rooms[name] = old.new_empty(rows, heads, held + _STEPS_AHEAD * more, size)
            room[:, :, :held] = old
        room[:, :, held : held + more] = new
        return room[:, :, : held + more]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._rooms = {}

    def concat(self, other: _GrowingLayer, slots: int) -> None:
        """Append another layer's rows. Both are padded to `slots` with zeros, which no token sees."""
        pairs = ((self.keys, other.keys), (self.values, other.values))
        self.keys, self.values = (torch.cat([_filled(one, slots), _filled(two, slots)]) for one, two in pairs)
        self._rooms = {}


def _filled(states: Any, slots: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, slots - states.shape[2]))
