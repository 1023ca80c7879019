"""What the storage side of reading and of `prepare` costs at 1,000, 10,000 and 100,000 shards (10 TB).

    python benchmarks/bench_scaling.py --out benchmarks/scaling.json

The code is the real one. Shards are sparse local files of 100 MB; where only bytes written are counted (the journal),
storage is a dictionary. Writes the JSON and, beside it, the table of scaling.md; what scaling.md holds between
`<!-- order -->` and `<!-- end of nodes -->` is left as it is: bench_ranks.py and bench_control_path.py write it.

manifest        reading manifest.json; the layout made of it, pickled and unpickled; a reader opened by the layout
reads           1,000 reads of 128 KiB in random shards, with the most memory maps and open files held after them
cache           a miss of a block in a folder where every shard has its file: 200 misses, the fetch itself costs nothing
journal         bytes written, and seconds, to commit every shard one by one; the same for a resume reading them
prepare         the driver's CPU time per shard of 16 blocks (cutting, starting the writing task, committing) and per
                block of text (starting its reading and tokenising, taking its counts)
progress        seconds to set up, and per report, at 1,000,000 units
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from raygpt import storage
from raygpt.data import journal, pipeline, prepare
from raygpt.data.cache import BLOCK_BYTES, ShardCache
from raygpt.data.corpus import expand_sources
from raygpt.data.journal import Journal, Progress
from raygpt.data.pipeline import Cursor
from raygpt.data.reader import TokenReader
from raygpt.data.shards import Layout, Manifest, Shard, TokenizerInfo, fingerprint, shard_name
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.data.writing import SideWriter, Writing

SHARD_BYTES = 100 * 10**6
READ_BYTES = 128 * 1024


def manifest_of(shards: int) -> Manifest:
    info = TokenizerInfo("gpt2", 50257, 50256, "ab" * 32)
    tokens = SHARD_BYTES // 2
    made = tuple(Shard(shard_name(n), tokens, hashlib.sha256(str(n).encode()).hexdigest()) for n in range(shards))
    total = shards * tokens
    return Manifest(1, "uint16", info, made, total, 1, total, ("made",), fingerprint("uint16", info.sha256, made))


def clock(work: Any, *arguments: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = work(*arguments)
    return time.perf_counter() - begun, found


def measure_manifest(shards: int) -> tuple[dict[str, float], Layout]:
    text = manifest_of(shards).to_json()
    parse, manifest = clock(Manifest.from_json, text)
    make, layout = clock(manifest.layout, "/nowhere")
    data = pickle.dumps(layout)
    unpickle = min(clock(pickle.loads, data)[0] for _ in range(5))
    opened, _ = clock(TokenReader, layout)
    return {
        "manifest_mb": len(text) / 1e6,
        "manifest_parse_s": parse,
        "layout_make_s": make,
        "layout_mb": len(data) / 1e6,
        "layout_unpickle_s": unpickle,
        "reader_open_s": opened,
    }, layout


def measure_reads(layout: Layout, folder: Path) -> dict[str, float]:
    folder.mkdir()
    for name in layout.names:
        with open(folder / name, "wb") as file:
            file.truncate(SHARD_BYTES)
    reader = TokenReader(Layout(str(folder), layout.dtype, layout.fingerprint, layout.starts, layout.names))
    starts = np.random.default_rng(0).integers(0, layout.tokens - READ_BYTES, 1000)
    begun = time.perf_counter()
    for start in starts:
        assert reader.read(int(start), int(start) + READ_BYTES // 2).size == READ_BYTES // 2
    seconds = time.perf_counter() - begun
    maps = Path("/proc/self/maps").read_text().count(str(folder))
    files = sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(folder)) for fd in os.listdir("/proc/self/fd"))
    return {"reads_1000_s": seconds, "reads_maps": maps, "reads_open_files": files}


def measure_cache(layout: Layout, folder: Path) -> dict[str, float]:
    cache = ShardCache(layout, 10**12, folder)
    for index in range(len(layout.names)):
        (cache.folder / f"{index:05d}").touch()
    block = os.urandom(BLOCK_BYTES)
    chosen = np.random.default_rng(1).choice(len(layout.names), 200, replace=False)
    cache.read(int(chosen[0]), BLOCK_BYTES, BLOCK_BYTES + 9, lambda start, stop: block)  # the look at other folders
    begun = time.perf_counter()
    for index in chosen:
        cache.read(int(index), 0, 9, lambda start, stop: block)
    return {"cache_files": len(layout.names), "cache_miss_ms": (time.perf_counter() - begun) / len(chosen) * 1e3}


class Known(Writing):
    """A file that is written already."""

    def wait(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()


def measure_journal(shards: int) -> dict[str, float]:
    """Every train shard committed by itself, as at its cut; bytes of open tokens are not counted."""
    held: dict[str, bytes] = {}
    written = 0

    def write(where: storage.Location, data: bytes) -> None:
        nonlocal written
        written += len(data)
        held[where.name] = data

    real = storage.write_bytes
    storage.write_bytes = write
    try:
        output = storage.locate("/nowhere")
        writers = {side: SideWriter.__new__(SideWriter) for side in ("train", "val")}
        for writer in writers.values():
            writer.shards, writer.writing = [], []
        log = Journal(output, {"settings": {}}, byte_tokenizer(), writers)
        begun = time.perf_counter()
        for number in range(shards):
            made = Known(shard_name(number), SHARD_BYTES // 2, None)  # type: ignore[arg-type]
            writers["train"].writing.append(made)
            state = journal.asdict(Progress(Cursor(number, 0)))
            log._commit(journal._Pending(state, {"train": ([made], None), "val": ([], None)}))
        seconds = time.perf_counter() - begun
    finally:
        storage.write_bytes = real
    segments = [json.loads(data) for name, data in held.items() if re.fullmatch(r"segment-\d+-\d+\.json", name)]
    read = [data for data in segments if len(data["sides"]["train"]["shards"]) == journal.MERGED]
    rest = shards % journal.MERGED
    return {
        "journal_mb": written / 1e6,
        "journal_commit_ms": seconds / shards * 1e3,
        "journal_files_read_at_resume": len(read) + rest,
    }


def measure_prepare(shards: int, folder: Path) -> dict[str, float]:
    """Real tasks write real, small shards: the driver's share does not depend on their size."""
    import ray

    tokens = np.zeros(2**12, np.dtype("<u2"))
    blocks = [ray.put(tokens) for _ in range(16)]
    output = storage.locate(folder)
    writers = {side: SideWriter(output / side, tokens.dtype, 16 * tokens.size) for side in ("train", "val")}
    log = Journal(output, {"settings": {}}, byte_tokenizer(), writers)
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(shards):
        for block in blocks:
            if writers["train"].append(block, tokens.size):
                log.record(Progress())
            log.settle(8 * 16 * tokens.nbytes)
    log.settle(0)
    cpu = time.process_time() - cpu
    wall = time.perf_counter() - begun
    (folder / "lines.jsonl").write_text('{"text": "twenty bytes of text"}\n' * 400_000)
    pipeline.BLOCK_BYTES = 20_000
    plan = pipeline.ReadPlan(tuple(expand_sources([str(folder / "lines.jsonl")])), 0.01, "documents")
    per_block = time.process_time()
    count = sum(1 for _ in pipeline.token_blocks(plan, byte_tokenizer(), Cursor()))
    per_block = (time.process_time() - per_block) / count
    return {
        "prepare_blocks": count,
        "prepare_driver_cpu_ms_per_block": per_block * 1e3,
        "prepare_shards": shards,
        "prepare_driver_cpu_ms_per_shard": cpu / shards * 1e3,
        "prepare_wall_ms_per_shard": wall / shards * 1e3,
    }


