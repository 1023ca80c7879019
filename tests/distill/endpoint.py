"""A teacher for tests: the OpenAI protocol over real HTTP, fast, with faults to order and answers known beforehand.

`answer_to(prompt, seed)` is the right answer to everything it is asked, so that whoever asked can be checked against
it. It counts what it answered, by prompt, and the tokens it wrote: at the endpoint, where they are paid for.

    with Endpoint(Orders(faults=("500", "garbage"), share=0.2)) as endpoint: ...   in a thread of this process
    python -m tests.distill.endpoint '{"share": 0.2}'                              in a process; prints its URL
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httptools

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the river ran past old stone walls while children counted boats and their mothers sang about distant harbours"


@dataclass
class Orders:
    """What the endpoint is and does. Of all requests `share` meet one of `faults`, by a hash of prompt and try, but no
    prompt more than `most_faults` times. `slow` seconds pass before every answer."""

    model: str = "teacher"
    max_model_len: int | None = 4096
    api_key: str | None = None
    share: float = 0.0
    faults: tuple[str, ...] = ()
    most_faults: int = 3
    retry_after: str | None = None
    slow: float = 0.0
    answer_words: int = 12
    no_models: bool = False
    logprobs: bool = True
    refuse_words: int | None = None  # longer prompts get 400, as a context that is too short gives


def answer_to(prompt: str, seed: int | None = None, words: int = 12) -> str:
    """The one right answer to a prompt, or to the last message of a conversation: words, or a mark where one is asked
    for."""
    digest = hashlib.sha256(f"{prompt}|{seed}".encode()).digest()
    if prompt.endswith("Mark:"):
        return str(1 + digest[0] % 5)
    vocabulary = WORDS.split()
    return " ".join(vocabulary[byte % len(vocabulary)] for byte in (digest * (words // 32 + 1))[:words])


class Teacher:
    """The endpoint's memory, shared by its connections."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.requests = 0
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.faulted: Counter[str] = Counter()
        self.tokens = 0
        self.largest_under_way = self.under_way = 0
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "prompts": len(self.answered),
            "answered": sum(self.answered.values()),
            "most_for_one_prompt": max(self.answered.values(), default=0),
            "faults": dict(self.faulted),
            "tokens": self.tokens,
            "largest_under_way": self.largest_under_way,
        }

    def fault(self, prompt: str) -> str | None:
        tries = self.asked[prompt]
        self.asked[prompt] += 1
        if not self.orders.faults or tries >= self.orders.most_faults:
            return None
        number = int.from_bytes(hashlib.sha256(f"{tries}|{prompt}".encode()).digest()[:8], "big")
        if number % 10_000 >= self.orders.share * 10_000:
            return None
        kind = self.orders.faults[number // 10_000 % len(self.orders.faults)]
        self.faulted[kind] += 1
        return kind


class Connection(asyncio.Protocol):
    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path, self.body, self.key = b"", [], ""

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.key = value.decode().removeprefix("Bearer ")

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        path, body, teacher = self.path.decode(), b"".join(self.body), self.teacher
        orders = teacher.orders
        if path == "/stats":
            return self.send(200, teacher.stats())
        if orders.api_key is not None and self.key != orders.api_key:
            return self.error(401, "Incorrect API key provided", "invalid_api_key")
        if path == "/v1/models":
            if orders.no_models:
                return self.error(404, "not here", "not_found")
            about = {"id": orders.model, "object": "model", "owned_by": "tests"}
            return self.send(200, {"object": "list", "data": [about | {"max_model_len": orders.max_model_len}]})
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return self.error(404, f"no such path {path}", "not_found")
        teacher.requests += 1
        request = json.loads(body)
        chat = path.endswith("chat/completions")
        prompt = request["messages"][-1]["content"] if chat else request["prompt"]
        if len(teacher.bodies) < 100:
            teacher.bodies.append(request)
            teacher.times.append(asyncio.get_running_loop().time())
        if request["model"] != orders.model:
            return self.error(404, f"The model {request['model']!r} does not exist", "model_not_found")
        if orders.refuse_words is not None and len(prompt.split()) > orders.refuse_words:
            return self.error(400, f"maximum context length is {orders.refuse_words}", "context_length_exceeded")
        teacher.under_way += 1
        teacher.largest_under_way = max(teacher.largest_under_way, teacher.under_way)
        fault = teacher.fault(prompt)
        if orders.slow or fault == "timeout":
            task = asyncio.get_running_loop().create_task(self.later(request, prompt, chat, fault))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self.answer(request, prompt, chat, fault)

    async def later(self, request: dict[str, Any], prompt: str, chat: bool, fault: str | None) -> None:
        await asyncio.sleep(60 if fault == "timeout" else self.teacher.orders.slow)
        if not self.transport.is_closing():
            self.answer(request, prompt, chat, fault)

    def connection_lost(self, _: Exception | None) -> None:
        for task in self.tasks:
            task.cancel()
            self.teacher.under_way -= 1

    def answer(self, request: dict[str, Any], prompt: str, chat: bool, fault: str | None) -> None:
        teacher, orders = self.teacher, self.teacher.orders
        teacher.under_way -= 1
        if fault == "used up":
            words = "You exceeded your current quota, please check your plan and billing details. " * 3
            return self.error(429, words, "insufficient_quota", None)
        if fault in ("500", "429", "503", "400"):
            return self.error(int(fault), "ordered", "ordered", orders.retry_after if fault in ("429", "503") else None)
        if fault == "drop":
            return self.transport.abort()
        if fault == "half":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            return self.transport.abort()
        if fault == "garbage":
            return self.send(200, b"<html>It works!</html>")
        text = answer_to(prompt, request.get("seed"), min(orders.answer_words, request["max_tokens"]))
        finish = "stop" if orders.answer_words <= request["max_tokens"] else "length"
        usage: dict[str, int] | None = {
            "prompt_tokens": len(prompt.split()),
            "completion_tokens": len(text.split()),
        }
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        reply = {"id": "x", "object": "completion", "model": orders.model, "choices": [choice], "usage": usage}
        if fault == "fields":
            del reply["usage"], choice["finish_reason"]
        elif fault == "empty":
            reply["choices"] = []
        elif fault == "model":
            reply["model"] = "somebody-else"
        elif fault == "filter":
            choice["finish_reason"] = "content_filter"
        else:
            teacher.answered[prompt] += 1
            teacher.tokens += len(text.split())
        return self.send(200, reply)

    def error(self, status: int, message: str, code: str, retry_after: str | None = None) -> None:
        more = f"Retry-After: {retry_after}\r\n" if retry_after else ""
        self.send(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}, more)

    def send(self, status: int, reply: Any, more: str = "") -> None:
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}\r\n"
        self.transport.write(head.encode() + data)


