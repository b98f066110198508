"""The models behind CAT's complexity: one describes pictures, one rates the descriptions; see cat.py.

Chat models of transformers do both: an M3 model or any image-text-to-text model describes, a text model
rates. Weights are read from safetensors files only, and no code of a repository is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from m3score.common.errors import M3ScoreError, first_line
from m3score.models import hub
from m3score.models.placing import no_progress_bars, resolve_device, resolve_dtype
from m3score.models.torchvision import mend_torchvision
from m3score.scoring.scorers.cat_prompts import Prompts, Rating, parse_rating

_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.safetensors")
_M3_TYPES = ("llava_llama", "llava", "llava_next")


class Describer(Protocol):
    """Answers a question about pictures."""

    def __call__(self, images: Sequence[Image.Image], question: str, max_new_tokens: int) -> list[str]:
        """One answer each."""


class M3Describer:
    """An M3 model at its finest scale."""

    def __init__(self, folder: Path, device: Any, dtype: Any) -> None:
        from m3score.models.loading import load_model

        self._model = load_model(str(folder), device=device, dtype=dtype)

    def __call__(self, images: Sequence[Image.Image], question: str, max_new_tokens: int) -> list[str]:
        """Greedy."""
        asked = [question] * len(images)
        finest = self._model.ladder[-1]
        return self._model.answer(list(images), asked, tokens=finest, max_new_tokens=max_new_tokens)


class ChatDescriber:
    """Any image-text-to-text model with a chat template."""

    def __init__(self, folder: Path, device: Any, dtype: Any) -> None:
        mend_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._tokenizer = _ready(self._processor.tokenizer)
        self._model = _loaded(AutoModelForImageTextToText, folder, device, dtype)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], question: str, max_new_tokens: int) -> list[str]:
        """Greedy."""
        talks = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": image}, {"type": "text", "text": question}],
                }
            ]
            for image in images
        ]
        fed = self._processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device, self._model.dtype)
        return _generated(self._model, self._tokenizer, fed, max_new_tokens)


class Rater:
    """A text model: with its chat template, or without one given the prompt as it is."""

    def __init__(self, folder: Path, device: Any, dtype: Any) -> None:
        mend_torchvision()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = _ready(AutoTokenizer.from_pretrained(folder, local_files_only=True))
        self._model = _loaded(AutoModelForCausalLM, folder, device, dtype)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], system: str, max_new_tokens: int) -> list[str]:
        """Greedy; one answer per prompt."""
        chats = bool(getattr(self._tokenizer, "chat_template", None))
        texts = [self._chat(prompt, system) if chats else f"{system}\n\n{prompt}\n" for prompt in prompts]
        fed = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chats)
        fed.pop("token_type_ids", None)
        return _generated(self._model, self._tokenizer, fed.to(self._model.device), max_new_tokens)

    def _chat(self, prompt: str, system: str) -> str:
        from jinja2 import TemplateError

        user = {"role": "user", "content": prompt}
        how: Mapping[str, Any] = {"add_generation_prompt": True, "tokenize": False}
        try:
            said = [{"role": "system", "content": system}, user] if system else [user]
            return str(self._tokenizer.apply_chat_template(said, **how))
        except TemplateError:  # some templates know no system
            user["content"] = f"{system}\n\n{prompt}"
            return str(self._tokenizer.apply_chat_template([user], **how))


@dataclass(frozen=True)
class Cat:
    """Describes pictures and rates the descriptions."""

    describe: Describer
    rater: Rater
    prompts: Prompts
    folders: tuple[Path, Path]

    def rate(self, images: Sequence[Image.Image]) -> list[Rating]:
        """Each picture's rating; an answer without a number is the rating's error."""
        asked = self.prompts
        said = [self.describe(images, question, asked.description_tokens) for question in asked.questions]
        captions = [" ".join(" ".join(answers).split()) for answers in zip(*said, strict=True)]
        prompts = [asked.prompt.replace("{description}", caption) for caption in captions]
        answers = self.rater(prompts, asked.system, asked.rating_tokens)
        return [self._rating(caption, answer) for caption, answer in zip(captions, answers, strict=True)]

    def _rating(self, caption: str, answer: str) -> Rating:
        score = parse_rating(answer)
        if score is None:
            short = " ".join(answer.split())[:80]
            return Rating(
                caption, None, None, f"the language model's answer has no rating from 1 to 9: {short!r}"
            )
        return Rating(caption, score, self.prompts.factor(score), None)

    def identity(self) -> Mapping[str, Any]:
        """What ratings depend on."""
        from m3score.models.fingerprint import fingerprint

        model, llm = (fingerprint(folder) for folder in self.folders)
        return {"--model": model, "--cat-llm": llm, "--cat-prompts": self.prompts.digest}


def load(
    model: str,
    llm: str,
    prompts: Prompts,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Cat:
    """Both models.

    Args:
        model: who describes: an M3 model by any name that load_model takes, or a hub id or folder of another
            image-text-to-text model.
        llm: who rates: a hub id or folder of a causal language model.
        prompts: see read_prompts.
        device, dtype, revision: as for load_model; the revision is the first model's.

    Raises:
        M3ScoreError: there is no such model, or it can't be loaded.
    """
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    describing = hub.locate(model) if model in hub.BUNDLED else _folder(model, "--model", revision)
    rating = _folder(llm, "--cat-llm")
    is_m3 = hub.read_json(describing / "config.json").get("model_type") in _M3_TYPES
    describer: Any = M3Describer if is_m3 else ChatDescriber
    with no_progress_bars():
        described = _made(describer, describing, "--model", place, kind)
        rater = _made(Rater, rating, "--cat-llm", place, kind)
    return Cat(described, rater, prompts, (describing, rating))


def _folder(name: str, option: str, revision: str | None = None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not Path(name).exists():
        return hub.fetch(name, _FILES, revision)
    raise M3ScoreError(f"{option} {name!r}: neither a folder nor a hub id such as owner/name.")


def _made(maker: Any, folder: Path, option: str, device: Any, dtype: Any) -> Any:
    try:
        return maker(folder, device, dtype)
    except (M3ScoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises a dozen kinds about what is in a folder
        reason = first_line(error)[:200]
        raise M3ScoreError(f"{option}: the model in {folder} can't be loaded: {reason}") from error


def _loaded(kind: Any, folder: Path, device: Any, dtype: Any) -> Any:
    options = {"dtype": dtype, "device_map": {"": device}, "use_safetensors": True}
    return kind.from_pretrained(folder, local_files_only=True, **options).eval()


def _ready(tokenizer: Any) -> Any:
    """For batches of prompts of different lengths: padded in front, so that answers follow prompts."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _generated(model: Any, tokenizer: Any, fed: Any, max_new_tokens: int) -> list[str]:
    made = model.generate(
        **fed, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    new = made[:, fed["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
