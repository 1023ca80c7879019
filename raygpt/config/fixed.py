"""What a run may not change when it is resumed, as the marks in the sections say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import to_jsonable_python

from raygpt.config.places import absolute
from raygpt.config.section import Fixed, Kind, Section
from raygpt.config.tree import Config


class Change(NamedTuple):
    """A fixed setting that differs: its dotted key, both values, and why it may not."""

    key: str
    before: Any
    now: Any
    why: str


def fixed_keys(kind: Kind, tree: type[Section] = Config) -> dict[str, str]:
    """{dotted key: why} of every setting that a resumed run of this kind must leave alone, in the order of the tree."""
    found: dict[str, str] = {}
    for section, info in tree.model_fields.items():
        model = info.annotation
        assert isinstance(model, type) and issubclass(model, Section)
        for name, item in model.model_fields.items():
            marks = [mark for mark in item.metadata if isinstance(mark, Fixed)]  # its own reason before the section's
            for mark in (*marks, *model.fixed_whole):
                if kind in mark.kinds:
                    found.setdefault(f"{section}.{name}", mark.why)
    return found


def changed_fixed(
    saved: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Mapping[str, Any]],
    kind: Kind,
    tree: type[Section] = Config,
) -> list[Change]:
    """The fixed settings in which two configs, as `Config.to_dict` or config.yaml has them, differ.

    A key that one of them lacks has its default: a run from before the key existed may be resumed.
    """
    changes = []
    for key, why in fixed_keys(kind, tree).items():
        section, name = key.split(".")
        model = tree.model_fields[section].annotation
        assert isinstance(model, type) and issubclass(model, Section)
        default = to_jsonable_python(model.model_fields[name].get_default(call_default_factory=True))
        before, after = (absolute(key, side.get(section, {}).get(name, default)) for side in (saved, now))
        if before != after:
            changes.append(Change(key, before, after, why))
    return changes
