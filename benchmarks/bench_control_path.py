"""What the driver of a job, and each worker at its start, do for 10, 100 and 1,000 nodes; and 10,000 steps of a run.

    python benchmarks/bench_control_path.py

The code is the real one, the nodes are simulated: 8 workers each, 100,000 shards of 100 MB (10 TB). Writes
benchmarks/control_path.json and the part "Nodes" of benchmarks/scaling.md. Every row is the best of three. The exponent
is that of nodes^x between 100 and 1,000 nodes: 1 is linear, 0 does not depend on the number of nodes.

environment     the nodes' lists of 200 packages come in pickled and are compared: all equal, and all different
bill            one look of a run's bill at the nodes, and its sum
assignment      what every worker gets, pickled once by the driver, and unpickled by each worker
placement       a worker finds who reads with it on its node, and the rows of a first block of its are worked out
mailbox         1,000 records from rank 0 to the driver: only one rank speaks, however many there are
runs            `raygpt runs` over as many finished runs as there are nodes, in a local folder
steps           (--steps 10000) a real run on Ray Data and one worker of this machine: open files and sockets of the
                worker, the reader and the driver, and bytes in the object store, looked at 20 times
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import re
import sys
import tempfile
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench_scaling import manifest_of
from benchmarks.provenance import provenance

NODES = (10, 100, 1000)
WORKERS = 8  # of a node
SHARDS = 100_000
PART = re.compile(r"<!-- nodes -->.*<!-- end of nodes -->", re.DOTALL)


def best(work: Callable[[], Any], times: int = 3) -> tuple[float, float]:
    """(seconds of CPU time, MB at the peak of one more call, which tracing makes slow)."""
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak / 1e6


def measure_environment(nodes: int) -> dict[str, float]:
    from raygpt.cluster.doctor.environment import Environment, compare

    packages = {f"package-{n}": f"1.{n}.0" for n in range(200)}
    here = Environment({**packages, "torch": "2.13.0"})

    def compared(torch_of: Callable[[int], str], status: str) -> Callable[[], None]:
        answers = {f"node-{n}": pickle.dumps(Environment({**packages, "torch": torch_of(n)})) for n in range(nodes)}

        def work() -> None:
            assert compare(here, {name: pickle.loads(data) for name, data in answers.items()}).status == status

        return work

    same, mb = best(compared(lambda n: "2.13.0", "ok"))
    other, _ = best(compared(lambda n: f"2.12.{n}", "fail"))
    return {"environment_s": same, "environment_mb": mb, "environment_differs_s": other}


def measure_bill(nodes: int) -> dict[str, float]:
    from raygpt.track.cost import Bill, Node

    found = [Node(str(n), "p5.48xlarge", started=1000.0 + n) for n in range(nodes)]
    bill = Bill("auto", since=0.0, nodes=lambda: found, clock=lambda: 1e6)

    def work() -> None:
        bill.look()
        assert (bill.usd() or 0) > 0 and (bill.usd_per_hour() or 0) > 50 * nodes

    seconds, mb = best(work)
    return {"bill_look_s": seconds, "bill_mb": mb}


def measure_assignment(nodes: int) -> dict[str, float]:
    """Ray puts it into the object store once; every worker reads it from there."""
    from ray import cloudpickle

    from raygpt.config.settings import load_config
    from raygpt.data.order import Order
    from raygpt.train.plan import TrainPlan
    from raygpt.train.worker import Assignment

    layout = manifest_of(SHARDS).layout("/nowhere")
    order = Order(layout.fingerprint, 1, 1024, 8 * WORKERS * nodes, layout.tokens)
    fields: dict[str, Any] = dict.fromkeys(Assignment.__dataclass_fields__)
    fields |= {"config": load_config("pretrain", None, {"data.train": "x"}, {}).to_dict(), "train": layout}
    assignment = Assignment(**{**fields, "val": layout, "plan": (TrainPlan.__name__, order)})  # type: ignore[arg-type]
    held: list[bytes] = []
    made, mb = best(lambda: held.append(cloudpickle.dumps(assignment)))
    data = held[-1]
    begun, some = time.process_time(), min(nodes * WORKERS, 80)
    for _ in range(some):
        pickle.loads(data)
    each = (time.process_time() - begun) / some
    return {
        "assignment_make_s": made,
        "assignment_mb": len(data) / 1e6,
        "assignment_peak_mb": mb,
        "assignment_each_ms": each * 1e3,
    }


def measure_placement(nodes: int) -> dict[str, float]:
    from raygpt.data.order import Order
    from raygpt.data.service import Group
    from raygpt.data.stream import Source

    layout = manifest_of(1000).layout("/nowhere")
    world = nodes * WORKERS
    order = Order(layout.fingerprint, 1, 1024, 8 * world, 5 * 10**12)
    names = [uuid.uuid4().hex for _ in range(nodes)]
    gathered = pickle.dumps([names[rank // WORKERS] for rank in range(world)])

    def work() -> None:
        """As a worker does it (raygpt.train.worker), then its node's reader."""
        found = pickle.loads(gathered)
        here = [rank for rank, node in enumerate(found) if node == found[world - 1]]
        group, source = Group("group", tuple(here), 10**6), Source(layout, order, world - 1, world)
        starts = order.chunk_starts(order.chunk(1000, 4), source.lanes)
        assert len(group.ranks) == WORKERS and starts.size == 4 * source.local_rows

    seconds, mb = best(work)
    return {"placement_each_ms": seconds * 1e3, "placement_mb": mb}


