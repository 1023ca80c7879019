"""PURE. How fast a teacher may be asked, and how much may be spent on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from raygpt.distill.answers import Question

MESSAGE_TOKENS = 32  # what a chat template puts around a message, at most


class Pace:
    """Lets `rate` units a second through, in the order of the calls; None lets everything through.

    Each call has its moment on a schedule, so that a late one is made up for within `burst` seconds and the mean is the
    rate whatever a timer's grain is.
    """

    def __init__(self, rate: float | None, burst: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._burst, self._clock = rate, burst, clock
        self._next = 0.0

    def take(self, units: float = 1.0) -> float:
        """Seconds to wait before `units` may go."""
        if self.rate is None:
            return 0.0
        now = self._clock()
        begin = max(self._next, now - self._burst)
        self._next = begin + units / self.rate
        return max(0.0, begin - now)

    def give_back(self, units: float) -> None:
        """Units that were taken and not used; negative ones were used beyond what was taken."""
        if self.rate is not None:
            self._next -= units / self.rate


@dataclass(frozen=True)
class TokenPrice:
    """USD for a million tokens read and written."""

    input: float = 0.0
    output: float = 0.0

    def usd(self, prompt_tokens: float, answer_tokens: float) -> float:
        return (self.input * prompt_tokens + self.output * answer_tokens) / 1e6


def most_prompt_tokens(question: Question) -> int:
    """No tokenizer makes more of a text than it has bytes."""
    texts = [question.prompt] if question.prompt is not None else [content for _, content in question.messages]
    return sum(len(text.encode()) for text in texts) + MESSAGE_TOKENS * len(question.messages)


class Spend:
    """US dollars for tokens: `spent`, what requests under way may come to, and a limit for both together.

    `reserve` before each request, `settle` after it: the limit is kept to the cent as long as the teacher's counts and
    prices are those given here.
    """

    def __init__(self, price: TokenPrice, limit: float | None = None, spent: float = 0.0) -> None:
        self.price, self.limit = price, limit
        self.spent = spent
        self.under_way = 0.0
        self.lost = 0.0  # what requests without a reply may have cost
        self._reserved = 0
        self._waiting: asyncio.Event | None = None

    def most(self, question: Question, max_new_tokens: int) -> float:
        """What a question can cost at most."""
        return self.price.usd(most_prompt_tokens(question), max_new_tokens)

    async def reserve(self, usd: float, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait until `usd` more fit under the limit; False where they never will, or when `stopped`."""
        while self.limit is not None and self.spent + self.lost + self.under_way + usd > self.limit:
            if not self._reserved or stopped():
                return False
            self._waiting = self._waiting or asyncio.Event()
            await self._waiting.wait()
        self.under_way += usd
        self._reserved += 1
        return True

    def settle(self, reserved: float, cost: float) -> None:
        """A request that `reserved` is over and cost `cost`."""
        self._reserved -= 1
        self.under_way = self.under_way - reserved if self._reserved else 0.0  # without rounding's leftovers
        self.spent += cost
        self.wake()

    def wake(self) -> None:
        """Have those that wait look again."""
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None
