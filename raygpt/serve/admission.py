"""Who is let in: the key, the host that was meant, how much at once, how large, and how slowly it may come."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from raygpt.serve.protocol import ProtocolError

BODY_SECONDS = 60.0  # in which the whole of a request has to come
BODIES_AT_ONCE = 32  # times the largest body: memory that requests still coming in may take together
LONGEST_RETRY = 30  # seconds


def fingerprint(key: str) -> str:
    """What a replica knows of the key: enough to recognise it, not to tell it."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_key(request: Request, expected: str | None) -> None:
    """Raises ProtocolError (401) unless the request bears the key whose fingerprint is `expected`; None asks for none.

    The comparison takes the same time whatever was sent.
    """
    if expected is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(fingerprint(given.strip()), expected):
        what = "a wrong key" if given else "no key"
        raise ProtocolError(
            f"{what} was sent: this server wants the header 'Authorization: Bearer KEY'",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
        )


def check_host(request: Request) -> None:
    """Raises ProtocolError (403) where a server of this machine alone was addressed by another name: a page of the
    web whose name was made to point here (DNS rebinding)."""
    host = request.headers.get("host", "localhost")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    try:
        local = ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        local = name.lower() == "localhost"
    if not local:
        raise ProtocolError(
            f"this server listens for its own machine only, and was asked for as {host[:100]!r}: use 127.0.0.1, or set "
            "serve.host",
            status=403,
            kind="permission_error",
        )


class Gate:
    """At most `limit` answers that are written or wait; more are told when to come again."""

    def __init__(self, limit: int, slots: int) -> None:
        self.limit, self.active, self.refused = limit, 0, 0
        self._slots = max(slots, 1)
        self._seconds = 1.0  # a moving mean of what an answer took from being let in

    def enter(self, answers: int) -> None:
        """Let `answers` in, each to be taken out with `leave`. Raises ProtocolError (429)."""
        if self.active + answers > self.limit:
            self.refused += 1
            raise ProtocolError(
                f"{self.active} answers are being written or wait, and {self.limit} may (serve.max_concurrent): "
                "come again later",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after=self.retry_after(),
            )
        self.active += answers

    def leave(self, seconds: float) -> None:
        self.active -= 1
        self._seconds += 0.1 * (seconds - self._seconds)

    def retry_after(self) -> int:
        """Seconds in which a slot's worth of answers has gone: 1 to LONGEST_RETRY."""
        return min(max(math.ceil(self._seconds), 1), LONGEST_RETRY)


class BodyReader:
    """Reads bodies of at most `limit` bytes, and a bounded number of bytes of all that are still coming."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    async def read(self, request: Request) -> bytes:
        """The body. Raises ProtocolError: too large (413), too slow (408), not JSON by its header (415), too much of
        others' at the moment (429)."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # a foreign page may send forms, or bytes of no type, without the browser asking first; JSON it may not
            raise ProtocolError(f"the body must be application/json, not {kind[:80] or 'of no type'}", status=415)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limit:
            raise self._too_large()
        parts: list[bytes] = []
        with self._held() as hold:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for part in request.stream():
                        hold(len(part))
                        parts.append(part)
            except TimeoutError:
                raise ProtocolError(f"the request did not come in {BODY_SECONDS:g} s", status=408) from None
            except ClientDisconnect:
                raise ProtocolError("the client went away", status=499) from None
        return b"".join(parts)

    @contextmanager
    def _held(self) -> Iterator[_Hold]:
        hold = _Hold(self)
        try:
            yield hold
        finally:
            self.held -= hold.bytes

    def _too_large(self) -> ProtocolError:
        return ProtocolError(
            f"the request is larger than {self.limit / 1e6:g} MB (serve.max_body_mb)",
            status=413,
            code="request_too_large",
        )


class _Hold:
    """Bytes that one request holds of what a BodyReader allows to all."""

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self.bytes = 0

    def __call__(self, count: int) -> None:
        self.bytes += count
        self._reader.held += count
        if self.bytes > self._reader.limit:
            raise self._reader._too_large()
        if self._reader.held > BODIES_AT_ONCE * self._reader.limit:
            raise ProtocolError(
                "too many large requests are coming in at once: come again later",
                status=429,
                kind="rate_limit_error",
                retry_after=5,
            )
