"""Where a teacher answers: endpoints of the OpenAI protocol, what is known of their health, and their models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from raygpt.errors import UserError, one_line
from raygpt.http import LONGEST_RETRY_AFTER, listed_models, proxy_for

REST_SECONDS = 0.5  # after a first failure; twice as long after each further one
STUMBLES = 5
TRIAL_SECONDS = 0.25
LONGEST_REST = 30.0
LOOK_SECONDS = 20.0


class Endpoint:
    """One base URL ending in /v1, and what is known of it.

    Told to wait (429), it rests. Not to be reached, or with STUMBLES faults in a row, it rests longer each time, and
    then gets one request at a time until one is answered.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url.rstrip("/")
        self._clock = clock
        self.proxy = proxy_for(self.url)
        self.under_way = 0
        self.failures = 0
        self._stumbles = self._throttles = 0
        self._rests_until = self._told_until = 0.0

    @property
    def wait(self) -> float:
        """Seconds until it may be asked; while it is being tried out, until one looks again."""
        rest = self._rests_until - self._clock()
        if rest <= 0 and self.failures and self.under_way:
            return TRIAL_SECONDS
        return max(0.0, rest)

    def answered(self) -> None:
        self.failures = self._stumbles = 0
        if self._clock() >= self._told_until:
            self._throttles = 0
        self._rests_until = self._told_until  # requests that were under way do not end the rest that it asked for

    def throttled(self, retry_after: float | None) -> None:
        """It is asked too much: to be left alone for as long as it says, else longer each time."""
        if retry_after is None:
            self._throttles += self._clock() >= self._rests_until
            retry_after = min(LONGEST_REST, REST_SECONDS * 2 ** max(0, self._throttles - 1))
        self._rest(retry_after)
        self._told_until = self._rests_until

    def failed(self, retry_after: float | None = None) -> None:
        """It is not there."""
        if self._clock() >= self._rests_until:  # those under way when it failed first tell nothing new
            self.failures += 1
        longer = min(LONGEST_REST, REST_SECONDS * 2 ** min(10, max(0, self.failures - 1)))
        self._rest(longer if retry_after is None else retry_after)

    def stumbled(self) -> None:
        """A request ended in a fault that may be the prompt's or the endpoint's."""
        self._stumbles += 1
        if self._stumbles >= STUMBLES:
            self.failed()

    def _rest(self, seconds: float) -> None:
        self._rests_until = max(self._rests_until, self._clock() + min(seconds, LONGEST_RETRY_AFTER))


class Endpoints:
    """Several of them: the least busy one that does not rest is next, in the order given among equals."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.all = [Endpoint(url, clock) for url in urls]

    def choose(self, but: Endpoint | None = None) -> tuple[Endpoint, float]:
        """(endpoint, seconds to wait for it); another than `but`, which has just failed, where there is one."""
        awake = [each for each in self.all if each.wait == 0]
        other = [each for each in awake if each is not but] or awake
        if other:
            return min(other, key=lambda each: each.under_way), 0.0
        soonest = min(self.all, key=lambda each: each.wait)
        return soonest, soonest.wait


@dataclass(frozen=True)
class Served:
    """What an endpoint says it has: its models with their contexts in tokens, None where it does not say."""

    url: str
    models: dict[str, int | None]


async def look(urls: Sequence[str], api_key: str | None) -> tuple[list[Served], list[str]]:
    """(what the endpoints have, one sentence for each that does not answer).

    Raises UserError for a refused key, and where none answers.
    """
    served, silent = [], []
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        for url in urls:
            try:
                async with session.get(f"{url.rstrip('/')}/models", proxy=proxy_for(url)) as reply:
                    if reply.status in (401, 403):
                        raise refused(url, reply.status, api_key is not None)
                    if reply.status != 200:
                        silent.append(f"{url} answers {reply.status} to /models")
                        continue
                    served.append(Served(url, listed_models(await reply.json(content_type=None))))
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                silent.append(f"{url} does not answer ({one_line(error, 120)})")
    if not served:
        raise UserError(f"teacher.endpoints: {'; '.join(silent)}: start the teacher, or mend the URL (it ends in /v1).")
    return served, silent


def choose_model(wanted: str | None, served: Sequence[Served]) -> tuple[str, int | None]:
    """(model, shortest context known among the endpoints). UserError where one endpoint does not have it, or where
    there are several and none is wanted."""
    if wanted is None:
        names = sorted({name for each in served for name in each.models})
        if len(names) != 1:
            raise UserError(
                f"teacher.model is not set and {served[0].url} has {', '.join(names) or 'no model'}: name one of them."
            )
        wanted = names[0]
    for each in served:
        if wanted not in each.models:
            raise UserError(
                f"teacher.model={wanted}: {each.url} does not have it (it has "
                f"{', '.join(sorted(each.models)[:10]) or 'none'}): name one that it has, or another endpoint."
            )
    contexts = [context for each in served if (context := each.models[wanted]) is not None]
    return wanted, min(contexts, default=None)


def refused(url: str, status: int, with_key: bool) -> UserError:
    """The sentence for a 401 or 403."""
    if with_key:
        return UserError(f"{url} refuses the key (HTTP {status}): check the variable that teacher.api_key_env names.")
    return UserError(f"{url} wants a key (HTTP {status}): set teacher.api_key_env to the name of the variable with it.")
