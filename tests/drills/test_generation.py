"""`raygpt generate` killed, its teacher faulty or killed: each prompt answered once, the same bytes, one pass paid."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygpt import storage
from raygpt.distill.store import AnswerStore
from tests.conftest import save_byte_model
from tests.distill.endpoint import EndpointProcess, Orders, answer_to
from tests.drills.program import Program

PROMPTS = 2000


def write(folder: Path, prompts: int) -> None:
    folder.mkdir()
    lines = (json.dumps({"id": n, "prompt": f"Tell me about number {n}."}) + "\n" for n in range(prompts))
    (folder / "p.jsonl").write_text("".join(lines))


def words(folder: Path | str, *more: str) -> list[str]:
    return [
        "generate",
        f"--run.storage={folder}",
        "--run.name=g",
        f"--generate.prompts={folder}/p.jsonl",
        "--generate.temperature=0",
        "--generate.filters=[]",
        "--generate.dedup=none",
        "--data.tokenizer=bytes",
        *more,
    ]


def finished(*arguments: str) -> dict[str, Any]:
    """The last line of a run that is left to end."""
    program = Program(*arguments)
    assert program.finish(280) == 0, program.output[-4000:]
    return last_line(program)


def last_line(program: Program) -> dict[str, Any]:
    """Standard output's last; Ray may have words on standard error after it."""
    return json.loads([line for line in program.output.splitlines() if line.startswith("{")][-1])


def files(folder: Path) -> dict[str, bytes]:
    """Answers and shards, to the byte."""
    kept = [*(folder / "g/answers").glob("*/*.parquet"), *folder.glob("g/*/manifest.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_driver_killed_twice_under_a_faulty_endpoint_pays_for_one_pass(tmp_path: Path) -> None:
    faulty, calm = tmp_path / "faulty", tmp_path / "calm"
    write(faulty, PROMPTS)
    write(calm, PROMPTS)
    kinds = ("500", "429", "timeout", "garbage", "drop", "model")
    orders = Orders(faults=kinds, share=0.2, retry_after="0.05", slow=0.005)
    asking = ["--teacher.engine=endpoint", "--generate.concurrency=8", "--generate.timeout_seconds=0.7"]
    with EndpointProcess(orders) as endpoint:
        arguments = words(faulty, *asking, f"--teacher.endpoints={endpoint.url}")
        for share in (0.35, 0.7):
            program = Program(*arguments)
            while endpoint.stats()["prompts"] < share * PROMPTS:
                assert program.process is not None and program.process.poll() is None, program.output[-4000:]
                time.sleep(0.02)
            program.kill()
        said = finished(*arguments)
        stats = endpoint.stats()
    print(json.dumps(stats))
    assert (said["prompts"], said["answered"], said["parked"], said["documents"]) == (PROMPTS, PROMPTS, 0, PROMPTS)
    assert said["reused_answers"] >= 0.7 * PROMPTS - 8
    assert set(stats["faults"]) == set(kinds) and sum(stats["faults"].values()) > 0.15 * stats["requests"]
    # what was under way at a kill is asked again; everything else was paid for once
    words_each = len(answer_to("x").split())
    assert stats["tokens"] == stats["answered"] * words_each <= 1.02 * PROMPTS * words_each
    with EndpointProcess() as endpoint:
        finished(*words(calm, *asking, f"--teacher.endpoints={endpoint.url}"))
    assert files(faulty) == files(calm) and len(files(calm)) == 3


@pytest.mark.long
def test_a_teacher_whose_replica_is_killed_twice_answers_every_prompt(tmp_path: Path) -> None:
    model = save_byte_model(tmp_path / "model", seq_len=192, n_layer=2, n_head=2, n_embd=32)
    teacher = ["--teacher.engine=transformers", f"--teacher.model={model}", "--teacher.max_sequences=4"]
    teacher += ["--generate.max_new_tokens=96", "--generate.retries=12"]
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    write(killed, 150)
    write(calm, 150)
    program = Program(*words(killed, *teacher))
    program.wait_for("Teacher .* ready", 200)
    seen: set[int] = set()
    for _ in range(2):
        replica = _new_replica(program.pid, seen)
        _until_answers(killed, len(seen) * 40)
        replica.send_signal(signal.SIGKILL)
    assert program.finish(280) == 0, program.output[-4000:]
    said = last_line(program)
    assert (said["prompts"], said["answered"], said["parked"]) == (150, 150, 0)
    finished(*words(calm, *teacher))
    assert files(killed) == files(calm)


def test_the_nodes_of_a_cluster_read_and_ask_together_and_one_may_be_lost(tmp_path: Path, bucket: str) -> None:
    """Two nodes, of which the one without the driver dies while it asks; prompts and output on S3."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    head = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    write(tmp_path / "local", 1000)
    storage.write_bytes(storage.locate(f"{bucket}/p.jsonl"), (tmp_path / "local/p.jsonl").read_bytes())
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
        orders = Orders(faults=("500", "garbage"), share=0.1, slow=0.02)
        with EndpointProcess(orders) as endpoint:
            more = ["--teacher.engine=endpoint", "--generate.concurrency=16", f"--teacher.endpoints={endpoint.url}"]
            program = Program(*words(bucket, *more, f"--scale.address={cluster.address}"))
            while endpoint.stats()["prompts"] < 300:
                assert program.process is not None and program.process.poll() is None, program.output[-4000:]
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)
            assert program.finish(200) == 0, program.output[-4000:]
            said, stats = last_line(program), endpoint.stats()
        assert "2 nodes" in program.output
        assert (said["prompts"], said["answered"], said["parked"]) == (1000, 1000, 0)
        print(json.dumps(stats))
        assert stats["answered"] <= 1000 + 8  # what the lost node had under way
        store = AnswerStore(storage.locate(f"{bucket}/g/answers/{said['generation']}"))
        assert all(answer.text == answer_to(answer.question.asked) for answer in store.answers())
        assert store.totals()["answered"] == 1000
    finally:
        cluster.shutdown()


def _new_replica(driver: int, seen: set[int]) -> psutil.Process:
    """A replica's process that is not among `seen`, to which it is added."""
    for _ in range(1200):
        for process in psutil.Process(driver).children(recursive=True):
            try:
                name = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if name.startswith("ray::ServeReplica") and process.pid not in seen:
                seen.add(process.pid)
                return process
        time.sleep(0.1)
    raise AssertionError("no replica came up")


def _until_answers(folder: Path, count: int) -> None:
    for _ in range(1200):
        lines = sum(path.read_bytes().count(b"\n") for path in (folder / "g/answers").glob("*/journal-*.jsonl"))
        if lines >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{count} answers never came")
