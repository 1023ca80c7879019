"""The OpenAI protocol as an ASGI app over one engine. It knows nothing of Ray: any ASGI server runs it.

Every answer is pumped out of the engine by a task of its own, so that a client who reads slowly holds no slot. A client
who goes away, before the first piece or between two, ends its answers in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from raygpt.errors import UserError
from raygpt.serve.admission import BodyReader, Gate, check_host, check_key
from raygpt.serve.page import page
from raygpt.serve.protocol import Ask, Limits, ProtocolError, Reader, parse_json, read_chat, read_completion
from raygpt.serve.replies import Answer, Reply
from raygpt.serve.requests import Delta, Engine, EngineDied
from raygpt.serve.requests import Request as EngineRequest

SEND_SECONDS = 60.0  # a reader who takes nothing for so long is cut off
LARGE_BODY = 16_384  # bytes: from here on reading and tokenizing get a thread, so that others' tokens go on

log = logging.getLogger("raygpt.serve")


@dataclass(frozen=True)
class AppSettings:
    """`key` is the fingerprint of the key that clients send, None for none; `local` says that only this machine is
    served; `slots` how many sequences the engine decodes together."""

    max_concurrent: int = 256
    max_tokens: int = 4096
    max_body_bytes: int = 4_000_000
    key: str | None = None
    page: bool = True
    local: bool = True
    slots: int = 8


class Service:
    """One engine with its gate."""

    def __init__(self, engine: Engine, settings: AppSettings, on_death: Callable[[], None] | None = None) -> None:
        self.engine, self.settings = engine, settings
        self.gate = Gate(settings.max_concurrent, settings.slots)
        self.bodies = BodyReader(settings.max_body_bytes)
        self.limits = Limits(settings.max_tokens, settings.max_concurrent)
        self.started = int(time.time())
        self.on_death = on_death or (lambda: None)

    def check_client(self, request: Request) -> None:
        if self.settings.local:
            check_host(request)
        check_key(request, self.settings.key)

    async def read(self, request: Request, reader: Reader) -> Ask:
        """The request made plain. Raises ProtocolError."""
        body = await self.bodies.read(request)
        if len(body) < LARGE_BODY:
            return reader(parse_json(body), self.engine, self.limits)
        return await asyncio.to_thread(lambda: reader(parse_json(body), self.engine, self.limits))

    def as_protocol(self, error: BaseException) -> ProtocolError:
        if isinstance(error, ProtocolError):
            return error
        if isinstance(error, UserError):
            return ProtocolError(str(error))
        if isinstance(error, UnicodeEncodeError):
            return ProtocolError("a text holds half of a character (a lone surrogate): mend it")
        if isinstance(error, EngineDied):
            self.on_death()
            return engine_died()
        # where it happened, without the message: that may hold what somebody has written
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("an answer failed with %s at\n%s", type(error).__name__, where)
        return ProtocolError("the server failed at this request", status=500, kind="server_error")


class Answers:
    """The pieces of all answers of one Ask, (index, piece), as they come.

    `close` ends in the engine what is still being written. It waits for nothing: a handler that is itself being ended,
    perhaps twice, gets through it.
    """

    def __init__(self, service: Service, ask: Ask) -> None:
        service.gate.enter(len(ask.requests))
        self._service = service
        # at most max_tokens pieces an answer
        self._pieces: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()
        self._open = len(ask.requests)
        began = time.monotonic()
        self._pumps = [asyncio.create_task(self._pump(*numbered)) for numbered in enumerate(ask.requests)]
        for pump in self._pumps:  # a task that is ended before its first step runs no `finally` of its own
            pump.add_done_callback(lambda _: service.gate.leave(time.monotonic() - began))

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        if not self._open:
            raise StopAsyncIteration
        index, piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise self._service.as_protocol(piece)
        self._open -= piece.finish is not None
        return index, piece

    def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, index: int, request: EngineRequest) -> None:
        """Every piece of one answer, or what went wrong with it."""
        try:
            async with contextlib.aclosing(self._service.engine.generate(request)) as pieces:  # type: ignore[type-var]
                finished = False
                async for delta in pieces:
                    finished = delta.finish is not None
                    self._pieces.put_nowait((index, delta))
                if not finished:
                    raise RuntimeError("the engine ended an answer without a reason")
        except Exception as error:
            self._pieces.put_nowait((index, error))


def engine_died() -> ProtocolError:
    return ProtocolError(
        "the model is being started anew: come again later",
        status=503,
        kind="service_unavailable_error",
        code="engine_died",
        retry_after=5,
    )


def build_app(engine: Engine, settings: AppSettings, on_death: Callable[[], None] | None = None) -> FastAPI:
    """The app; `on_death` is called each time that a request finds the engine dead."""
    service = Service(engine, settings, on_death)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service

    async def answer(request: Request, reader: Reader) -> Response:
        service.check_client(request)
        ask = await service.read(request, reader)
        work = _streamed(service, ask) if ask.stream else _whole(service, ask)
        return await _unless_gone(request, work)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, read_completion)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, read_chat)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        service.check_client(request)
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        service.check_client(request)
        if name != engine.name:
            raise ProtocolError(
                f"the model {name[:200]!r} is not served here: the one that is is {engine.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return JSONResponse(_model(service))

    @app.get("/health")
    async def health() -> Response:
        try:
            engine.check()
        except EngineDied:
            service.on_death()
            raise engine_died() from None
        stats = engine.stats()
        return JSONResponse({"status": "ok", "model": engine.name, "active": stats.active, "waiting": stats.waiting})

    if settings.page:
        chats = _can_chat(engine)

        @app.get("/")
        async def index() -> Response:
            text, policy = page(engine.name, chat=chats, needs_key=settings.key is not None)
            return HTMLResponse(text, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.exception_handler(ProtocolError)
    async def refused(request: Request, error: ProtocolError) -> Response:
        return _error(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = {404: "there is nothing at", 405: "this method is not for"}.get(error.status_code)
        text = f"{what} {request.url.path[:200]}" if what else str(error.detail)
        return _error(ProtocolError(text, status=error.status_code))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _error(service.as_protocol(error))

    return app


async def _whole(service: Service, ask: Ask) -> Response:
    gathered = [Answer() for _ in ask.requests]
    answers = Answers(service, ask)
    try:
        async for index, delta in answers:
            gathered[index].add(delta)
    finally:
        answers.close()
    return JSONResponse(Reply(ask).whole(gathered))


async def _streamed(service: Service, ask: Ask) -> Response:
    """The stream, once its first piece is there: until then what goes wrong still has a status of its own."""
    answers = Answers(service, ask)
    try:
        first = await anext(answers)
    except BaseException:
        answers.close()
        raise
    return EventStream(_events(ask, first, answers), answers.close)


async def _events(ask: Ask, first: tuple[int, Delta], answers: Answers) -> AsyncGenerator[bytes, None]:
    """The pieces as server-sent events. An error becomes the last one."""
    reply = Reply(ask)
    try:
        for opening in reply.first():
            yield _event(opening)
        if (chunk := reply.piece(*first)) is not None:
            yield _event(chunk)
        async for index, delta in answers:
            if (chunk := reply.piece(index, delta)) is not None:
                yield _event(chunk)
        if (closing := reply.last()) is not None:
            yield _event(closing)
        yield b"data: [DONE]\n\n"
    except ProtocolError as error:
        yield _event(error.body())


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and calls `close` at the end: also when the reader goes away, or takes nothing for
    SEND_SECONDS."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if (
                sending.done()
                and isinstance(error := sending.exception(), Exception)
                and not isinstance(error, OSError)
            ):
                raise error
        finally:
            self._close()
            _end(sending, leaving)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, work: Awaitable[Response]) -> Response:
    """What `work` makes; where the client goes away before, work is ended."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ProtocolError("the client went away", status=499)
        return await working
    finally:
        _end(working, leaving)


def _end(*tasks: asyncio.Future[Any]) -> None:
    """End tasks of which nothing more is wanted to be known, without waiting for them."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


def _error(error: ProtocolError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


def _can_chat(engine: Engine) -> bool:
    try:
        return bool(engine.encode_chat([{"role": "user", "content": "Hello"}]))
    except UserError:
        return False


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.engine.name,
        "object": "model",
        "created": service.started,
        "owned_by": "raygpt",
        "max_model_len": service.engine.max_model_len,
    }