def measure_mailbox(nodes: int) -> dict[str, float]:
    from raygpt.run.control import RunControl

    mailbox = RunControl.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    record = {f"figure_{n}": 1.0 for n in range(30)} | {"world_size": nodes * WORKERS}

    def work() -> None:
        for step in range(1000):
            mailbox.exchange(pickle.loads(pickle.dumps([("record", {**record, "step": step})])))
        assert len(mailbox.take()) == 1000

    return {"mailbox_1000_s": best(work)[0]}


def measure_runs(nodes: int) -> dict[str, float]:
    from raygpt import storage
    from raygpt.config.settings import dump, load_config
    from raygpt.run.listing import list_runs, table
    from raygpt.run.lock import Attempt

    settings = dump(load_config("pretrain", None, {"data.train": "x", "train.max_steps": "1000"}, {}))
    attempts = json.dumps([asdict(Attempt("a", "host", 1, 0.0, 1e9, 2e9, "finished"))])
    records = "".join(json.dumps({"step": step, "train_loss": 3.0, "time": 1e9}) + "\n" for step in range(1, 1001))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(nodes):
            run = Path(folder) / f"run-{number}"
            run.mkdir()
            (run / "config.yaml").write_text(settings)
            (run / "attempts.json").write_text(attempts)
            (run / "metrics.jsonl").write_text(records)
        where = storage.locate(folder)
        seconds, mb = best(lambda: table(list_runs(where), now=2e9))
        assert {(run.state, run.step) for run in list_runs(where)} == {("finished", 1000)}
    return {"runs_s": seconds, "runs_mb": mb}


MEASURED = (
    measure_environment,
    measure_bill,
    measure_assignment,
    measure_placement,
    measure_mailbox,
    measure_runs,
)
ROWS = [
    ("environments of all nodes compared, equal, s", "environment_s", ".4f"),
    ("the same, each with another torch, s", "environment_differs_s", ".4f"),
    ("memory of that, MB", "environment_mb", ".1f"),
    ("a look of the bill and its sum, s (every 10 s)", "bill_look_s", ".4f"),
    ("memory of that, MB", "bill_mb", ".2f"),
    ("assignment pickled, s (driver, once)", "assignment_make_s", ".3f"),
    ("its size, MB", "assignment_mb", ".2f"),
    ("assignment unpickled, ms (each worker)", "assignment_each_ms", ".2f"),
    ("who reads here, and a first block, ms (each worker)", "placement_each_ms", ".2f"),
    ("memory of that, MB", "placement_mb", ".2f"),
    ("1,000 records through the mailbox, s", "mailbox_1000_s", ".4f"),
    ("as many runs listed, s", "runs_s", ".3f"),
    ("memory of that, MB", "runs_mb", ".1f"),
]


def exponent(entries: list[dict[str, float]], key: str) -> float:
    """x where the figure grows as nodes^x from the last but one number of nodes to the last."""
    (few, before), (many, last) = ((entry["nodes"], max(entry[key], 1e-9)) for entry in entries[-2:])
    return math.log(last / before) / math.log(many / few)


class Watched:
    """Open files of the worker, the reader and this driver, and bytes in the object store, while a run goes on."""

    def __init__(self) -> None:
        self.samples: list[dict[str, float]] = []

    def look(self, step: int) -> None:
        import psutil
        import ray

        handles = {"driver": psutil.Process().num_fds(), "workers": 0, "readers": 0}
        for process in psutil.Process().children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                kind = "workers" if "RayTrainWorker" in title else "readers" if "ReaderService" in title else None
                if kind:
                    handles[kind] += process.num_fds()
            except psutil.Error:
                continue
        total, free = ray.cluster_resources(), ray.available_resources()
        store = total["object_store_memory"] - free.get("object_store_memory", 0)
        self.samples.append({"step": step, **handles, "object_store_mb": store / 1e6})


