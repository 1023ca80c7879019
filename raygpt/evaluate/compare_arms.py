"""Several models on the same held-out texts: losses with intervals, differences to the first, samples.

Bits per byte compare whatever the tokenizers are. Intervals are of the paired bootstrap over documents, every figure
from the same draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from raygpt.errors import UserError
from raygpt.evaluate.arms import Arm, Spent, spent
from raygpt.evaluate.bootstrap import Interval, ratio_intervals
from raygpt.evaluate.document_losses import DocumentLosses, OnProgress, document_losses
from raygpt.evaluate.documents import Documents
from raygpt.evaluate.held_out import BATCH_TOKENS
from raygpt.evaluate.pairs import Prompt, choose_prompts, write_samples
from raygpt.evaluate.subject import Subject
from raygpt.track.meter import Meter

WITHOUT = 1024  # tokens of context where no arm says what it was trained on


@dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """Sizes and chances of a comparison. `seq_len` None: the longest context that all arms of this package have."""

    samples: int
    sample_tokens: int
    resamples: int
    seq_len: int | None
    seed: int
    temperature: float
    top_k: int | None
    top_p: float | None


@dataclass(frozen=True)
class Score:
    """An arm on a text. `loss` in nats per token of its own tokenizer, `bits` per byte; `change` is its bits less those
    of the first arm, None for that one; `easier` the share of documents that it finds easier than the first."""

    tokens: int
    loss: Interval
    bits: Interval
    change: Interval | None
    easier: float | None


@dataclass
class Measured:
    """What is known of an arm when its model is gone."""

    arm: Arm
    parameters: int
    context: int
    tokenizer: str
    vocab_size: int
    tokenizer_sha256: str
    precision: str
    device: str
    step: int | None
    spent: Spent
    losses: dict[str, DocumentLosses] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


@dataclass
class ArmsCompared:
    """Everything the page shows; `texts` are by name, in their order."""

    settings: ArmSettings
    seq_len: int
    texts: Mapping[str, Documents]
    arms: list[Measured]
    prompts: list[Prompt]
    prompts_from: str

    @property
    def same_tokenizer(self) -> bool:
        return len({arm.tokenizer_sha256 for arm in self.arms}) == 1


def compare_arms(
    settings: ArmSettings,
    arms: Sequence[Arm],
    texts: Mapping[str, Documents],
    open_arm: Callable[[str], Subject],
    say: Callable[[str], None] = print,
) -> ArmsCompared:
    """Measure the arms one after another on `texts`; samples are prompted with beginnings of the last one's documents.

    Raises UserError for a context that an arm does not have.
    """
    seq_len = common_context(settings.seq_len, arms)
    *_, prompts_from = texts
    measured: list[Measured] = []
    prompts: list[Prompt] = []
    for number, arm in enumerate(arms):
        subject = open_arm(arm.uri)
        say(f"{arm.name}: {subject.describe()}")
        if subject.model.config.seq_len < seq_len:
            raise UserError(
                f"{arm.name} has a context of {subject.model.config.seq_len} tokens and the others are read with "
                f"{seq_len}: set data.seq_len to at most {subject.model.config.seq_len}."
            )
        if number == 0:
            prompts = choose_prompts(
                texts[prompts_from].texts, subject.tokenizer, settings.samples, settings.sample_tokens
            )
        measured.append(_measure(settings, arm, subject, texts, seq_len, prompts))
        del subject
    for name, documents in texts.items():
        losses = [each.losses[name] for each in measured]
        for each, score in zip(measured, scores(documents, losses, settings.resamples, settings.seed)):
            each.scores[name] = score
    return ArmsCompared(settings, seq_len, texts, measured, prompts, prompts_from)


def common_context(wanted: int | None, arms: Sequence[Arm]) -> int:
    """Tokens of a row: `wanted`, what the arms were trained on, or the shortest context that is known."""
    contexts = [arm.context for arm in arms if arm.context is not None]
    if wanted is not None:
        for arm in arms:
            if arm.context is not None and arm.context < wanted:
                raise UserError(
                    f"data.seq_len={wanted} exceeds the context of {arm.name}, {arm.context}: lower it or leave it out."
                )
        return wanted
    trained = [arm.trained_seq_len for arm in arms if arm.trained_seq_len is not None]
    return min([*contexts, *trained], default=WITHOUT)


def scores(documents: Documents, losses: Sequence[DocumentLosses], resamples: int, seed: int) -> list[Score]:
    """One score per arm, all from the same draws of documents (or of parts, where documents are few)."""
    _, unit = np.unique(documents.units, return_inverse=True)

    def by_unit(values: np.ndarray) -> np.ndarray:
        return np.bincount(unit, weights=values)

    bits = by_unit(documents.bytes) * math.log(2)
    nats = [by_unit(each.nats) for each in losses]
    tokens = [by_unit(each.tokens) for each in losses]
    others = range(1, len(losses))
    tops = [*nats, *nats, *(nats[k] - nats[0] for k in others)]
    bottoms = [*tokens, *[bits] * len(losses), *[bits] * len(others)]
    found = ratio_intervals(tops, bottoms, resamples=resamples, seed=seed)
    count = len(losses)
    return [
        Score(
            int(losses[k].tokens.sum()),
            found[k],
            found[count + k],
            found[2 * count + k - 1] if k else None,
            float(np.mean(nats[k] < nats[0])) if k else None,
        )
        for k in range(count)
    ]


def _measure(
    settings: ArmSettings,
    arm: Arm,
    subject: Subject,
    texts: Mapping[str, Documents],
    seq_len: int,
    prompts: Sequence[Prompt],
) -> Measured:
    tokenizer, kind = subject.tokenizer, subject.device.type
    found = Measured(
        arm=arm,
        parameters=subject.model.config.num_parameters(),
        context=subject.model.config.seq_len,
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        precision=subject.precision.name,
        device=kind,
        step=subject.state.step if subject.state is not None else None,
        spent=spent(arm, subject),
    )
    for name, documents in texts.items():
        with _meter(f"{arm.name}: {name} text") as show:
            found.losses[name] = document_losses(
                subject.model,
                tokenizer.encode_batch(documents.texts),
                tokenizer.eot_id,
                seq_len,
                batch_tokens=BATCH_TOKENS[kind],
                device=subject.device,
                autocast=subject.precision.autocast,
                on_progress=show,
            )
    with _meter(f"{arm.name}: samples") as show:
        found.samples = write_samples(
            subject,
            prompts,
            settings.sample_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            on_progress=show,
        )
    return found


@contextmanager
def _meter(label: str) -> Iterator[OnProgress]:
    meter = Meter(label, sys.stdout)
    try:
        yield meter.show
    finally:
        meter.close()
