"""The parts of once.sh, each a process with a time of its own; see there for how to run it. Standard library only."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAST_RUNG_SECONDS = 60
LEAST_SECONDS = 12  # nothing is begun for less: importing torch alone takes some


@dataclass(frozen=True)
class Part:
    """One command (its arguments after the interpreter) and the seconds it may take at most."""

    name: str
    words: list[str]
    seconds: float
    needs: str | None = None  # a package

    def command(self, out: Path) -> list[str]:
        return [sys.executable, *self.words, "--out", str(out / f"{self.name}.json")]


def bench(name: str, seconds: float, *words: str, needs: str | None = None) -> Part:
    fixed = ["-m", "raygpt.bench.step", "--steps", "20", "--seconds", "8"]
    return Part(name, [*fixed, *words], seconds, needs)


def rungs(seconds: float, *words: str) -> Part:
    """The step from plain fp32 to the trainer's own; what is measured when its time is over is kept."""
    # no rung is begun after it: the last one, whose loss is another function, may have to be compiled for a minute
    limit = f"--time_limit={seconds - LAST_RUNG_SECONDS:.0f}"
    fixed = ["-m", "raygpt.bench", "--repeats", "3", "--steps", "10", "--seconds", "1", limit]
    return Part("ladder", [*fixed, *words], seconds)


def everything() -> list[Part]:
    """What matters most comes first, right after the questions whether it works at all.

    The ladder's share is reckoned, not measured: four rungs are compiled anew (30 to 60 s each where nothing is cached;
    the fused optimizer's finds the compiled code of the rung below), the others take a few seconds each.
    """
    pieces = ["--precision", "bf16", "--compile"]
    rows = ["--preset", "gpt2", "--micro_batch"]
    xl = ["--preset", "gpt2-xl", "--activation_checkpointing", "--micro_batch", "8"]
    return [
        Part("first-contact", ["tests/gpu/first_contact.py"], 120),
        bench("bf16-compile-pieces-64", 70, *rows, "64", *pieces),
        rungs(290, "--preset", "gpt2", "--micro_batch", "16"),  # 16 rows, as the ladder that it is held to
        bench("bf16-compile-pieces-64-flash", 60, *rows, "64", *pieces, "--attention", "flash"),
        bench("bf16-compile-pieces-64-ddp", 60, *rows, "64", *pieces, "--process_group"),
        bench("xl-bf16", 70, *xl, "--precision", "bf16", "--grad_accum", "2"),
        bench(
            "xl-16gb",
            120,
            *xl,
            *["--strategy", "zero2", "--offload", "optimizer", "--precision", "fp16", "--memory_limit_gb", "16"],
            needs="deepspeed",
        ),
    ]


def toy() -> list[Part]:
    small = ["--preset", "nano", "--vocab_size", "300", "--seq_len", "32", "--device", "cpu", "--micro_batch", "2"]
    compiled = ["--precision", "bf16", "--compile", "--compile_backend", "aot_eager", "--loss_tokens", "16"]
    return [
        Part("first-contact", ["tests/gpu/first_contact.py", "--device", "cpu"], 150),
        rungs(100, "--toy", "--device", "cpu"),
        bench("bf16-compile-pieces-ddp", 100, *small, *compiled, "--process_group"),
        bench("xl-16gb", 100, *small, "--strategy", "zero2", "--memory_limit_gb", "16", needs="deepspeed"),
    ]


def run(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run one part for at most `seconds`; how it went. Its output goes to a log beside its JSON file."""
    if part.needs is not None and not has(part.needs):
        return {"part": part.name, "status": f"left out: {part.needs} is not installed"}
    if seconds < LEAST_SECONDS:
        return {"part": part.name, "status": "left out: no time left"}
    began = time.monotonic()
    limit = min(part.seconds, seconds)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(out / f"{part.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            part.command(out), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "done" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's workers too
            process.wait()
            status = f"stopped after {limit:.0f} s"
    return {"part": part.name, "status": status, "seconds": round(time.monotonic() - began, 1)}


def has(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # made unimportable
        return False


def summary(results: list[dict[str, Any]], out: Path) -> str:
    """A table of what was measured, the first contact's cases, and the end of the log of what failed."""
    rows = [
        "| part | outcome | tok/s | MFU | step | peak memory | attention | start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rest = []
    for result in results:
        name = result["part"]
        path, log = out / f"{name}.json", out / f"{name}.log"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        cells = [""] * 6
        if "tokens_per_second" in found:
            cells = [
                f"{found['tokens_per_second']:,.0f}",
                f"{found['mfu']:.1%}" if "mfu" in found else "",
                f"{found['step_seconds_median'] * 1000:.1f} ms",
                f"{found['peak_memory_bytes'] / 1e9:.1f} GB",
                found["attention"],
                f"{found['warmup_seconds']:.0f} s",
            ]
        rows.append(f"| {name} | {result['status']} | " + " | ".join(cells) + " |")
        if "rows" in found and (table := out / f"{name}.md").exists():
            rest.append(f"\n{table.read_text(encoding='utf-8')}")
        for case in found.get("cases", []):
            rest.append(f"- {'pass' if case['passed'] else 'FAIL'} {case['case']}: {case['found'].strip()[-600:]}")
        if "left out" not in result["status"] and result["status"] != "done" and log.exists():
            end = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            rest.append(f"\nThe end of {log.name}:\n\n```\n{end.strip()}\n```")
    return "\n".join([*rows, "", *rest]) + "\n"


def main() -> int:
    ends = time.monotonic() + float(os.environ.get("RAYGPT_ONCE_SECONDS", "410"))
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "gpu").resolve()
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for part in toy() if os.environ.get("RAYGPT_ONCE_TOY") else everything():
        for ending in ("json", "csv", "md", "log"):
            (out / f"{part.name}.{ending}").unlink(missing_ok=True)
        results.append(run(part, out, ends - time.monotonic()))
        print(*(str(value) for value in results[-1].values()), flush=True)
        (out / "once.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (out / "summary.md").write_text(summary(results, out), encoding="utf-8")
    print((out / "summary.md").read_text(encoding="utf-8"))
    good = ("done", "left out")
    return 0 if all(result["status"].startswith(good) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
