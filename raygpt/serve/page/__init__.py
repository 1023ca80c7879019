"""PURE. The page of `raygpt serve`: one document that asks for nothing from elsewhere.

Style and script are put into the document, and the policy that goes with it allows these two, by their hash, and
requests to the server itself; nothing that a model writes can be run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files


@cache
def page(model: str, *, chat: bool = True, needs_key: bool = False) -> tuple[str, str]:
    """(document, its Content-Security-Policy) for the model called `model`; `chat` says that it can, `needs_key` that
    the server wants a key."""
    folder = files(__name__)
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    facts = json.dumps({"model": model, "chat": chat, "needsKey": needs_key})
    text = folder.joinpath("index.html").read_text("utf-8")
    parts = {"{{style}}": style, "{{script}}": script, "{{facts}}": html.escape(facts), "{{model}}": html.escape(model)}
    for mark, value in parts.items():
        text = text.replace(mark, value)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
