"""Rows of files to questions, in a fixed order, with everything that is wrong with them named before one is asked.

A question's place in the order is a number from 0 on: rows in file order, each crossed with the options, each of those
`samples` times. `scan` gives the keys of a unit, `questions` the questions themselves, so that the first pass decides
what the second one asks.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from raygpt.data.corpus import expand_sources
from raygpt.data.documents import Unit
from raygpt.data.rows import Row, place, read_rows
from raygpt.distill.answers import Question
from raygpt.distill.ledger import BLOCK
from raygpt.distill.templates import Template
from raygpt.errors import UserError

SHOWN_PROBLEMS = 3
KEPT_CHARACTERS = 200  # of a field that goes along with its question: what a card shows; the text is in the prompt
# Rows from options alone, without a file.
NO_FILE = Unit("options", "generate.options")


@dataclass(frozen=True)
class Prompts:
    """What is asked, from where. `options` are crossed with every row; `max_model_len` is the teacher's context in
    tokens, None where nobody knows it; `id_column` names the rows, where they have it."""

    units: tuple[Unit, ...]
    template: Template
    generation: str
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    samples: int = 1
    id_column: str | None = "id"
    max_rows: int | None = None
    max_model_len: int | None = None
    max_new_tokens: int = 512
    skip_bad_rows: bool = False

    @cached_property
    def crossed(self) -> list[dict[str, str]]:
        """The combinations of the options, those of the template where the settings have none."""
        return _combinations({**self.template.options, **self.options})

    def crossed_with(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The same without what a row says itself: the template's options are for rows that do not."""
        own = {name for name in self.template.options if name not in self.options and row.get(name) not in (None, "")}
        if not own:
            return self.crossed
        lists = {**self.template.options, **self.options}
        return _combinations({name: values for name, values in lists.items() if name not in own})


def _combinations(lists: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(lists, values)) for values in itertools.product(*lists.values())]


@dataclass
class Scan:
    """Some questions: their keys, the rows' ids as 32 hex digits each with their rows' numbers, and what is wrong.
    `rows` were read, `bad` of them cannot be asked: (row number, what is wrong)."""

    keys: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    id_rows: list[int] = field(default_factory=list)
    rows: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)


def open_prompts(sources: Sequence[str], prompts: Prompts, subset: str | None = None) -> Prompts:
    """The same with the units of `sources`; without sources the options alone make the prompts.

    Raises UserError for sources that are not there, and where nothing would be asked.
    """
    if sources:
        return replace(prompts, units=tuple(expand_sources(sources, subset, "generate.prompts")))
    missing = [name for name in prompts.template.fields if name not in {**prompts.template.options, **prompts.options}]
    if missing:
        raise UserError(
            f"generate.prompts is not set and the template {prompts.template.name} needs {', '.join(missing)}: name "
            f"files with rows, or give generate.options a list for each."
        )
    return replace(prompts, units=(NO_FILE,))


def scan(prompts: Prompts, unit: Unit, max_rows: int | None) -> Iterator[Scan]:
    """Every question of a unit, some BLOCK of them at a time. Raises UserError for a file that cannot be read."""
    found = Scan()
    for number, row in _rows(unit, max_rows):
        found.rows += 1
        try:
            asked = list(_questions(prompts, row))
        except ValueError as error:
            found.bad.append((number, str(error)))
        else:
            found.keys += [question.key(prompts.generation) for question in asked]
            if prompts.id_column is not None and row.get(prompts.id_column) is not None:
                found.ids.append(hashlib.sha256(str(row[prompts.id_column]).encode()).hexdigest()[:32])
                found.id_rows.append(number)
        if len(found.keys) >= BLOCK or found.rows >= BLOCK:
            yield found
            found = Scan()
    if found.rows:
        yield found


def questions(prompts: Prompts) -> Iterator[Question]:
    """All questions in their order; rows that cannot be asked are left out, as `scan` leaves them out."""
    left = prompts.max_rows
    for unit in prompts.units:
        for _, row in _rows(unit, left):
            left = None if left is None else left - 1
            try:
                asked = list(_questions(prompts, row))
            except ValueError:
                continue
            yield from asked


def bad_rows(problems: Sequence[tuple[Unit, int, str]], total: int) -> UserError:
    """The sentence for rows that cannot be asked; `problems` are the first of `total`."""
    shown = "; ".join(f"{place(unit, number)} {what}" for unit, number, what in problems[:SHOWN_PROBLEMS])
    more = f" and {total - SHOWN_PROBLEMS:,} more like these" if total > SHOWN_PROBLEMS else ""
    return UserError(
        f"generate.prompts: {shown}{more}: nothing was asked; mend these rows, or set generate.skip_bad_rows=true to "
        "go on without them."
    )


def same_id(prompts: Prompts, first: tuple[Unit, int], second: tuple[Unit, int], total: int) -> UserError:
    """The sentence for `total` rows with an id that another row has; `first` and `second` are two of one id."""
    name = next((row.get(str(prompts.id_column)) for number, row in _rows(second[0], None) if number == second[1]), "?")
    more = f" ({total:,} rows repeat an id)" if total > 1 else ""
    return UserError(
        f"generate.prompts: {place(*first)} and {place(*second)} have one {prompts.id_column}, {name!r}{more}: nothing "
        "was asked; make the ids differ, or set generate.id_column=none where they are no ids."
    )


def _rows(unit: Unit, max_rows: int | None) -> Iterator[Row]:
    rows: Iterator[Row] = iter([(1, {})]) if unit is NO_FILE or unit == NO_FILE else read_rows(unit)
    return itertools.islice(rows, max_rows)


def _questions(prompts: Prompts, row: dict[str, Any]) -> Iterator[Question]:
    """Questions of one row. Raises ValueError saying why it cannot be asked."""
    for chosen in prompts.crossed_with(row):
        question = prompts.template.render({**row, **chosen})
        try:
            question.asked.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is no character") from None
        _check_length(prompts, question)
        kept = {name: value for name, value in {**row, **chosen}.items() if _is_small(value)}
        for sample in range(prompts.samples):
            yield Question(question.prompt, question.messages, sample, kept)


def _check_length(prompts: Prompts, question: Question) -> None:
    """A word is a token at least: a prompt with more words than the context has room for is too long for sure. What
    only the teacher's tokenizer can tell, the teacher tells, and its prompt is parked."""
    room = prompts.max_model_len
    if room is None or len(question.asked) < room - prompts.max_new_tokens:
        return
    words = len(question.asked.split())
    if words + prompts.max_new_tokens > room:
        raise ValueError(
            f"has a prompt of {words:,} words, which with generate.max_new_tokens={prompts.max_new_tokens:,} is beyond "
            f"the teacher's context of {room:,} tokens"
        )


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float, bool)) or (isinstance(value, str) and len(value) <= KEPT_CHARACTERS)
