"""What a job declares about itself, and how it was called. Importing this needs neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, create_model

from raygpt.config.section import Problem, Section
from raygpt.config.tree import Config

# (dotted key, what is wrong and the way out) of a config, for one job
Check = Callable[[Config], Iterable[Problem]]


@dataclass(frozen=True)
class Job:
    """One job: what it is called and does, and which settings it starts from, reads and needs.

    `sections` are what its help lists, `reads` what it reads beside them; a setting of any other section that is typed
    for it is named in a warning. `config` is the file it takes without --config; `base` is a file below the user's own:
    settings that only this job starts from. `aliases` are short options, (option, dotted key); those in `lists` take
    all words up to the next option; `words` is the dotted key of a list that takes the words without an option before
    them; `rest` that of a list that takes another command, from the first such word on. `checks` find what is missing
    or does not go together for this job. `own` are sections that this job brings along: {name: class}, whose docstring
    is the sentence in the help. `place` orders `raygpt --help`.
    """

    name: str
    summary: str
    sections: tuple[str, ...]
    reads: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    config: str | None = None
    base: str | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    lists: tuple[str, ...] = ()
    words: str | None = None
    rest: str | None = None
    checks: tuple[Check, ...] = ()
    own: Mapping[str, type[Section]] = field(default_factory=dict)
    place: int = 1000

    @property
    def all_sections(self) -> tuple[str, ...]:
        """Every section that it reads."""
        return (*self.sections, *self.reads)


@dataclass(frozen=True)
class Call:
    """How the job was called: flags without a value, and the command line to repeat it."""

    flags: frozenset[str]
    command: str


def whole_tree(jobs: Iterable[Job]) -> type[Config]:
    """Config with the sections that jobs bring along: what a shared file may hold, whichever job reads it."""
    own: dict[str, Any] = {
        name: (section, Field(default_factory=section, description=section.__doc__))
        for job in jobs
        for name, section in job.own.items()
    }
    if not own:
        return Config
    if taken := sorted(set(own) & set(Config.model_fields)):
        raise ValueError(f"a job's own section is called as one of raygpt's: {', '.join(taken)}")
    return create_model("Config", __base__=Config, __doc__=Config.__doc__, **own)
