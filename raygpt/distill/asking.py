"""The loop that asks: so many questions under way at a time, each answer kept before its place is given away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from raygpt.distill.answers import Answer, Question
from raygpt.distill.client import Outcome, Stopped
from raygpt.distill.limits import Spend
from raygpt.distill.store import AnswerStore
from raygpt.errors import UserError
from raygpt.run.stop import DISPLACED, StopToken

GRACE_SECONDS = 30.0  # that a stop waits for answers under way, which are paid for
LOOK_SECONDS = 0.2
SAVE_SECONDS = 10.0  # between notes of what was used
WINDOW_SECONDS = 60.0  # over which the speed is taken
HOPELESS = 100  # questions refused before the first is answered


class Asker(Protocol):
    """Answers questions: a client of this process, or of all nodes of a cluster."""

    async def ask(self, question: Question, key: str) -> Outcome: ...

    def close_soon(self) -> None: ...


@dataclass
class Tally:
    """What has come of a call so far. Tokens are those of answers, wasted ones those of replies of no use; `usd` is for
    both."""

    to_ask: int = 0
    answered: int = 0
    parked: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    wasted_prompt_tokens: int = 0
    wasted_answer_tokens: int = 0
    requests: int = 0
    usd: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _recent: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=512))

    @property
    def done(self) -> int:
        return self.answered + self.parked

    def look(self) -> None:
        """Take the speed at this moment."""
        now = time.monotonic()
        self._recent.append((now, self.done, self.answer_tokens))
        while now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()

    @property
    def speed(self) -> tuple[float, float]:
        """(questions, answer tokens) per second of the last minute."""
        if len(self._recent) < 2:
            return 0.0, 0.0
        (begin, done, tokens), (end, done_now, tokens_now) = self._recent[0], self._recent[-1]
        seconds = max(end - begin, 1e-9)
        return (done_now - done) / seconds, (tokens_now - tokens) / seconds

    @property
    def seconds_left(self) -> float | None:
        per_second, _ = self.speed
        return (self.to_ask - self.done) / per_second if per_second > 0 else None


class Ahead:
    """Items of an iterator that is slow now and then (files, S3), read by a thread while the loop goes on."""

    SIZE = 512

    def __init__(self, items: Iterator[tuple[str, Question]]) -> None:
        self._items = items
        self._ready: deque[tuple[str, Question]] = deque()
        self._fetching: asyncio.Task[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    async def take(self) -> tuple[str, Question] | None:
        """The next one, None at the end. Raises what reading raised."""
        if len(self._ready) < self.SIZE // 2 and not self._ended and self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
        while not self._ready:
            if self._fetching is None:
                if self._ended:
                    break
                # others took all that came while this one waited
                self._fetching = asyncio.create_task(self._fetch())
            await asyncio.shield(self._fetching)
        if self._ready:
            return self._ready.popleft()
        if self._error is not None:
            raise self._error
        return None

    async def _fetch(self) -> None:
        try:
            batch = await asyncio.to_thread(lambda: list(itertools.islice(self._items, self.SIZE)))
            self._ready.extend(batch)
            self._ended = len(batch) < self.SIZE
        except Exception as error:
            self._error, self._ended = error, True
        finally:
            self._fetching = None


class AskingLoop:
    """`run` asks everything. Afterwards `out_of_money` says whether the limit ended it."""

    def __init__(
        self,
        asker: Asker,
        store: AnswerStore,
        spend: Spend,
        tally: Tally,
        *,
        concurrency: int,
        max_new_tokens: int,
        stop: StopToken,
        show: Callable[[Tally], None],
        save: Callable[[Tally], None],
    ) -> None:
        self.asker, self.store, self.spend, self.tally = asker, store, spend, tally
        self.concurrency, self.max_new_tokens = concurrency, max_new_tokens
        self.stop, self.show, self.save = stop, show, save
        self.out_of_money = False
        self._stopping = self._writing = False

    async def run(self, items: Iterator[tuple[str, Question]]) -> None:
        """Raises UserError where the teacher answers nothing any more; what was answered is in the store."""
        ahead, loop = Ahead(items), asyncio.get_running_loop()

        def told() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is over, and nothing left to end
                loop.call_soon_threadsafe(self._close_soon)

        self.stop.listen(told)
        tasks = [asyncio.create_task(self._work(ahead)) for _ in range(self.concurrency)]
        keeper = asyncio.create_task(self._keep())
        try:
            waiting: set[asyncio.Task[None]] = {*tasks, keeper}
            deadline: float | None = None
            while len(waiting) > 1:
                done, waiting = await asyncio.wait(waiting, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if self._stopping:
                    displaced = self.stop.reason == DISPLACED
                    deadline = deadline or time.monotonic() + (0 if displaced else GRACE_SECONDS)
                    if time.monotonic() > deadline:
                        break
        finally:
            for task in (*tasks, keeper):
                task.cancel()
            await asyncio.gather(*tasks, keeper, return_exceptions=True)
            self.tally.look()

    def _close_soon(self) -> None:
        self._stopping = True
        self.asker.close_soon()
        self.spend.wake()

    async def _work(self, ahead: Ahead) -> None:
        while not self._stopping and not self.out_of_money and (item := await ahead.take()) is not None:
            key, question = item
            reserved = self.spend.most(question, self.max_new_tokens)
            if not await self.spend.reserve(reserved, lambda: self._stopping):
                self.out_of_money = not self._stopping
                return
            cost = 0.0
            try:
                outcome = await self.asker.ask(question, key)
                cost = self._count(outcome)
                # what was lost may have been answered, and billed: it counts for the limit, not as spent
                self.spend.lost += outcome.lost * reserved
            except Stopped:
                return
            finally:
                self.spend.settle(reserved, cost)
            self.store.add(outcome.result, through=False)
            if not self._writing:
                self._writing = True
                asyncio.get_running_loop().call_soon(self._write)
            if not self.tally.answered and self.tally.parked >= HOPELESS:
                reason = getattr(outcome.result, "reason", "")
                raise UserError(
                    f"the teacher refused the first {HOPELESS} prompts ({reason}): mend what it says, then ask them "
                    "again with --generate.retry_parked=true."
                )

    def _write(self) -> None:
        """The answers of this turn of the loop to the journal, all at once."""
        self._writing = False
        self.store.write_through()

    def _count(self, outcome: Outcome) -> float:
        """Put an outcome into the tally; its cost in USD."""
        tally, result = self.tally, outcome.result
        read = written = 0
        if isinstance(result, Answer):
            tally.answered += 1
            read, written = result.prompt_tokens, result.answer_tokens
        else:
            tally.parked += 1
        tally.requests += outcome.attempts
        tally.prompt_tokens += read
        tally.answer_tokens += written
        tally.wasted_prompt_tokens += outcome.wasted_prompt_tokens
        tally.wasted_answer_tokens += outcome.wasted_answer_tokens
        usd = self.spend.price.usd(read + outcome.wasted_prompt_tokens, written + outcome.wasted_answer_tokens)
        tally.usd += usd
        return usd

    async def _keep(self) -> None:
        """Bring answers to storage and show how far it has come, for as long as it is asked."""
        saved = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.store.is_due:
                await asyncio.to_thread(self.store.flush)
            if time.monotonic() - saved > SAVE_SECONDS:
                await asyncio.to_thread(self.save, self.tally)
                saved = time.monotonic()
            self.tally.look()
            self.show(self.tally)
