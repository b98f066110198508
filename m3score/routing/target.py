"""How a predictor's target model is told its budget: what to send along with a picture.

Knows families of models and the knobs of servers (models/budgets, models/endpoint), no images and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.models.budgets import table
from m3score.models.budgets.base import Family, Size


@dataclass(frozen=True, eq=False)
class TokenRequest:
    """What to send so that a picture gets a budget of visual tokens."""

    budget: int
    """A rung of the ladder: the most visual tokens that the picture may have."""
    visual_tokens: int | None
    """How many it then has, exactly; None where only the server could tell."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What to send, ready for JSON; one of:

    - `tokens`: for an M3 model, `model.answer(image, question, tokens=...)`;
    - `processor_kwargs`: for a processor of transformers, with the call;
    - `image_processor`: for one that takes no such thing with a call: attributes to set on it, and on the
      model's configuration where that has them too;
    - `extra_body`, `image_url`: fields of a chat-completions request, and beside the picture's URL;
    - `resize`: the [width, height] that the client resizes the picture to, to be sent as PNG."""
    image: Image.Image | None = None
    """The resized picture, where `fields` wants one and the picture was at hand."""


@dataclass(frozen=True)
class Target:
    """The model that a predictor routes, as far as sending goes."""

    family: Family | None = None
    """None for an M3 model, and for a server of which only the ladder is known."""
    knob: str | None = None
    """One of endpoint.knobs.KNOBS for a model behind a server; None for one that runs here."""
    spelling: int = 0
    """Which spelling of the knob the server took."""

    @classmethod
    def of(cls, answerer: Any) -> Target | None:
        """The target that a model is; None for an M3 model."""
        family, findings = getattr(answerer, "family", None), getattr(answerer, "findings", None)
        if family is None and findings is None:
            return None
        if findings is None:
            return cls(family)
        return cls(family, findings.knob.name, findings.knob.spelling)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it."""
        family = None if self.family is None else self.family.to_dict()
        told = {"family": family, "knob": self.knob, "spelling": self.spelling}
        return dict(json.loads(json.dumps(told)))  # lists for tuples, as a file has them

    @classmethod
    def from_dict(cls, stored: Any) -> Target:
        """What `to_dict` wrote; M3ScoreError for anything else."""
        if not isinstance(stored, Mapping) or type(stored.get("spelling")) is not int:
            raise M3ScoreError("its target is no description of a model.")
        family, knob = stored.get("family"), stored.get("knob")
        if not isinstance(family, Mapping | None) or not isinstance(knob, str | None):
            raise M3ScoreError("its target's family and knob are no description of a model.")
        found = cls(None if family is None else table.restore(family), knob, stored["spelling"])
        if knob is not None:
            found._knob()  # complains by itself
        if knob != "detail":
            found._known_family()  # complains too
        return found

    def request(self, size: Size, budget: int, ladder: tuple[int, ...]) -> TokenRequest:
        """What to send of a picture of (width, height) pixels at a budget of the ladder.

        Raises:
            M3ScoreError: a picture that the family refuses, or a knob that has no word for the budget.
        """
        if self.knob is not None:
            return self._by_knob(size, budget, ladder)
        family = self._known_family()
        told = family.processor_kwargs(budget)
        call: dict[str, Any] = {"processor_kwargs": {"images_kwargs": told}}
        fields = call if family.per_call else {"image_processor": told}
        return TokenRequest(budget, family.visual_tokens(size, budget), fields)

    def _known_family(self) -> Family:
        if self.family is None:
            raise M3ScoreError("its target has no family, which only the knob detail can do without.")
        return self.family

    def _knob(self) -> Any:
        from m3score.models.endpoint.knobs import find_knob

        knob = find_knob(str(self.knob))
        if not 0 <= self.spelling < max(1, len(knob.spellings)):
            raise M3ScoreError(f"its target spells the knob {self.knob} as this m3score can't.")
        return replace(knob, spelling=self.spelling)

    def _by_knob(self, size: Size, budget: int, ladder: tuple[int, ...]) -> TokenRequest:
        from m3score.models.endpoint.chat import Picture

        fields: dict[str, Any] = {}
        knob = self._knob()
        if knob.name == "resize":
            fields["resize"] = list(self._client_size(size, budget))
        else:
            told = knob.look(Picture(Image.new("L", (1, 1))), self.family, budget, ladder)
            fields = {"extra_body": dict(told.body), "image_url": dict(told.image_url)}
        count = None if self.family is None else knob.count(self.family, size, budget)
        return TokenRequest(budget, count, {name: value for name, value in fields.items() if value})

    def _client_size(self, size: Size, budget: int) -> Size:
        family = self._known_family()
        wanted = family.client_size(size, budget)
        if wanted is None:
            raise M3ScoreError(f"resizing does nothing for {family.name}: it enlarges what is small.")
        return wanted


def m3_request(budget: int) -> TokenRequest:
    """What to send to an M3 model, which takes its scale by number."""
    return TokenRequest(budget, budget, {"tokens": budget})
