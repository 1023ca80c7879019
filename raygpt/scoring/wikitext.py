"""PURE but for storage. WikiText as the two protocols in use read it, from the file as it was published.

lm_eval: a page is a text, detokenized, with BOS before it and rolling windows; per word and per byte, bits per byte.
  The words and bytes are those of the page before that.
huggingface: the whole file is one text, its lines joined by two newlines; strided windows, no BOS; per token.

`lm_eval` is lm-evaluation-harness's task `wikitext` (version 2; a page is cut out as its data set
EleutherAI/wikitext_document_level does), `huggingface` the example in transformers' documentation ("Perplexity of
fixed-length models"). Both are defined on WikiText-2-raw; on the tokenised release, with <unk> for rare words, figures
are others, and `read` says which one a file is. A BOS that the tokenizer puts before a text by itself, as Llama's does,
stands there twice in the harness, which has the second one predicted; here it stands once.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Literal, get_args

from raygpt import storage
from raygpt.errors import UserError
from raygpt.scoring.perplexity import Texts
from raygpt.scoring.rolling import Windows

Protocol = Literal["lm_eval", "huggingface"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
STRIDE = 512  # of Hugging Face's example


HUB_ID, HUB_SUBSET, HUB_SPLIT = "Salesforce/wikitext", "wikitext-2-raw-v1", "test"
ROWS = (".parquet", ".jsonl", ".jsonl.gz", ".arrow")


def read(uri: str, *, setting: str = "eval.wikitext") -> tuple[str, str]:
    """(text, name) of a file of WikiText, such as wiki.test.raw or wiki.test.tokens, or of the rows of the hub's data
    set: a line each, as its parquet files have them. Raises UserError."""
    from raygpt.data.hub import is_hub_id

    hub = is_hub_id(uri)
    where = None if hub else storage.locate(uri)
    if hub or uri.endswith(ROWS):
        text = _joined(uri, setting)
    elif where is None or not storage.is_file(where):
        raise UserError(
            f"{setting}={uri}: no such file; name WikiText's test file (wiki.test.raw, wiki.test.tokens) or {HUB_ID}."
        )
    else:
        try:
            text = storage.read_bytes(where).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{setting}={uri} is not UTF-8 text ({error.reason}): name WikiText's test file as published."
            ) from error
    if sum(1 for _ in pages(text)) < 2:
        raise UserError(
            f"{setting}={uri} has no pages under headings such as ' = Title = ': it is not WikiText as published."
        )
    release = "tokenised, with <unk>" if "<unk>" in text else "raw"
    name = f"{uri}, {HUB_SUBSET}, {HUB_SPLIT}" if where is None else where.name
    return text, f"{name} ({release})"


def _joined(uri: str, setting: str) -> str:
    """The file that rows were cut from: they have their newline, and an empty one stood there as a space and one."""
    from raygpt.data.rows import read_split  # needs pyarrow

    lines = []
    for place, row in read_split(uri, HUB_SPLIT, setting, HUB_SUBSET):
        line = row.get("text")
        if not isinstance(line, str):
            raise UserError(f"{setting}: {place} has no text: rows of WikiText have one column, text.")
        lines.append(line if line.endswith("\n") else (line or " ") + "\n")
    return "".join(lines)


def texts(text: str, name: str, protocol: Protocol, limit: int | None = None) -> Texts:
    """What a protocol has a model read of the file's text; `limit` takes the first pages only, and says so."""
    some = list(pages(text))
    if limit is not None and limit < len(some):
        some = some[:limit]
        text = "\n".join(some) + "\n"
        name += f", first {limit} page{'s' if limit > 1 else ''}"
    if protocol == "huggingface":
        joined = "\n\n".join(_lines(text))
        return Texts(name, (joined,), (len(text.split()),), (len(text.encode()),), detokenised=False)
    return Texts(
        name,
        tuple(map(detokenize, some)),
        # the harness splits at white space and counts the empty pieces at both ends
        tuple(len(re.split(r"\s+", page)) for page in some),
        tuple(len(page.encode()) for page in some),
        detokenised=True,
    )


def windows(protocol: Protocol, context: int, *, overlap: bool = True) -> Windows:
    """How a protocol cuts; huggingface with its stride of 512 (of a short context half) or without overlap."""
    if protocol == "lm_eval":
        return Windows.of("rolling", context)
    return Windows.of("strided", context, min(STRIDE, max(1, context // 2)) if overlap else context)


def _lines(text: str) -> list[str]:
    """The rows of Hugging Face's data set: lines with their newline, empty ones without."""
    return [line if line.strip() else "" for line in io.StringIO(text)]


def pages(text: str) -> Iterator[str]:
    """A page is what stands from a heading of the first level, ' = Title = ', to the next."""
    page: list[str] = []
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "\n".join(page).strip():
                yield "\n".join(page)
            page = []
        page.append(line)
    yield "\n".join(page)


# What the harness undoes of WikiText's tokenizing, in its order (lm_eval/tasks/wikitext/preprocess_wikitext.py). Its
# second rule never matches, for it looks for slashes, and its last one turns a capital N that stands alone into 1: kept
# as they are, the figures are by them. str is a plain replacement, a compiled pattern a regular one.
_UNDONE: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), r"/'[0-9]/"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenize(page: str) -> str:
    """A page as people write text."""
    for found, put in _UNDONE:
        page = page.replace(found, put) if isinstance(found, str) else found.sub(put, page)
    return page
