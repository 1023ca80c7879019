"""The models of a comparison side by side: what each one is, what it was trained on, and what that cost.

An arm is opened when its turn comes and let go before the next: two large models are never in memory together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from raygpt import storage
from raygpt.data.shards import MANIFEST
from raygpt.errors import UserError
from raygpt.evaluate.compare_subjects import check_run, model_uri
from raygpt.evaluate.foreign import is_foreign
from raygpt.evaluate.subject import Subject, background
from raygpt.parallel import checkpoint
from raygpt.parallel.weights import open_weights
from raygpt.storage import Location

QUALITY = "quality.json"  # what `raygpt generate` says about the documents that it made
MOST_BASES = 16  # runs that were trained on from one another
EQUAL = 0.005  # figures that differ by less count as the same


@dataclass(frozen=True)
class Generation:
    """Text that a teacher wrote: its tokens, as the teacher counts them, and what it cost (None without a price)."""

    uri: str
    teacher: str
    answer_tokens: int | None
    usd: float | None


@dataclass(frozen=True)
class Spent:
    """What an arm took, as far as its runs say. `tokens` and `usd` are of all runs it comes from, `own_tokens` of the
    last one; `flops` are those of training on `tokens`, with the passes of a teacher beside the student.
    `generation` is the text it was distilled on, where it was.
    """

    tokens: int | None = None
    own_tokens: int | None = None
    flops: float | None = None
    usd: float | None = None
    generation: Generation | None = None

    @property
    def whole_usd(self) -> float | None:
        """Training and generation; None where a part of it is not known."""
        parts = [self.usd] if self.generation is None else [self.usd, self.generation.usd]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)


@dataclass(frozen=True)
class Arm:
    """One model: its short name, where it lies, and the config it was trained with (None where that is not known).

    `context` is None for a model of another family: it is known when the model is open.
    """

    name: str
    uri: str
    run: Location | None
    saved: dict[str, Any] | None
    context: int | None

    @property
    def train(self) -> str | None:
        """data.train of its training."""
        return ((self.saved or {}).get("data") or {}).get("train")

    @property
    def trained_seq_len(self) -> int | None:
        return ((self.saved or {}).get("data") or {}).get("seq_len")


def find_arms(names: list[str], runs: str) -> list[Arm]:
    """Arms of compare.models, without their weights: paths, URIs, Hugging Face ids, GGUF files, names of runs in
    `runs`. Raises UserError for one that is not there."""
    found: list[Arm] = []
    for name in names:
        uri = model_uri("base", name, runs)
        check_run(uri, "models")
        try:
            found.append(_arm(uri))
        except UserError as error:
            raise UserError(f"compare.models: {error}") from error
    return _told_apart(found)


def _arm(uri: str) -> Arm:
    short = uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    if is_foreign(uri):
        return Arm(short, uri, None, None, None)
    source = open_weights(uri)
    run, saved = background(source.origin) if source.state is not None else (None, None)
    return Arm(run.name if run is not None else short, uri, run, saved, source.config.seq_len)


def _told_apart(arms: list[Arm]) -> list[Arm]:
    """With names that differ: of two alike the whole URI."""
    names = [arm.name for arm in arms]
    if len({arm.uri for arm in arms}) < len(arms):
        raise UserError("compare.models names one model twice: name each once.")
    return [arm if names.count(arm.name) == 1 else replace(arm, name=arm.uri) for arm in arms]


def spent(arm: Arm, subject: Subject) -> Spent:
    """What the arm took; `subject` is the arm, open."""
    if subject.state is None:
        return Spent()
    own, tokens, usd = subject.state.tokens, subject.state.tokens, _usd(arm.run)
    saved, run, seen = arm.saved or {}, arm.run, 1
    generation = None if arm.train is None else generation_of(arm.train)
    try:
        while (base := _base(saved)) is not None and seen < MOST_BASES:
            state, run, saved = base
            seen += 1
            tokens += state.tokens
            before = _usd(run)
            usd = None if usd is None or before is None else usd + before
    except FileNotFoundError:  # what it was trained on from took something as well
        return Spent(own_tokens=own, generation=generation)
    trained = float(tokens * subject.model.config.flops_per_token(arm.trained_seq_len))
    passes: float | None = 0.0
    if ((arm.saved or {}).get("distill") or {}).get("mode") == "logits":
        passes = _teacher_flops(subject.state.teacher, arm.trained_seq_len)
    return Spent(tokens, own, None if passes is None else trained + own * passes, usd, generation)


def _teacher_flops(teacher: str, seq_len: int | None) -> float | None:
    """FLOPs per token of a teacher's forward pass, a third of what training it takes. None for one that is not known:
    its states were stored, it is of another family, or it is gone."""
    if not teacher:
        return None
    try:
        return open_weights(teacher).config.flops_per_token(seq_len) / 3
    except (UserError, FileNotFoundError, AttributeError):
        return None


def generation_of(train: str) -> Generation | None:
    """The generation whose documents lie at `train` (its output, or train/ in it); None for other text."""
    for folder in (storage.locate(train), storage.locate(train).parent):
        try:
            facts = json.loads(storage.read_text(folder / QUALITY)).get("generation") or {}
        except (FileNotFoundError, ValueError, UserError):
            continue
        return Generation(folder.uri, facts.get("teacher", ""), facts.get("answer_tokens"), facts.get("cost_usd"))
    return None


def held_out(arms: list[Arm]) -> tuple[str | None, str | None]:
    """(real, synthetic): text that the arms' own runs held out, as far as it is there.

    Synthetic is val/ of a generation that an arm was trained on. Real is val/ beside distill.real, else what an arm
    that was trained on no generation was validated on; none where an arm was trained on all of a raw text, which
    others may have held a part of out of.
    """
    real = synthetic = None
    whole = False
    for arm in arms:
        data = (arm.saved or {}).get("data") or {}
        mixed = ((arm.saved or {}).get("distill") or {}).get("real")
        generation = None if arm.train is None else generation_of(arm.train)
        if generation is not None:
            synthetic = synthetic or _val(generation.uri)
            beside = None if mixed is None else _val(mixed)
            whole = whole or (mixed is not None and beside is None)
            real = real or beside
        elif arm.train is not None:
            real = real or data.get("val") or _val(arm.train)
    return None if whole else real, synthetic


def _val(train: str) -> str | None:
    """The val/ in a folder or beside it."""
    try:
        where = storage.locate(train)
        for folder in (where / "val", where.parent / "val"):
            if storage.exists(folder / MANIFEST):
                return folder.uri
    except UserError:
        pass
    return None


def _usd(run: Location | None) -> float | None:
    """What a run cost, by its summary."""
    if run is None:
        return None
    try:
        return json.loads(storage.read_text(run / "summary.json")).get("cost_usd")
    except (FileNotFoundError, ValueError):
        return None


def _base(saved: dict[str, Any]) -> tuple[Any, Location | None, dict[str, Any]] | None:
    """(state, run, config) of the checkpoint a run was trained on from; None where that was none. Raises
    FileNotFoundError where it is gone."""
    init_from = (saved.get("model") or {}).get("init_from", "random")
    if init_from == "random":
        return None
    try:
        where = checkpoint.locate_checkpoint(init_from)
    except UserError as error:
        raise FileNotFoundError(str(error)) from error
    if where is None:
        if init_from.startswith(("/", "s3://")) and not storage.exists(storage.locate(init_from)):
            raise FileNotFoundError(init_from)
        return None
    run, before = background(where.uri)
    return checkpoint.read_state(where), run, before or {}


def as_much_as(arms: dict[str, Spent]) -> dict[str, dict[str, list[str]]]:
    """{arm: {"tokens": [others], "compute": [others]}}: which arms were trained on as many tokens, or with as much
    compute, within `EQUAL`."""

    def alike(one: float | None, other: float | None) -> bool:
        return bool(one and other) and abs(one - other) <= EQUAL * max(one, other)  # type: ignore[operator,type-var]

    return {
        name: {
            "tokens": [other for other, its in arms.items() if other != name and alike(mine.tokens, its.tokens)],
            "compute": [other for other, its in arms.items() if other != name and alike(mine.flops, its.flops)],
        }
        for name, mine in arms.items()
    }
