"""The words of a command line: options, flags and plain words, before anything is known of what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from raygpt.errors import UserError


def parse(
    words: Sequence[str],
    flags: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    lists: Sequence[str] = (),
    plain: str | None = None,
) -> tuple[str | None, dict[str, str], set[str]]:
    """(--config file, {dotted key: text}, flags given) from `--key=value`, `--key value` and `--flag`.

    A name that is a flag and an alias takes a value where one follows, an alias in `lists` all words that do. Words
    without an option before them are the list at the dotted key `plain`; without one they are refused.
    """
    file, options, given = None, {}, set()
    rest, bare = list(words), []
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            given.add("help")
            continue
        if not word.startswith("--"):
            if plain is not None:
                bare.append(word)
                continue
            raise UserError(f"{word!r} is no option: settings are written --section.key=value.")
        key, equals, value = word[2:].partition("=")
        name = key.replace("-", "_")
        target = (aliases or {}).get(name)
        if name in flags:
            given.add(name)
            if not equals and (target is None or not rest or rest[0].startswith("--")):
                continue
        if not equals:
            if not rest or rest[0].startswith("--"):  # an unset variable of the shell leaves the next option there
                raise UserError(f"--{key} needs a value: write --{key}=value.")
            value = rest.pop(0)
            if name in lists:
                many = [value]
                while rest and not rest[0].startswith("--"):
                    many.append(rest.pop(0))
                value = json.dumps(many, ensure_ascii=False)  # as a file would have it
        if key == "config":
            file = value
        else:
            options[target or key] = value
    if bare and plain is not None:
        options[plain] = json.dumps(bare, ensure_ascii=False)
    return file, options, given


def split_rest(words: Sequence[str], flags: Sequence[str], sections: Sequence[str]) -> tuple[list[str], list[str]]:
    """(a job's own words, the words of another command that it is given) of a command line.

    The other command begins with the first word that is no option, and has all that follows as it was typed, but for
    options of `sections` and --help: those are the job's own wherever they stand. A bare `--` before it is left out.
    """
    own: list[str] = []
    passed: list[str] = []
    rest = list(words)

    def take(word: str) -> None:
        own.append(word)
        name = word.lstrip("-").replace("-", "_")
        if "=" not in word and name not in flags and word not in ("-h", "--help") and rest:
            own.append(rest.pop(0))

    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        take(word)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help") or word.startswith(tuple(f"--{section}." for section in sections)):
            take(word)
        else:
            passed.append(word)
    return own, passed
