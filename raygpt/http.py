"""PURE. What every client of an HTTP endpoint needs: how long to wait, through which proxy, what it says of itself."""

from __future__ import annotations

import email.utils
import json
import random
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

LONGEST_RETRY_AFTER = 3600.0
SHOWN = 200  # characters of an endpoint's own words


def backoff(attempt: int, base: float = 0.25, longest: float = 20.0) -> float:
    """Seconds before try number `attempt` (from 1): full jitter below a bound that doubles, as Brooker's "Exponential
    Backoff And Jitter" (AWS, 2015) finds best."""
    return random.uniform(0, min(longest, base * 2**attempt))


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None for none or what is neither."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL. aiohttp's own `trust_env` asks anew for every request, in a
    thread: two of them each."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "::1") or (parts.hostname or "").startswith("127.")
    if parts.hostname is None or local or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def listed_models(reply: Any) -> dict[str, int | None]:
    """{model: context}. `max_model_len` is vLLM's and ours, `context_length` and `context_window` are others'."""
    found = {}
    for each in reply["data"] if isinstance(reply, dict) and isinstance(reply.get("data"), list) else []:
        if isinstance(each, dict) and isinstance(each.get("id"), str):
            lengths = [each.get(name) for name in ("max_model_len", "context_length", "context_window")]
            found[each["id"]] = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if not found:
        raise ValueError("its list of models is empty")
    return found


def said(text: bytes) -> str:
    """What an endpoint says of an error, in one line."""
    try:
        about = json.loads(text)
        about = about.get("error", about)
        words = (
            f"{about.get('message')} {about.get('code') or about.get('type') or ''}"
            if isinstance(about, dict)
            else about
        )
    except (ValueError, AttributeError):
        words = text.decode("utf-8", "replace")
    return " ".join(str(words).split())[:SHOWN].rstrip(". ") or "no reason given"
