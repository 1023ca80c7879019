"""PURE. A text file cut into documents where its author broke it, as it streams by.

What separates documents is chosen once per file, from its first 4 Mi characters, the first of these that is there:

1. `<|endoftext|>` marks. Every mark ends a document, whatever else is chosen and wherever it stands.
2. Form feeds, but for one in the middle of a sentence (the text goes on with a small letter): that is a turned page.
3. Runs of three or more blank lines, or else of two, when they leave parts of at most 100,000 characters on average.
   A part of less than 200 characters is a heading and opens the next one.
4. Paragraphs, put together to documents of 2,000 to 8,000 characters. A longer paragraph is cut at a line that ends a
   sentence, else at the end of a sentence, and only text of 100,000 characters without either anywhere else.

Nothing but the separators is lost: the (document, separator) pairs joined are the file. Where the file is cut into
pieces of reading does not show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import merge
from itertools import chain

from raygpt.data.lines import LINE_END, Place, TooLong, with_end

# This line separates documents (the form TinyStories and GPT-2's own dumps use); a line end next to it is not text.
MARK = "<|endoftext|>"
LOOK = 4 * 2**20
SHORTEST_SECTION, LONGEST_MEAN_SECTION = 200, 100_000
SHORTEST, LONGEST, FARTHEST = 2_000, 8_000, 100_000

Pairs = Iterator[tuple[str, str]]
Spans = Iterator[tuple[int, int]]
Separators = Callable[[str], Spans]

_SPACE = r"[^\S\r\n]*"
_FORM_FEED = re.compile(r"\f\s*")


def _blank_lines(fewest: int) -> str:
    return rf"{LINE_END}(?:{_SPACE}{LINE_END}){{{fewest},}}"


_SECTION = {fewest: re.compile(_blank_lines(fewest)) for fewest in (3, 2)}
_BLANK = re.compile(_blank_lines(1))
_LEADING = re.compile(rf"(?:{_SPACE}{LINE_END})*")
# The end of a sentence, but not of an initial or a common title. The character comes first and is looked back from: a
# search that has to look back everywhere is fifteen times as slow.
_STOP = (
    r"[.!?…。！？](?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|No|vs|cf|pp|ca)\.)(?<!\b(?:Mrs|Fig|Sec|Vol|Eqs)\.)"
    r"(?<!e\.g\.)(?<!i\.e\.)"
)
_CLOSING = r"[\"'”’»」』）)\]]*"
_LINE_AFTER_SENTENCE = re.compile(rf"{_STOP}{_CLOSING}({_SPACE}{LINE_END})")
_SENTENCE = re.compile(rf"{_STOP}(?:{_CLOSING}(\s+)(?=[\"'“‘«(\[]*[^\W_a-z])|(?<=[。！？]){_CLOSING}())")
_LINE = re.compile(LINE_END)
_ANY_SPACE = re.compile(r"\s+")


def documents(pieces: Iterable[str], own_breaks: bool, limit: float) -> Pairs:
    """(document, separator after it) over a file that comes in pieces; joined they are the file.

    Without `own_breaks` only marks separate. A document may be empty. TooLong, with the line it begins in, for one of
    more than `limit` UTF-8 bytes, before much more of it is read.
    """
    place = Place()
    try:
        for text, gap in _choose(iter(pieces), limit) if own_breaks else _cut(_marks, pieces, limit):
            # no character takes more than 4 bytes: most texts need no counting
            if len(text) * 4 > limit and len(text.encode("utf-8")) > limit:
                raise TooLong
            place.advance(text)
            place.advance(gap)
            yield text, gap
    except TooLong as error:
        raise TooLong(place.line) from error


def _choose(pieces: Iterator[str], limit: float) -> Pairs:
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= LOOK:
            break
    look = "".join(held)[:LOOK]
    everything = chain(held, pieces)
    if MARK in look:
        return _cut(_marks, everything, limit)
    if _count(_cut(_form_feeds, [look], len(look))) > 1:
        return _without_ends(_cut(_form_feeds, everything, limit))
    for pattern in _SECTION.values():
        separators = partial(_sections, pattern)
        parts = _count(_with_headings(_cut(separators, [look], len(look))))
        if parts > 1 and len(look) <= parts * LONGEST_MEAN_SECTION:
            return _without_ends(_with_headings(_cut(separators, everything, limit)))
    return _without_ends(_packed(everything, limit))


def _count(pairs: Pairs) -> int:
    return sum(1 for text, _ in pairs if text and not text.isspace())


def _marks(text: str) -> Spans:
    """Where marks stand, each with a line end before and after it."""
    # str.find is a hundred times as fast as an expression
    at, before = text.find(MARK), 0
    while at >= 0:
        start, end = at, at + len(MARK)
        if start > before and text[start - 1] == "\n":
            start -= 2 if start - 1 > before and text[start - 2] == "\r" else 1
        if text.startswith(("\n", "\r\n"), end):
            end += 1 if text[end] == "\n" else 2
        yield start, end
        at, before = text.find(MARK, end), end


def _form_feeds(text: str) -> Spans:
    feeds = (match.span() for match in _FORM_FEED.finditer(text) if not text[match.end() : match.end() + 1].islower())
    return _together(feeds, _marks(text))


def _sections(pattern: re.Pattern[str], text: str) -> Spans:
    return _together((match.span() for match in pattern.finditer(text)), _marks(text))


def _together(one: Spans, other: Spans) -> Spans:
    """All spans in order, overlapping ones as one."""
    last: tuple[int, int] | None = None
    for span in merge(one, other):
        if last is not None and span[0] < last[1]:
            last = last[0], max(last[1], span[1])
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last


def _cut(separators: Separators, pieces: Iterable[str], limit: float) -> Pairs:
    """Cut at all separators."""
    parts: list[str] = []
    size, active, cut = 0, "", False
    for piece, final in with_end(pieces):
        active += piece or ""
        begin, hold = 0, len(active)
        for start, end in separators(active):
            if not final and len(active) - end < 2:
                hold = start  # it may go on
                break
            yield "".join([*parts, active[begin:start]]), active[start:end]
            parts, size, begin, cut = [], 0, end, True
        if not final:
            # kept back: what may be the beginning of a separator, a mark or a run of white space
            hold = min(hold, max(begin, len(active) - len(MARK)))
            hold = begin + len(active[begin:hold].rstrip())
        parts.append(active[begin:hold])
        size += hold - begin
        active = active[hold:]
        if size > limit:
            raise TooLong
    if (last := "".join(parts)) or not cut:
        yield last, ""


def _with_headings(pairs: Pairs) -> Pairs:
    """A short part joins the next one, unless a mark stands between them."""
    before = ""
    for text, gap in pairs:
        whole = before + text
        if whole and len(whole) < SHORTEST_SECTION and MARK not in gap:
            before = whole + gap
        else:
            yield whole, gap
            before = ""
    if before:
        yield before, ""


def _without_ends(pairs: Pairs) -> Pairs:
    """White space at the end of a document belongs to the separator."""
    for text, gap in pairs:
        kept = text.rstrip()
        yield kept, text[len(kept) :] + gap


def _packed(pieces: Iterator[str], limit: float) -> Pairs:
    """Documents of SHORTEST to LONGEST characters, cut at the best place there is."""
    text, start, ended = "", 0, False

    def fill(wanted: int) -> None:
        """Have `wanted` characters from `start` on, or all there are."""
        nonlocal text, start, ended
        if ended or len(text) - start >= wanted:
            return
        parts = [text[start:]]
        size = len(parts[0])
        while size < wanted:
            piece = next(pieces, None)
            if piece is None:
                ended = True
                break
            parts.append(piece)
            size += len(piece)
        text, start = "".join(parts), 0

    while True:
        fill(FARTHEST + 1)
        if leading := _LEADING.match(text, start)[0]:  # type: ignore[index]
            yield "", leading
            start += len(leading)
            continue
        if start == len(text):
            return
        window = FARTHEST
        while (cut := _best_cut(text, start, start + window)) is None:
            if ended and len(text) - start <= window:
                break
            if window > limit:
                raise TooLong
            window *= 2
            fill(window + 1)
        if cut is None:
            if len(text) - start > limit:
                raise TooLong
            yield text[start:], ""
            return
        if cut[0] - start > limit:
            raise TooLong
        yield text[start : cut[0]], text[cut[0] : cut[1]]
        start = cut[1]


def _best_cut(text: str, start: int, stop: int) -> tuple[int, int] | None:
    """(end of the document that begins at `start`, beginning of the next), None when it goes on beyond `stop`."""
    near, far = start + SHORTEST, min(start + LONGEST, stop)
    if (mark := _mark(text, start, far)) is not None:
        return mark
    if len(text) <= far:
        return None
    for pattern in (_BLANK, _LINE_AFTER_SENTENCE, _SENTENCE):
        if found := _span(pattern, text, near, far):
            return found
    spans = [_span(pattern, text, far, stop) for pattern in (_BLANK, _LINE_AFTER_SENTENCE, _SENTENCE)]
    if found_spans := [span for span in (_mark(text, far, stop), *spans) if span]:
        return min(found_spans)
    if len(text) <= stop:
        return None
    return _span(_LINE, text, far, stop) or _span(_ANY_SPACE, text, far, stop)


def _mark(text: str, start: int, stop: int) -> tuple[int, int] | None:
    at = text.find(MARK, start, stop)
    if at < 0:
        return None
    first = max(start, at - 2)
    begin, end = next(_marks(text[first : at + len(MARK) + 2]))
    return first + begin, first + end


def _span(pattern: re.Pattern[str], text: str, start: int, stop: int) -> tuple[int, int] | None:
    match = pattern.search(text, start, stop)
    if match is None:
        return None
    return match.span(match.lastindex or 0)
