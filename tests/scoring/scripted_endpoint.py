"""A small endpoint of the OpenAI protocol with faults to order: a bigram model over bytes, scored by hand.

After byte a, byte b costs `cost(a, b)` nats. It takes texts and token ids, unless told otherwise.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def cost(before: int, token: int) -> float:
    return 0.5 + (before * 7 + token * 3) % 11


@dataclass
class Script:
    """What it does. `answers` are (status, body) that it gives to the next requests for completions, before its own."""

    answers: list[tuple[int, Any]] = field(default_factory=list)
    key: str | None = None
    max_model_len: int | None = 64
    logprobs: bool = True
    alternatives: bool = True
    echo: bool = True
    takes_ids: bool = True
    needs_new_token: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        if self.answers:
            return self.answers.pop(0)
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            return 400, {"error": {"message": "prompt must be a text"}}
        if self.needs_new_token and not body["max_tokens"]:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
        if self.max_model_len and len(ids) + body["max_tokens"] > self.max_model_len:
            return 400, {"error": {"message": f"maximum context length is {self.max_model_len} tokens"}}
        shown = ids + [33] * body["max_tokens"] if self.echo else [33] * body["max_tokens"]
        texts = [chr(token) if token < 256 else "" for token in shown]
        values = [None, *(-cost(*pair) for pair in itertools.pairwise(shown))] if self.echo else [-1.0] * len(shown)
        tops = [None if value is None else {"likeliest": max(value, -1.5), "it": value} for value in values]
        logprobs = {"tokens": texts, "token_logprobs": values, "top_logprobs": tops if self.alternatives else None}
        choice = {"index": 0, "text": "".join(texts), "logprobs": logprobs if self.logprobs else None}
        usage = {"prompt_tokens": len(ids), "completion_tokens": body["max_tokens"]}
        return 200, {"choices": [choice], "usage": usage}


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """Its base URL, which ends in /v1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(data)

        def allowed(self) -> bool:
            script.keys.append(self.headers.get("Authorization"))
            if script.key is None or script.keys[-1] == f"Bearer {script.key}":
                return True
            self.reply(401, {"error": {"message": f"wrong key {script.keys[-1]}"}})
            return False

        def do_GET(self) -> None:
            if self.allowed():
                self.reply(200, {"data": [{"id": "bigram", "max_model_len": script.max_model_len}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.allowed():
                self.reply(*script.answer(body))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