def run_steps(steps: int) -> list[dict[str, float]]:
    """Samples of a run of that many steps of a model that is hardly there."""
    import io

    from raygpt.cluster.connect import start
    from raygpt.config.settings import load_config
    from raygpt.train.resolve import resolve
    from raygpt.train.trainer import run_training

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from benchmarks.bench_training import write_shards

    watched, ended = Watched(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(f"{folder}/shards")
        options = {
            "data.train": shards, "data.val": shards, "run.storage": folder, "run.name": "steps",
            "model.preset": "nano", "model.n_layer": 1, "model.n_head": 1, "model.n_embd": 16, "model.seq_len": 16,
            "scale.num_workers": 1, "train.max_steps": steps, "train.global_batch_tokens": 64,
            "train.micro_batch_size": 4, "train.log_every": max(1, steps // 20), "train.checkpoint_every": steps // 4,
            "eval.every": 0, "track.wandb": "off", "track.tensorboard": "false",
        }  # fmt: skip
        start(cpus=4, gpus=0, object_store_bytes=300_000_000)
        config = load_config("pretrain", None, {key: str(value) for key, value in options.items()}, {})
        screen = io.StringIO()

        def watch() -> None:
            seen = 0
            while not ended.wait(0.2):
                found = [int(step) for step in re.findall(r"step (\d+)/", screen.getvalue())]
                if found and found[-1] > seen:
                    seen = found[-1]
                    watched.look(seen)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            outcome = run_training(config, resolve(config), "…", screen)
        finally:
            ended.set()
            thread.join()
        assert outcome.outcome == "finished", screen.getvalue()
    return watched.samples


def page(report: dict[str, Any], before: str) -> str:
    """scaling.md with the part between the marks written anew; at its end where there is none."""
    entries = report["nodes"]
    lines = [
        "<!-- nodes -->",
        f"`{report['command']}` on {report['machine']}, {report['date']}, load average {report['load_average']} "
        f"(benchmarks/control_path.json). {WORKERS} workers a node, {SHARDS:,} shards. `x` is the exponent of the "
        "number of nodes from 100 to 1,000: 1 is linear, 0 does not depend on it.",
        "",
        "| | " + " | ".join(f"{entry['nodes']:,} nodes" for entry in entries) + " | x |",
        "|---" * (len(entries) + 2) + "|",
    ]
    for title, key, form in ROWS:
        figures = " | ".join(format(entry[key], form) for entry in entries)
        lines.append(f"| {title} | {figures} | {exponent(entries, key):.2f} |")
    if samples := report.get("steps"):
        kinds = ("driver", "workers", "readers", "object_store_mb")
        lines += ["", f"A run of {samples[-1]['step']:,} steps on Ray Data, one worker:", ""]
        lines += [
            "| step | open files of the driver | of the worker | of the reader | object store, MB |",
            "|---" * 5 + "|",
        ]
        for sample in [*samples[: -1 : max(1, len(samples) // 6)], samples[-1]]:
            figures = " | ".join(format(sample[kind], ".1f" if "mb" in kind else ".0f") for kind in kinds)
            lines.append(f"| {sample['step']:,} | {figures} |")
    lines.append("<!-- end of nodes -->")
    part = "\n".join(lines)
    return PART.sub(lambda _: part, before) if PART.search(before) else f"{before.rstrip()}\n\n## Nodes\n\n{part}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES))
    parser.add_argument("--steps", type=int, default=10_000, help="of the real run; 0: none")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/control_path.json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "control_path", **provenance("ray", "numpy"), "nodes": []}
    for nodes in arguments.nodes:
        entry: dict[str, float] = {"nodes": nodes}
        for measure in MEASURED:
            entry |= measure(nodes)
        report["nodes"].append(entry)
        print(json.dumps(entry), flush=True)
    if arguments.steps:
        report["steps"] = run_steps(arguments.steps)
        print(json.dumps(report["steps"]))
    report["load_average"] = round(os.getloadavg()[0], 1)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    text = ROOT / "benchmarks/scaling.md"
    text.write_text(page(report, text.read_text()))


if __name__ == "__main__":
    main()
