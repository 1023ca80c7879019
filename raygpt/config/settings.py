"""Where settings come from: defaults < YAML file < environment < command line, every key traced to its origin.

All problems are reported together, one line each: the dotted key, where it was set, and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, ScalarNode

from raygpt.config.checks import problems
from raygpt.config.job import Job
from raygpt.config.reading import compose, entries, read, read_settings, read_typed, write
from raygpt.config.section import AlsoCalled, MayBeEmpty, OfSettings, Section
from raygpt.config.tree import Config
from raygpt.errors import UserError
from raygpt.storage import locate, read_text

ENV_PREFIX = "RAYGPT_"
NO_SETTINGS = frozenset({"RAYGPT_PRICES"})  # variables of the same prefix that other modules read


@dataclass
class Settings:
    """Raw values by dotted key with the origin of each; later sources override earlier ones."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # as typed, where a setting was typed
    tree: type[Config] = Config

    def set(self, key: str, value: Any, origin: str) -> None:
        self.values[key] = value
        self.origins[key] = origin
        self.texts.pop(key, None)

    def set_text(self, key: str, text: str, origin: str) -> None:
        """As typed, read by the setting's type."""
        item = _field(self.tree, key)
        node = _mapping(text) if item is not None and _of_settings(item) else None
        if node is not None:
            value = read_settings(node, self.kind_of)
        else:
            value = read_typed(text, Any if item is None else item.annotation)
        self.set(key, value, origin)
        self.texts[key] = text

    def set_node(self, key: str, node: Node, origin: str) -> None:
        """From a file, read by the setting's type."""
        item = _field(self.tree, key)
        if item is not None and _of_settings(item):
            value = read_settings(node, self.kind_of)
        else:
            value = read(node, Any if item is None else item.annotation)
        self.set(key, value, origin)

    def kind_of(self, key: str) -> Any:
        """A setting's type; Any for what is none."""
        item = _field(self.tree, key)
        return Any if item is None else item.annotation


def load_config(
    job: Job | str,
    file: str | None = None,
    options: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    check: bool = True,
    base: str | None = None,
    tree: type[Config] = Config,
    warn: Callable[[str], None] | None = None,
) -> Config:
    """The validated config of one job. Raises UserError listing every problem found in any source.

    `job` is its declaration; a bare name stands for one that reads every section and asks for nothing. `base` is a file
    of the job's own defaults; of its settings those give way whose alternative the user sets. `tree` is Config with
    what jobs bring along. `warn` is told in one sentence which typed settings the job does not read.
    """
    settings = Settings(tree=tree)
    if base is not None:
        _read_file(settings, base)
    own = dict(settings.origins)
    if file is not None:
        _read_file(settings, file)
    bad = _read_environment(settings, os.environ if environ is None else environ)
    for key, text in (options or {}).items():
        settings.set_text(key, text, f"--{key}")
    _give_way(settings, own)
    declared = None if isinstance(job, str) else job
    config, errors = _validate(settings, declared)
    errors = bad + errors
    if config is not None and check:
        errors += [f"{key}{_where(settings, key)} {text}" for key, text in problems(config, declared)]
    if errors or config is None:
        raise UserError("\n".join(errors))
    if declared is not None and warn is not None and (sentence := ignored(settings, declared)):
        warn(sentence)
    return config


def ignored(settings: Settings, job: Job) -> str | None:
    """Which settings were typed for this job although it does not read their section, as one sentence; None: none.

    A file serves several jobs and may hold what only another one reads, so of a file nothing is said.
    """
    typed = [key for key in settings.texts if key.partition(".")[0] not in job.all_sections]
    if not typed:
        return None
    named = ", ".join(f"{key}{_where(settings, key)}" for key in typed)
    return (
        f"{named} {'has' if len(typed) == 1 else 'have'} no effect: `raygpt {job.name}` reads "
        f"{', '.join(job.all_sections)}."
    )


def _alternatives(tree: type[Config]) -> list[tuple[str, ...]]:
    """Groups of dotted keys of which one at most may be set."""
    return [
        tuple(f"{name}.{key}" for key in group)
        for name, section in _sections(tree).items()
        for group in section.alternatives
    ]


