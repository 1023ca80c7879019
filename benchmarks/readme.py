"""README's tables of speeds, made from the result files: `python benchmarks/readme.py` brings them up to date."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from raygpt.bench.result import read, to_markdown

BEGIN, END = "<!-- speed: made by benchmarks/readme.py -->\n", "<!-- end of speed -->\n"

OTHERS, OTHERS_END = "<!-- others: made by benchmarks/readme.py -->\n", "<!-- end of others -->\n"
LADDER, LADDER_END = "<!-- ladder: made by benchmarks/readme.py -->\n", "<!-- end of ladder -->\n"


def table() -> str:
    """The table in Markdown."""
    training, starts, prepare = (_load(name) for name in ("training", "starts", "prepare"))
    large, later = training["large"], [run["step"] for run in starts["runs"][1:]]
    rows = [
        (
            "training step beside a bare loop around `transformers`' GPT-2 with torch AdamW (4 layers, width 128, one "
            "thread)",
            f"{training['step']['speed_over_transformers']:.2f} times its speed",
            "training",
        ),
        *(
            (f"{what}, through Ray Data: of the memory map's speed", _ratio(training[part], "mmap"), "training")
            for part, what in (("one", "one worker with a core free"), ("two", "two workers on two cores"))
        ),
        ("the same two, reading S3 for the first time", _ratio(training["s3"], "mmap"), "training"),
        ("one worker: of a bare process on the memory map", _ratio(training["one"], "torchrun"), "training"),
        ("two workers: of torchrun on the memory map", _ratio(training["two"], "torchrun"), "training"),
        (
            "processor time of all processes but the workers (Ray, the reader, the driver) over theirs, one and two "
            "workers: after a minute",
            ", ".join(f"{training['steady'][f'{part}_others_cpu_over_workers']:.1%}" for part in ("one", "two")),
            "training",
        ),
        (
            "the same between step 100 and step 600, the first half minute: one, two, two on S3",
            ", ".join(f"{training[part]['others_cpu_over_workers']:.1%}" for part in ("one", "two", "s3")),
            "training",
        ),
        (
            "waiting for data, 10M parameters, Ray Data",
            f"{large['data_wait_fraction']:.2%} of step time",
            "training",
        ),
        (
            "an asynchronous checkpoint holds training up for",
            f"{1000 * max(large['checkpoint_stall_seconds']):.0f} ms at most",
            "training",
        ),
        (
            "first step of a run of two workers on a cluster that is there",
            f"{starts['runs'][0]['step']:.1f} s, {statistics.median(later):.1f} s in later runs",
            "starts",
        ),
        (
            "`raygpt quickstart` to its first step, corpus, tokenizer and tokens included",
            f"{statistics.median(starts['quickstart_to_first_step']):.1f} s",
            "starts",
        ),
        (
            "`prepare` beside the raw tokenizer's own batch speed on the same cores",
            f"{prepare['ratio']:.2f} times its speed",
            "prepare",
        ),
    ]
    return _table("what", [(what, figure, f"{file}.json") for what, figure, file in rows])


def others() -> str:
    """What memory and quality were measured, in Markdown."""
    memory, shakespeare = (_load(name) for name in ("memory", "shakespeare"))
    limited = {row["stage"]: row for row in memory["rows"] if row["preset"] == "gpt2-xl" and row["limited"]}
    stages = [limited[stage] for stage in ("load", "save", "export")]
    peaks = ", ".join(f"{row['peak'] / 1e9:.2f}" for row in stages)
    shares = ", ".join(f"{100 * row['peak'] / row['planned']:.0f}" for row in stages)
    (trained,) = [row for row in memory["rows"] if (row["stage"], row["preset"]) == ("train", "gpt2-medium")]
    theirs = shakespeare["reference"]
    return _table(
        "what else",
        [
            (
                f"GPT-2 XL below {memory['limit_bytes'] / 1e9:.0f} GB: loading, one rank's save, export",
                f"{peaks} GB; {shares} % of the plan",
                "memory.md",
            ),
            (
                "two steps of GPT-2 Medium, everything offloaded, beside the plan",
                f"{trained['peak'] / 1e9:.2f} GB, planned {trained['planned'] / 1e9:.2f}",
                "memory.md",
            ),
            (
                "shakespeare-bytes: validation loss, first step to last",
                f"{shakespeare['val_loss']:.4f} (nanoGPT's weights: {theirs['val_loss']:.3f}), "
                f"{shakespeare['seconds_first_to_last_step']:.0f} s ({theirs['seconds']:.0f} s)",
                "shakespeare.json",
            ),
        ],
    )


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| {title} | measured | file |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {figure} | `benchmarks/{file}` |" for what, figure, file in rows)]) + "\n"


def replace(text: str) -> str:
    """`text` of the README with the tables between their marks renewed."""
    parts = ((BEGIN, table(), END), (OTHERS, others(), OTHERS_END), (LADDER, ladder(), LADDER_END))
    for begin, made, end in parts:
        before, rest = text.split(begin)
        text = before + begin + made + end + rest.split(end)[1]
    return text


def ladder() -> str:
    """The ladder that was measured on a CPU, and on GPUs where there are results of them."""
    files = [*sorted(HERE.glob("ladder_*.json")), *sorted((HERE / "gpu").glob("ladder*.json"))]
    return "\n".join(f"`{path.relative_to(HERE.parent)}`:\n\n{to_markdown(read(path))}" for path in files)


def _ratio(part: dict[str, Any], of: str) -> str:
    each = ", ".join(f"{ratio:.3f}" for ratio in part[f"of_{of}_each"])
    return f"{part[f'of_{of}']:.3f} (each {each}; with the start {part[f'of_{of}_with_start']:.3f})"


def _load(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


if __name__ == "__main__":
    readme = HERE.parent / "README.md"
    readme.write_text(replace(readme.read_text()))
