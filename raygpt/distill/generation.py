"""From prompts to answers, each asked for once: what is to be asked, of what is stored already, and the asking itself.

A generation is one way of asking: model, sampling and template. Its answers lie below `<output>/answers/<name>/`; other
settings make another one beside it. Every start reads all prompts, settles by their keys what is stored, and asks for
the rest, so that it does not matter how the one before ended or what was added to the files since.

Reading prompts and asking are plain loops. Ray Data is not used: its executor spins in the driver while a block waits
(see raygpt.data.pipeline), and it takes rows by the block, where one slow answer holds up all others of its block; here
each answer gives its place to the next question, and is kept, the moment it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from raygpt import storage
from raygpt.data.documents import Unit
from raygpt.distill import prompts as prompts_of
from raygpt.distill.answers import Answer, Parked, Question
from raygpt.distill.asking import Asker, AskingLoop, Tally
from raygpt.distill.ledger import ANSWERED, BLOCK, PARKED, REPEATED, TO_ASK, Ledger
from raygpt.distill.limits import Spend, TokenPrice
from raygpt.distill.parts import as_row
from raygpt.distill.prompts import Prompts, Scan
from raygpt.distill.store import AnswerStore
from raygpt.run.stop import StopToken
from raygpt.storage import Location

ANSWERS, PARKED_FILE = "answers", "parked.jsonl"
ROW_BITS = 40  # of a row's number beside its unit's

Kept = TypeVar("Kept", Answer, Parked)
ScanUnits = Callable[[Prompts], Iterator[tuple[Unit, Scan]]]


@dataclass
class Counts:
    """Questions of the prompts as they stand: `total` different ones, `repeated` more of the same; how many of them
    are stored as answered or parked; `rows` read, `bad_rows` left out."""

    rows: int = 0
    bad_rows: int = 0
    total: int = 0
    repeated: int = 0
    answered: int = 0
    parked: int = 0

    @property
    def to_ask(self) -> int:
        return self.total - self.answered - self.parked


@dataclass
class Usage:
    """What all calls for a generation took beside its answers: seconds of asking, requests, tokens of replies that
    were of no use; GPUs of the teacher, where it was started here."""

    seconds: float = 0.0
    requests: int = 0
    wasted_prompt_tokens: int = 0
    wasted_answer_tokens: int = 0
    gpus: float = 0.0


class Generation:
    """Answers of one name to `questions`, below `output`. `work` is a local folder for what is sorted on disk.

    `add` all keys and `settle`, then `ask` as long as `counts.to_ask`, then `finish`; `answers` and `parked` are of
    these questions alone, in the order of their keys. `questions()` gives the same in the same order every time.
    """

    def __init__(
        self,
        name: str,
        questions: Callable[[], Iterator[Question]],
        output: Location,
        about: Mapping[str, Any],
        work: Path,
        max_new_tokens: int,
    ) -> None:
        self.name, self.questions, self.about, self.max_new_tokens = name, questions, dict(about), max_new_tokens
        self.store = AnswerStore(output / ANSWERS / name)
        self.counts = Counts()
        self.usage = Usage()
        self._ledger = Ledger(work)
        self._states: np.ndarray = np.empty(0, np.uint8)

    def add(self, keys: Sequence[str]) -> None:
        """The next keys of `questions`."""
        self._ledger.add(keys)

    def add_all(self) -> None:
        """The keys of all questions."""
        keys = (question.key(self.name) for question in self.questions())
        while block := list(itertools.islice(keys, BLOCK)):
            self.add(block)

    def settle(self, write: bool = True) -> Counts:
        """Set what is stored against the prompts. Without `write` nothing is touched, and what a killed run left in
        its journal is not counted."""
        if write:
            self.store.recover(self.about)
        self.usage = Usage(**self.store.read_usage())
        for answered, parked in self.store.known():
            self._ledger.know(answered, ANSWERED)
            self._ledger.know(parked, PARKED)
        self._states = self._ledger.settle()
        by_state = np.bincount(self._states, minlength=4)
        self.counts.total = int(by_state.sum() - by_state[REPEATED])
        self.counts.repeated = int(by_state[REPEATED])
        self.counts.answered, self.counts.parked = int(by_state[ANSWERED]), int(by_state[PARKED])
        return self.counts

    def to_ask(self, retry_parked: bool) -> Iterator[tuple[str, Question]]:
        """(key, question) of what is not stored; with `retry_parked` of what was parked, and nothing else."""
        wanted = PARKED if retry_parked else TO_ASK
        for state, question in zip(self._states, self.questions()):
            if state == wanted:
                yield question.key(self.name), question

    def spent(self, price: TokenPrice) -> float:
        """USD for tokens up to now, all calls together."""
        read, written = self.store.stored_tokens()
        usage = self.usage
        return price.usd(read + usage.wasted_prompt_tokens, written + usage.wasted_answer_tokens)

    def ask(
        self,
        asker: Callable[[], contextlib.AbstractAsyncContextManager[Asker]],
        spend: Spend,
        *,
        concurrency: int,
        retry_parked: bool = False,
        stop: StopToken | None = None,
        show: Callable[[Tally], None] = lambda tally: None,
    ) -> tuple[Tally, bool]:
        """Ask for what is missing. Gives what came of it and whether the limit of `spend` ended it.

        Raises UserError where the teacher answers nothing any more; what was answered is kept.
        """
        tally = Tally(self.counts.parked if retry_parked else self.counts.to_ask)

        async def run() -> bool:
            async with asker() as asks:
                loop = AskingLoop(
                    asks,
                    self.store,
                    spend,
                    tally,
                    concurrency=max(1, min(concurrency, tally.to_ask)),
                    max_new_tokens=self.max_new_tokens,
                    stop=stop or StopToken(),
                    show=show,
                    save=self._save_usage,
                )
                await loop.run(self.to_ask(retry_parked))
                return loop.out_of_money

        try:
            return tally, asyncio.run(run())
        finally:
            self.store.close()
            self._save_usage(tally)

    def _save_usage(self, tally: Tally) -> None:
        now, before = time.monotonic() - tally.started, self.usage
        self.store.write_usage(
            {
                "seconds": round(before.seconds + now, 3),
                "requests": before.requests + tally.requests,
                "wasted_prompt_tokens": before.wasted_prompt_tokens + tally.wasted_prompt_tokens,
                "wasted_answer_tokens": before.wasted_answer_tokens + tally.wasted_answer_tokens,
                "gpus": before.gpus,
            }
        )

    def finish(self) -> dict[str, int]:
        """Bring the answers into their last files; answered, parked, prompt_tokens and answer_tokens of these
        questions, all calls together."""
        self.usage = Usage(**self.store.read_usage())
        self.store.finish()
        found = dict.fromkeys(("answered", "parked", "prompt_tokens", "answer_tokens"), 0)
        for answer in self.answers():
            found["answered"] += 1
            found["prompt_tokens"] += answer.prompt_tokens
            found["answer_tokens"] += answer.answer_tokens
        found["parked"] = sum(1 for _ in self.parked())
        return found

    def answers(self) -> Iterator[Answer]:
        return _common(self._ledger.keys(), self.store.answers())

    def parked(self) -> Iterator[Parked]:
        return _common(self._ledger.keys(), self.store.parked())


def write_parked(parked: Iterable[Parked], where: Location) -> None:
    """parked.jsonl: a line with the reason and what was asked; no file where nothing was parked."""
    lines = []
    for each in parked:
        row = {name: value for name, value in as_row(each).items() if value is not None}
        lines.append(json.dumps({"reason": row.pop("reason"), **row}, ensure_ascii=False) + "\n")
    if lines:
        storage.write_text(where, "".join(lines))
    else:
        storage.delete(where)


def scan_prompts(prompts: Prompts, generation: Generation, work: Path, scans: ScanUnits | None = None) -> None:
    """Read all prompts into the generation. Raises UserError with file and line for what cannot be asked."""
    ids, counts = Ledger(work), generation.counts
    bad: list[tuple[Unit, int, str]] = []
    number_of = {unit: number for number, unit in enumerate(prompts.units)}
    for unit, found in (scans or scan_here)(prompts):
        generation.add(found.keys)
        ids.add(found.ids, [number_of[unit] << ROW_BITS | row for row in found.id_rows])
        counts.rows += found.rows
        counts.bad_rows += len(found.bad)
        bad += [(unit, *each) for each in found.bad[: max(0, prompts_of.SHOWN_PROBLEMS - len(bad))]]
    if bad and not prompts.skip_bad_rows:
        raise prompts_of.bad_rows(bad, counts.bad_rows)
    repeats = ids.repeats()
    if (packed := next(repeats, None)) is not None:
        first, second = ((prompts.units[each >> ROW_BITS], each & (2**ROW_BITS - 1)) for each in packed)
        raise prompts_of.same_id(prompts, first, second, 1 + sum(1 for _ in repeats))


def scan_here(prompts: Prompts) -> Iterator[tuple[Unit, Scan]]:
    """Keys and problems of all units, in order, read by this process."""
    left = prompts.max_rows
    for unit in prompts.units:
        for found in prompts_of.scan(prompts, unit, left):
            left = None if left is None else left - found.rows
            yield unit, found


def _common(keys: Iterable[str], results: Iterator[Kept]) -> Iterator[Kept]:
    """Of `results`, those whose key is among `keys`; both by key."""
    wanted = iter(keys)
    key = next(wanted, None)
    for result in results:
        while key is not None and key < result.key:
            key = next(wanted, None)
        if key is None:
            return
        if key == result.key:
            yield result
