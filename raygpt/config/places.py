"""Paths mean the place where they were typed: what a run keeps of them is absolute, whoever reads it from where."""

from __future__ import annotations

import os
from typing import Any

from raygpt.config.tree import Config

READ = (
    *("model.init_from", "data.train", "data.val", "data.tokenizer", "prepare.sources", "prepare.val_sources"),
    *("task.train", "task.val", "task.test", "teacher.model", "distill.teacher", "distill.real"),
    *("generate.prompts", "generate.decontaminate", "compare.base", "compare.tuned", "compare.models", "compare.real"),
    *("compare.synthetic", "compare.domain", "compare.general", "compare.terms"),
)
WRITTEN = ("run.storage", "prepare.output", "export.output", "compare.output", "generate.output", "distill.store")
_GLOB = "*?["


def with_absolute_paths(config: Config) -> Config:
    """The config with local paths made absolute from the current folder; URIs and ids of the hub stay."""
    sections: dict[str, dict[str, Any]] = {}
    for key in (*READ, *WRITTEN):
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        there = absolute(key, value)
        if there != value:
            sections.setdefault(section, {})[name] = there
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def absolute(key: str, value: Any) -> Any:
    """A setting's value with its paths absolute; unchanged where the key is none of a path."""
    if isinstance(value, list) and key in READ:
        return [absolute(key, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if key in WRITTEN:
        return value if "://" in value else _absolute(value)
    return _of_input(value) if key in READ else value


def _of_input(text: str) -> str:
    if "://" in text or os.path.isabs(text):
        return text
    if os.path.exists(os.path.expanduser(text)):
        # gpt2 and bytes are names, also beside a folder that is called so
        return _absolute(text) if "/" in text or not text.isalnum() or os.path.isfile(text) else text
    if "," in text:
        parts = [part.strip() for part in text.split(",")]
        return ",".join(map(_of_input, parts))
    if text.startswith(("./", "../", "~/")):
        return _absolute(text)
    fixed = text[: min((text.find(mark) for mark in _GLOB if mark in text), default=0)]
    return _absolute(text) if fixed and os.path.isdir(os.path.dirname(fixed) or ".") else text


def _absolute(path: str) -> str:
    there = os.path.expanduser(path)
    there = path if there.startswith("~") else there
    return there if os.path.isabs(there) else os.path.join(os.getcwd(), there.removeprefix("./"))