def measure_progress(units: int) -> dict[str, float]:
    sizes = np.random.default_rng(0).integers(1, 10**8, units).tolist()
    setup, before = clock(lambda: list(prepare.accumulate(sizes, initial=0)))
    state = Progress(Cursor(units // 2))
    reports = 10_000
    begun = time.perf_counter()
    for _ in range(reports):
        prepare._fraction(before, state, 5)
    each = (time.perf_counter() - begun) / reports
    return {"progress_units": units, "progress_setup_s": setup, "progress_report_us": each * 1e6}


ROWS = [
    ("manifest.json, MB", "manifest_mb", ".2f"),
    ("manifest parsed and checked, s (driver, once)", "manifest_parse_s", ".3f"),
    ("layout made, s (driver, once)", "layout_make_s", ".4f"),
    ("layout pickled, MB (to each reader)", "layout_mb", ".2f"),
    ("layout unpickled, s (each reader)", "layout_unpickle_s", ".4f"),
    ("reader opened by its layout, s", "reader_open_s", ".4f"),
    ("1,000 reads of 128 KiB in random shards, s", "reads_1000_s", ".3f"),
    ("memory maps held after them", "reads_maps", ".0f"),
    ("open files held after them", "reads_open_files", ".0f"),
    ("cache miss among as many files, ms", "cache_miss_ms", ".2f"),
    ("journal written by `prepare`, MB", "journal_mb", ".1f"),
    ("a commit's own time without storage, ms", "journal_commit_ms", ".3f"),
    ("journal files read by a resume", "journal_files_read_at_resume", ".0f"),
]
KEPT = re.compile(r"<!-- order -->.*<!-- end of (order|nodes) -->", re.DOTALL)


def steepest(report: dict[str, Any]) -> str:
    """The rows that the last column shows more than ten times as large as the one before, with the factor."""
    before, last = report["shards"][-2:]
    found = [(title.split(",")[0], last[key] / before[key]) for title, key, _ in ROWS if before[key]]
    return ", ".join(f"{title} ({factor:.1f})" for title, factor in found if factor > 10.05) or "nothing"


def page(report: dict[str, Any], before: str) -> str:
    counts = [entry["shards"] for entry in report["shards"]]
    lines = [
        "# Storage at scale: manifest, reader, cache, journal",
        "",
        f"{report['date']}, {report['machine']}, load average {report['load_average']}; figures in `scaling.json`.",
        "",
        f"    {report['command']}",
        "",
        "Shards of 100 MB (100,000 are 10 TB), sparse files on a local disk; what each row does is told at the head of",
        "`bench_scaling.py`. Ten times as many shards cost more than ten times as much in " + steepest(report) + ".",
        "",
        "| | " + " | ".join(f"{count:,} shards" for count in counts) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for title, key, form in ROWS:
        lines.append(f"| {title} | " + " | ".join(format(entry[key], form) for entry in report["shards"]) + " |")
    driver, progress = report["prepare"], report["progress"]
    each, block = driver["prepare_driver_cpu_ms_per_shard"], driver["prepare_driver_cpu_ms_per_block"]
    lines += [
        "",
        f"`prepare`: the driver's CPU time per shard of 16 blocks is {each:.1f} ms ({driver['prepare_shards']} shards "
        f"through real tasks: cuts, one writing task, one commit), so 100,000 shards take {each * 100:.0f} s of it. "
        f"Handing a block of text to its tasks and taking its counts is {block:.1f} ms "
        f"({driver['prepare_blocks']} blocks).",
        "",
        f"Progress at {progress['progress_units']:,} units: {progress['progress_setup_s']:.3f} s once, then "
        f"{progress['progress_report_us']:.2f} us a report.",
        "",
        "## Order",
        "",
    ]
    kept = KEPT.search(before)
    lines.append(kept[0] if kept else "<!-- order -->\n<!-- end of order -->")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, help="write the JSON here and the table beside it, as .md")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "scaling", **provenance("ray", "pyarrow", "numpy"), "shards": []}
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            entry, layout = measure_manifest(shards)
            entry |= measure_reads(layout, Path(folder) / "shards")
            entry |= measure_cache(layout, Path(folder) / "cache")
            entry |= measure_journal(shards)
        report["shards"].append({"shards": shards, **entry})
        print(json.dumps(report["shards"][-1]), flush=True)
    import ray

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, object_store_memory=500 * 10**6)
    with tempfile.TemporaryDirectory() as folder:
        measure_prepare(20, Path(folder) / "first")  # starts Ray's worker processes
        report["prepare"] = measure_prepare(300, Path(folder) / "out")
    ray.shutdown()
    report["progress"] = measure_progress(10**6)
    report["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps({"prepare": report["prepare"], "progress": report["progress"]}))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
        table = arguments.out.with_suffix(".md")
        table.write_text(page(report, table.read_text() if table.exists() else ""))


if __name__ == "__main__":
    main()
