"""PURE. Nested mappings flattened to dotted keys, and where several of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

EXPECTED = ("run.name", "run.storage")  # runs always differ in these, and it means nothing
ABSENT = "–"


def flat(tree: Mapping[str, Any], prefix: str = "", skip: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested mapping, in its order."""
    for key, value in tree.items():
        if key in skip:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(plain(part) for part in value) or ABSENT
    return str(value)


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each) of the keys that differ, in the order in which they first come."""
    trees = [dict(flat(config)) for config in configs]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    found = []
    for key in keys:
        values = [tree.get(key) for tree in trees]
        if key not in EXPECTED and any(value != values[0] for value in values):
            found.append((key, [plain(value) for value in values]))
    return found