def _give_way(settings: Settings, own: Mapping[str, str]) -> None:
    """Drop a job's own default where the user set one of its alternatives."""
    for group in _alternatives(settings.tree):
        if any(key in settings.origins and settings.origins[key] != own.get(key) for key in group):
            for key in group:
                if key in own and settings.origins[key] == own[key]:
                    del settings.values[key], settings.origins[key]


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Config saved by an earlier run; keys that no longer exist are dropped, so old runs stay readable."""
    known = {key: value for key, value in _flatten(values, "") if _field(Config, key) is not None}
    settings = Settings(known, dict.fromkeys(known, "saved config"))
    config, errors = _validate(settings)
    if config is None:
        raise UserError("\n".join(errors))
    return config


def config_with(config: Config, values: Mapping[str, Any], origin: str) -> Config:
    """The config with some settings changed, {dotted key: value}; an alternative that was set before gives way.

    Raises UserError listing every key that is no setting and every value that is not allowed, under `origin`.
    """
    settings, alternatives = Settings(tree=type(config)), _alternatives(type(config))
    for key, value in _flatten(config.to_dict(), ""):
        if not any(key in group and set(group) & set(values) for group in alternatives):
            settings.set(key, value, "the sweep's config")
    for key, value in values.items():
        settings.set(key, value, origin)
    changed, errors = _validate(settings)
    if changed is None or errors:
        raise UserError("\n".join(errors))
    return changed


def dump(config: Config) -> str:
    """The resolved config as YAML, in the order of the tree."""
    return write(config.to_dict())


def known_keys(tree: type[Config] = Config) -> list[tuple[str, str, str, Any]]:
    """(dotted key, allowed values, description, default) of every setting, in the order of the tree."""
    return [
        (f"{section}.{name}", describe_type(item.annotation), item.description or "", item.default)
        for section, model in _sections(tree).items()
        for name, item in model.model_fields.items()
    ]


def describe_type(annotation: Any) -> str:
    """What may be written for a type: `int`, `auto | true | false`, `list of str` …"""
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " | ".join("none" if part is type(None) else describe_type(part) for part in get_args(annotation))
    if origin is list:
        return f"list of {describe_type(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return "[" + ", ".join(describe_type(part) for part in get_args(annotation)) + "]"
    return {bool: "true | false", int: "int", float: "number", str: "text"}.get(annotation, str(annotation))


def _read_file(settings: Settings, file: str) -> None:
    try:
        node = compose(read_text(locate(file)))
    except FileNotFoundError:
        raise UserError(f"--config {file} does not exist.") from None
    except UnicodeDecodeError:
        raise UserError(f"--config {file} is not UTF-8 text.") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {file} is not valid YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise UserError(f"--config {file} {error}.") from None
    if node is None or (isinstance(node, ScalarNode) and node.value == ""):
        return
    if not isinstance(node, MappingNode):
        raise UserError(f"--config {file} must hold sections with keys, as in `run: {{name: first}}`.")
    lines: dict[str, int] = {}
    for key, value, line in _leaves(node):
        if key in lines:
            raise UserError(
                f"--config {file} has {key} twice, in line {lines[key]} and in line {line}: keep one of them."
            )
        lines[key] = line
        settings.set_node(key, value, file)


def _read_environment(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    bad = []
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in NO_SETTINGS:
            continue
        parts = name.removeprefix(ENV_PREFIX).lower().split("__")
        if len(parts) != 2:
            bad.append(
                f"environment variable {name} names no setting: write {ENV_PREFIX}SECTION__KEY, with two underscores "
                "between"
            )
        else:
            settings.set_text(".".join(parts), environ[name], f"environment {name}")
    return bad


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and not prefix:
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _leaves(node: MappingNode) -> Iterator[tuple[str, Node, int]]:
    """(dotted key, value, line) of every setting of a file; a section's own keys in place of merged ones."""
    for key, value in entries(node):
        if isinstance(value, MappingNode):
            for inner, leaf in dict(entries(value)).items():
                yield f"{key}.{inner}", leaf, leaf.start_mark.line + 1
        else:
            yield key, value, value.start_mark.line + 1


def _mapping(text: str) -> Node | None:
    try:
        return compose(text)
    except (yaml.YAMLError, UserError):
        return None


