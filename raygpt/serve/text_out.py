"""PURE. Tokens to text as they come: whole characters only, spaces as in the whole text, and cut at stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what bytes of a character that is not complete decode to

# Tokens that a piece is decoded behind. A tokenizer that drops a text's leading space must see that none begins here;
# several, because some decode to nothing and some are bytes of one character.
CONTEXT = 6


class Detokenizer:
    """Text of an answer, token by token. Joined, the pieces are what decoding prompt and answer adds to the prompt's
    text. A few tokens are decoded at a time, however long the answer."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-CONTEXT:])
        self._given = _whole(decode(self._window))  # characters of the window's text that are out
        self._cuts = [0]  # where the window may begin: before whole characters

    def push(self, token: int) -> str:
        """What is certain now."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = _whole(text)
        new = text[self._given : whole]
        self._given = max(self._given, whole)
        if whole == len(text):
            self._cuts.append(len(self._window))
            if len(self._window) > 4 * CONTEXT:
                self._trim()
        return new

    def flush(self) -> str:
        """What was held back: nothing more comes."""
        new = self._decode(self._window)[self._given :]
        self._given += len(new)
        return new

    def _trim(self) -> None:
        cut = max(place for place in self._cuts if place <= len(self._window) - CONTEXT)
        self._window = self._window[cut:]
        self._cuts = [place - cut for place in self._cuts if place >= cut]
        self._given = len(self._decode(self._window))


def _whole(text: str) -> int:
    """Characters before those that are not complete."""
    return len(text.rstrip(UNFINISHED))


class StopTexts:
    """Lets text through up to the first stop text, wherever the pieces were cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that cannot be the beginning of a stop text, whether one is reached)."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            out, self._held = self._held[: min(found)], ""
            return out, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def flush(self) -> str:
        """What was held back."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
