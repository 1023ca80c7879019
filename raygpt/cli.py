"""`raygpt <job> --config file.yaml --section.key=value`: one program for every job."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence

from raygpt import __version__, terminal
from raygpt.config import Config
from raygpt.config.job import Call, whole_tree
from raygpt.config.places import UPLOAD, check_lasting, with_absolute_paths
from raygpt.config.settings import dump, known_keys, load_config
from raygpt.config.words import parse, split_rest
from raygpt.errors import UserError
from raygpt.jobs import find_jobs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit status: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    if sys.stdout is sys.__stdout__:  # the process's own
        terminal.make_hardy()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"raygpt {__version__}")
        return 0
    try:
        return _run(words[0], words[1:])
    except UserError as error:
        print(_as_errors(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _run(name: str, words: list[str]) -> int:
    jobs = find_jobs()
    job = jobs.get(name)
    if job is None:
        import difflib

        close = difflib.get_close_matches(name, jobs, n=1)
        raise UserError(f"{name!r} is no job{f': did you mean {close[0]}?' if close else ''} (jobs: {', '.join(jobs)})")
    known = ("print_config", "help", *job.flags)
    passed: list[str] = []
    command = shlex.join(["raygpt", name, *words])
    if job.rest is not None:
        words, passed = split_rest(words, known, tuple(job.own))
    file, options, flags = parse(words, known, dict(job.aliases), job.lists, job.words)
    if job.rest is not None and passed:
        options[job.rest] = json.dumps(passed, ensure_ascii=False)
    if "help" in flags:
        print(job_help(name))
        return 0
    config = load_config(
        job,
        file or job.config,
        options,
        check="print_config" not in flags,
        base=job.base,
        tree=whole_tree(jobs.values()),
        warn=lambda sentence: print(f"raygpt: {sentence}", file=sys.stderr),
    )
    if "print_config" in flags:
        print(dump(config), end="")
        return 0
    if UPLOAD in os.getcwd():
        check_lasting(config, job)
    config = with_absolute_paths(config)
    run: Callable[[Config, Call], int] = importlib.import_module(f"raygpt.jobs.{name}").run
    return run(config, Call(frozenset(flags), command))


def job_help(name: str) -> str:
    """Help of one job: its settings with what they take and their defaults."""
    jobs = find_jobs()
    job, tree = jobs[name], whole_tree(jobs.values())
    lines = [
        f"raygpt {name}: {job.summary}.",
        "",
        f"usage: raygpt {name} {_plain_words(job.words)}[--config FILE] [--section.key=value ...] [--print_config]"
        + "".join(f" [--{flag}]" for flag in job.flags)
        + (f" {job.rest.rpartition('.')[2].upper()} [its options ...]" if job.rest else ""),
        "",
        "Settings come from defaults, the file, RAYGPT_SECTION__KEY variables and the command line; later ones win.",
    ]
    width = min(100, max(60, terminal.width()))
    # a job with a file of its own starts from that
    own = None
    if job.config or job.base:
        own = load_config(job, job.config, environ={}, check=False, base=job.base, tree=tree).to_dict()
    for section in job.sections:
        lines += ["", f"{section}: {tree.model_fields[section].description}"]
        for key, allowed, description, default in known_keys(tree):
            if key.startswith(f"{section}."):
                default = own[section][key.partition(".")[2]] if own else default
                lines += _wrap(f"--{key}=", f"{description} ({allowed}; default {shown(default)})", width)
    return "\n".join(lines)


def _plain_words(key: str | None) -> str:
    return f"[{key.rpartition('.')[2].upper()} ...] " if key else ""


def _overview() -> str:
    rows = "\n".join(f"  {name:11s} {job.summary}" for name, job in find_jobs().items())
    return (
        f"raygpt {__version__}: train GPT-2-class language models on a Ray cluster.\n\n"
        "usage: raygpt <job> [--config FILE] [--section.key=value ...]\n\n"
        f"{rows}\n\n`raygpt <job> --help` lists a job's settings."
    )


def _wrap(left: str, text: str, width: int) -> list[str]:
    import textwrap

    column = 34
    lines = textwrap.wrap(text, width - column) or [""]
    first = f"  {left:<{column - 2}}"
    if len(left) > column - 3:
        return [f"  {left}", *(" " * column + line for line in lines)]
    return [first + lines[0], *(" " * column + line for line in lines[1:])]


def shown(value: object) -> str:
    return (
        "none"
        if value is None
        else "''"
        if value == ""
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _as_errors(text: str) -> str:
    lines = text.splitlines()
    if len(lines) == 1:
        return f"raygpt: {lines[0]}"
    return "\n".join([f"raygpt: {len(lines)} problems", *(f"  - {line}" for line in lines)])


if __name__ == "__main__":
    sys.exit(main())
