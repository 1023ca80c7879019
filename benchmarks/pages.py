"""benchmarks/README.md, made from every result file here: `python benchmarks/pages.py` brings it up to date.

What was measured is the first paragraph of the script that measured it; nothing is typed by hand.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from raygpt.bench.result import describe, from_json, is_result, to_markdown

HEAD = """# What has been measured

Made by `python benchmarks/pages.py` from the result files beside it; nothing here is typed by hand. Each file has its
hardware, versions, date and command where it recorded them, and says so where it did not.

"""
PROVENANCE = ("command", "date", "machine", "hardware", "versions", "commit")
NOT_FIGURES = {*PROVENANCE, "benchmark", "load_average"}
NO_REPEATS = ("interval", "load average", "by tenths")  # lists of such names: their parts are no repeats of one figure
SCRIPTS = {
    "raygpt.bench.step": "raygpt/bench/step.py",
    "raygpt.bench": "raygpt/bench/__main__.py",
    "raygpt benchmark": "raygpt/jobs/benchmark.py",
}


def page() -> str:
    """The whole page."""
    contents = [f"- [{name_of(path)}](#{re.sub('[./]', '', name_of(path))})" for path in files()]
    return HEAD + "\n".join(contents) + "\n\n" + "\n".join(section(path) for path in files())


def files() -> list[Path]:
    """All result files: those of this folder, then those that tests/gpu/once.sh brought from a GPU."""
    return [*sorted(HERE.glob("*.json")), *sorted((HERE / "gpu").glob("*.json"))]


def name_of(path: Path) -> str:
    """ladder_cpu.json, gpu/ladder.json."""
    return str(path.relative_to(HERE)) if path.is_relative_to(HERE) else path.name


def section(path: Path) -> str:
    """One result file."""
    text = path.read_text(encoding="utf-8")
    tree = json.loads(text)
    lines = [f"## {name_of(path)}", ""]
    if is_result(tree):
        result = from_json(text, path.name)
        lines += [what(path, result.provenance.get("command")), "", to_markdown(result).rstrip()]
        for plot in sorted(path.parent.glob(f"{path.stem}*.png")):
            lines += ["", f"![{plot.stem}]({name_of(plot)})"]
        return "\n".join([*lines, ""])
    parts = parts_of(tree if isinstance(tree, dict) else {"parts": tree})
    command = next((part["command"] for part in parts.values() if "command" in part), None)
    lines += [what(path, command), ""]
    for name, part in parts.items():
        if name:
            lines += [f"### {path.stem}: {name}", ""]
        lines += [*tables(part), describe(as_provenance(part)), ""]
    return "\n".join(lines)


def parts_of(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"": the file}, or its parts by name where each was measured by a command of its own."""
    parts = {name: value for name, value in tree.items() if isinstance(value, dict) and "command" in value}
    return parts if parts and len(parts) == len(tree) else {"": tree}


def as_provenance(part: dict[str, Any]) -> dict[str, Any]:
    found = {name: part[name] for name in PROVENANCE if name in part}
    if "machine" in found:
        found["hardware"] = found.pop("machine")
    if isinstance(load := part.get("load_average"), (int, float)):
        found["load_average"] = load
    return found


def what(path: Path, command: str | None) -> str:
    """What a file holds: the first paragraph of the script that its command names, or that is called after it."""
    script = script_of(path, command)
    if script is None:
        return "What was measured: not recorded."
    first = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return f"{' '.join(first.removeprefix('PURE.').split())} (`{script.relative_to(HERE.parent)}`)"


def script_of(path: Path, command: str | None) -> Path | None:
    named = [word for word in (command or "").split() if word.endswith(".py")]
    known = [place for words, place in SCRIPTS.items() if words in (command or "")]
    guesses = [f"benchmarks/{name}{path.stem}.py" for name in ("bench_", "")]
    guesses += [f"benchmarks/bench_{path.stem.partition('_')[0]}.py"]
    return next((HERE.parent / each for each in (*named, *known, *guesses) if (HERE.parent / each).is_file()), None)


def tables(part: dict[str, Any]) -> list[str]:
    """Markdown: single figures in one table, lists of records in tables of their own."""
    single, lists = [], []
    for name, value in flat({key: value for key, value in part.items() if key not in NOT_FIGURES}):
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            lists.append((name, value))
        else:
            single.append(f"| {name} | {told(name, value)} |")
    lines = ["| figure | value |", "|---|---|", *single, ""] if single else []
    for name, records in lists:
        rows = [dict(flat(record)) for record in records]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"{name}:", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(told(column, row.get(column, "")) for column in columns) + " |" for row in rows] + [
            ""
        ]
    return lines


def flat(tree: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(words to it, value) of all that is no mapping."""
    for name, value in tree.items():
        words = f"{before}{name}".replace("_", " ")
        if isinstance(value, dict):
            yield from flat(value, f"{words}, ")
        else:
            yield words, value


def told(name: str, value: Any) -> str:
    """The figure of that name; a list that holds no repeats part by part."""
    if isinstance(value, list) and name.endswith(NO_REPEATS):
        between = "–" if name.endswith("interval") else ", "
        return between.join(shown(each) for each in value)
    return shown(value)


def shown(value: Any) -> str:
    """A figure in four digits; numbers of a list as their median, lowest and highest."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, list):
        if value and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in value):
            spread = f"{shown(min(value))}–{shown(max(value))}, n={len(value)}"
            return f"{shown(statistics.median(value))} ({spread})" if len(value) > 1 else shown(value[0])
        return "; ".join(shown(each) for each in value) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in flat(value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
