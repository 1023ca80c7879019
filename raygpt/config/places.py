"""Paths mean the place where they were typed: what a run keeps of them is absolute, whoever reads it from where."""

from __future__ import annotations

import os
from typing import Any

from raygpt.config.job import Job
from raygpt.config.tree import Config
from raygpt.errors import UserError

READ = (
    *("model.init_from", "data.train", "data.val", "data.tokenizer", "prepare.sources", "prepare.val_sources"),
    *("task.train", "task.val", "task.test", "teacher.model", "distill.teacher", "distill.real"),
    *("generate.prompts", "generate.decontaminate", "compare.base", "compare.tuned", "compare.models", "compare.real"),
    *("compare.synthetic", "compare.domain", "compare.general", "compare.terms", "benchmark.compare"),
    *("eval.hellaswag", "eval.lambada", "eval.wikitext"),
)
# {setting: jobs that write there what is to last}; others look there and find out by themselves that nothing is there
WRITTEN = {
    "run.storage": ("pretrain", "finetune", "distill", "tune", "generate", "quickstart", "benchmark"),
    "prepare.output": ("prepare",),
    "export.output": ("export",),
    "compare.output": ("evaluate",),
    "eval.output": ("evaluate",),
    "generate.output": ("generate",),
    "distill.store": ("distill",),
}
UPLOAD = "/working_dir_files/_ray_pkg_"  # in the path of a Ray job's working_dir, which Ray deletes
_GLOB = "*?["
# names of what raygpt has, also beside a folder that is called so
NAMES = {"random", "base", "bytes", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"}


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


def check_lasting(config: Config, job: Job) -> None:
    """UserError for places that the job writes to and that lie in its upload, which Ray deletes."""
    lost = []
    for key, jobs in WRITTEN.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if job.name in jobs and value and not _lasts(value):
            lost.append(f"{key}={value}")
    if lost:
        raise UserError(
            f"{', '.join(lost)} would lie in the job's upload, which Ray deletes: set it to an s3:// URI, or to an "
            "absolute path that all nodes share."
        )


def check_outlasts(where: str, setting: str) -> None:
    """UserError for an absolute path, of a folder that a job has chosen by itself, that lies in the job's upload;
    `setting` names another."""
    if UPLOAD in where:
        raise UserError(
            f"{where} lies in the job's upload, which Ray deletes: set {setting} to an s3:// URI, or to an absolute "
            "path that all nodes share."
        )


def _lasts(value: str) -> bool:
    return "://" in value or value.startswith(("/", "~"))


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
    if any(mark in os.getcwd() for mark in f",{_GLOB}") and any(mark in text for mark in f",{_GLOB}"):
        return text  # the folder's own name would be read as a list or a glob
    if os.path.exists(os.path.expanduser(text)):
        return text if text in NAMES and not os.path.isfile(text) else _absolute(text)
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
    whole = there if os.path.isabs(there) else os.path.join(os.getcwd(), there)
    parts = [part for part in whole.split("/") if part not in ("", ".")]  # `..` stays: a link may lie before it
    return "/" + "/".join(parts)