class Endpoint:
    """The endpoint in a thread of this process; `url` ends in /v1, `teacher` is its memory."""

    def __init__(self, orders: Orders | None = None, port: int = 0) -> None:
        self.teacher = Teacher(orders or Orders())
        self.port = port
        self._started = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Endpoint:
        self._thread = threading.Thread(target=self._run, daemon=True, name="endpoint")
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        server = self._loop.run_until_complete(serve(self._loop, self.teacher, self.port))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class EndpointProcess:
    """The endpoint in a process of its own, which survives whoever asks it; `stats()` over HTTP."""

    def __init__(self, orders: Orders | None = None, port: int = 0) -> None:
        self.orders, self.port = orders or Orders(), port

    def __enter__(self) -> EndpointProcess:
        command = [sys.executable, "-m", "tests.distill.endpoint", json.dumps(asdict(self.orders)), str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as reply:
            return json.loads(reply.read())


async def serve(loop: asyncio.AbstractEventLoop, teacher: Teacher, port: int) -> asyncio.Server:
    return await loop.create_server(lambda: Connection(teacher), "127.0.0.1", port, backlog=2048)


def main() -> None:
    import uvloop

    orders = Orders(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    orders.faults = tuple(orders.faults)

    async def run() -> None:
        server = await serve(asyncio.get_running_loop(), Teacher(orders), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()

    uvloop.run(run())


if __name__ == "__main__":
    main()
