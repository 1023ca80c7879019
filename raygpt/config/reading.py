"""YAML as it is meant here: what a scalar is follows from the setting that it is for, not from how it looks.

YAML 1.1, which PyYAML speaks, makes 8 of `010`, a time of day of `12:30:00`, a date of `2024-01-01`, False of `no`, and
text of `5e8` and `1e-5`. A plain scalar of a file, and what is typed for a setting, is read by the setting's type; in
mappings of free form, whose values have none, by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema).
Quoted scalars are text everywhere.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raygpt.errors import UserError

NULLS = frozenset({"", "~", "null", "none"})
TRUE, FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.?inf(inity)?", re.IGNORECASE)
_NAN = re.compile(r"\.?nan", re.IGNORECASE)
LONGEST_NUMBER = 400  # characters; Python converts 4,300 digits at most
MOST_NODES = 100_000  # of a document, as often as aliases name them
DEEPEST = 100  # nested levels; no setting has more than a few


def compose(text: str) -> Node | None:
    """The document as nodes, None for an empty one. Raises yaml.YAMLError for what is no YAML, UserError for what is
    nested too deeply or written twice in one mapping."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _check(node, (), 0, [0])
        return node
    except RecursionError:
        raise UserError(f"is nested deeper than {DEEPEST} levels") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _check(node: Node, path: tuple[str, ...], depth: int, seen: list[int]) -> None:
    seen[0] += 1
    if seen[0] > MOST_NODES:
        raise UserError(f"names more than {MOST_NODES:,} values")
    if depth > DEEPEST:
        raise UserError(f"is nested deeper than {DEEPEST} levels")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check(item, path, depth + 1, seen)
    elif isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = key_text(key), key.start_mark.line + 1
            if name in lines and name != "<<":
                dotted = ".".join((*path, name))
                raise UserError(f"has {dotted} twice, in line {lines[name]} and in line {line}: keep one of them")
            lines[name] = line
            _check(value, (*path, name), depth + 1, seen)


def key_text(key: Node) -> str:
    """A mapping's key, as written."""
    if not isinstance(key, ScalarNode):
        raise UserError(f"has a key that is no word in line {key.start_mark.line + 1}")
    return key.value


def entries(node: MappingNode) -> Iterator[tuple[str, Node]]:
    """(key, value) of a mapping, what `<<` merges into it first; own keys come later and win."""
    for key, value in node.value:
        if key.value == "<<":
            for merged in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(merged, MappingNode):
                    yield from entries(merged)
    for key, value in node.value:
        if key.value != "<<":
            yield key_text(key), value


def read(node: Node, kind: Any) -> Any:
    """The node's value for a setting of type `kind`. What does not fit is handed on for pydantic to refuse."""
    options = _options(kind)
    if isinstance(node, ScalarNode):
        return read_plain(node.value, kind) if node.style is None else node.value
    if isinstance(node, SequenceNode):
        for option in options:
            kinds = get_args(option)
            if get_origin(option) is list:
                return [read(item, kinds[0]) for item in node.value]
            if get_origin(option) is tuple:
                return [read(item, kinds[min(n, len(kinds) - 1)]) for n, item in enumerate(node.value)]
        return [read(item, Any) for item in node.value]
    assert isinstance(node, MappingNode)
    inner: Any = next((get_args(option)[1] for option in options if get_origin(option) is dict), Any)
    return {key: read(value, inner) for key, value in entries(node)}


def read_typed(text: str, kind: Any) -> Any:
    """What was typed, on a command line or into a variable, for a setting of type `kind`."""
    options = _options(kind)
    if str in options:  # as typed: spaces, hashes, colons and brackets are part of it
        return None if type(None) in options and text.strip().lower() in ("none", "null") else text
    kinds = {get_origin(option) for option in options}
    if not kinds & {list, tuple, dict}:
        return read_plain(text.strip(), kind)
    try:
        node = compose(text) if dict in kinds or text.lstrip().startswith("[") else None
    except (yaml.YAMLError, UserError):
        node = None
    if isinstance(node, MappingNode if dict in kinds else SequenceNode):
        return read(node, kind)
    items = next((get_args(option)[0] for option in options if get_origin(option) is list), None)
    if items is not None:
        return [read_typed(text, items)] if text.strip() else text
    return read_plain(text.strip(), kind)


def read_settings(node: Node, kind_of: Callable[[str], Any]) -> Any:
    """A mapping of dotted settings to values, or to mappings or lists of values, of the settings' types (`kind_of`)."""
    if not isinstance(node, MappingNode):
        return read(node, Any)

    def leaves(value: Node, kind: Any) -> Any:
        if isinstance(value, MappingNode):
            return {
                name: [read(item, kind) for item in inner.value]
                if isinstance(inner, SequenceNode)
                else read(inner, kind)
                for name, inner in entries(value)
            }
        return read(value, kind)

    return {key: leaves(value, kind_of(key)) for key, value in entries(node)}


def read_plain(text: str, kind: Any = Any) -> Any:
    """A scalar without quotes for a setting of type `kind`; text where it is none of what the type allows."""
    options = _options(kind)
    if Any in options:
        return _core(text)
    word = text.lower()
    if type(None) in options and word in NULLS:
        return None
    literals = [str(value) for option in options if get_origin(option) is Literal for value in get_args(option)]
    if text in literals:
        return text
    if "off" in literals and word in FALSE:
        return "off"
    if bool in options and word in TRUE | FALSE:
        return word in TRUE
    if (int in options or float in options) and (number := _number(text)) is not None:
        if float in options and int not in options:
            return float(number)
        whole = isinstance(number, float) and number.is_integer()
        return int(number) if whole and float not in options else number
    return text if text or str in options else None


def _number(text: str) -> int | float | None:
    if len(text) > LONGEST_NUMBER:
        return None
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float("-inf" if text.startswith("-") else "inf")
    return float("nan") if _NAN.fullmatch(text) else None


def _core(text: str) -> Any:
    """YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if len(text) > LONGEST_NUMBER:
        return text
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)", text):
        return float(text.replace(".", ""))
    return float("nan") if text in (".nan", ".NaN", ".NAN") else text


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


class _Dumper(yaml.SafeDumper):
    """Text that any reader could take for something else stands in quotes."""


def _represent_text(dumper: _Dumper, text: str) -> ScalarNode:
    looks = _core(text) != text or text.lower() in NULLS | TRUE | FALSE or _number(text) is not None
    style = '"' if not text.isprintable() else "'" if looks else None  # PyYAML loses some line ends otherwise
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def write(tree: Any) -> str:
    """YAML that reads as the same values, here and by YAML 1.1's rules."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