def _of_settings(item: FieldInfo) -> bool:
    return any(isinstance(mark, OfSettings) for mark in item.metadata)


def _validate(settings: Settings, job: Job | None = None) -> tuple[Config | None, list[str]]:
    errors: list[str] = []
    tree: dict[str, dict[str, Any]] = {}
    for key, value in settings.values.items():
        item = _field(settings.tree, key)
        if item is None:
            first = job.all_sections if job is not None else ()
            errors.append(f"{key}{_where(settings, key)} is no setting{_suggest(settings.tree, key, first)}")
            continue
        if _is_empty(value) and not any(isinstance(mark, MayBeEmpty) for mark in item.metadata):
            errors.append(f"{key}{_where(settings, key)} is empty: {_instead_of_empty(item)}")
            continue
        section, name = key.split(".", 1)
        tree.setdefault(section, {})[name] = value
    try:
        config = settings.tree.model_validate(tree)
    except ValidationError as error:
        seen: dict[str, str] = {}
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"][:2])
            seen.setdefault(key, f"{key}{_where(settings, key)} {_complaint(_field(settings.tree, key), detail)}")
        return None, errors + list(seen.values())
    return (None if errors else config), errors


def _is_empty(value: Any) -> bool:
    """Whether it is text of nothing, as an unset variable of the shell leaves it, or has such among its items."""
    if isinstance(value, list):
        return any(_is_empty(item) for item in value)
    return value == ""


def _instead_of_empty(item: FieldInfo) -> str:
    none = ", write none" if type(None) in get_args(item.annotation) else ""
    return f"give it a value{none}, or leave it out"


def _sections(tree: type[Config]) -> dict[str, type[Section]]:
    classes = {name: info.annotation for name, info in tree.model_fields.items()}
    return {name: kind for name, kind in classes.items() if isinstance(kind, type) and issubclass(kind, Section)}


def _field(tree: type[Config], key: str) -> FieldInfo | None:
    section, _, name = key.partition(".")
    model = _sections(tree).get(section)
    return None if model is None else model.model_fields.get(name)


def _where(settings: Settings, key: str) -> str:
    return f" ({settings.origins[key]})" if key in settings.origins else ""


def _suggest(tree: type[Config], key: str, sections: Sequence[str]) -> str:
    """The setting that was probably meant: one with the same last word, by its own or another usual name (those of
    `sections` before others, then those of the section most like the one written), else one that looks like it."""
    section, _, last = key.replace("-", "_").rpartition(".")
    every = [name for name, *_ in known_keys(tree)]
    same = [name for name in every if last in _names(tree, name)]
    same = [name for name in same if name.partition(".")[0] in sections] or same
    if section and same:
        alike = {name: difflib.SequenceMatcher(None, section, name.partition(".")[0]).ratio() for name in same}
        if max(alike.values()) >= 0.6:
            same = [max(same, key=lambda name: alike[name])]
    close = same[:3] or difflib.get_close_matches(key, every, n=1, cutoff=0.6)
    if not close:
        words = {name.partition(".")[2]: name for name in reversed(every)}
        close = [words[word] for word in difflib.get_close_matches(last, words, n=1, cutoff=0.8)]
    return f": did you mean {' or '.join(close)}?" if close else ": `raygpt --help` lists all settings"


def _names(tree: type[Config], key: str) -> set[str]:
    item = _field(tree, key)
    also = [mark.names for mark in item.metadata if isinstance(mark, AlsoCalled)] if item is not None else []
    return {key.partition(".")[2], *(name for names in also for name in names)}


def _complaint(item: FieldInfo | None, detail: ErrorDetails) -> str:
    given = detail.get("input")
    context = detail.get("ctx", {})
    if detail["type"] == "value_error":
        reason = str(context.get("error", detail["msg"]))
    elif detail["type"] in ("greater_than_equal", "greater_than", "less_than", "less_than_equal"):
        sign = {"ge": "at least", "gt": "more than", "lt": "less than", "le": "at most"}
        reason = "must be " + " and ".join(f"{sign[name]} {bound}" for name, bound in context.items() if name in sign)
    elif detail["type"] == "finite_number":
        reason = "must be a finite number"
    else:
        reason = f"must be {describe_type(item.annotation) if item else 'a known section'}"
    return f"is {given!r}: {reason}"
