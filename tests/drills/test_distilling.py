"""Distillation at logit level on real clusters: under ZeRO, from a teacher's stored states, past a lost worker."""

# ruff: noqa: F811 - fixtures of tests/distill are imported by name
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from raygpt.data.reader import TokenReader
from raygpt.data.shards import load_manifest
from raygpt.distill.store_run import Workers, store_states
from raygpt.distill.stored import verify
from raygpt.distill.storing import StatesPlan, write_part
from raygpt.distill.teacher_states import find_teacher
from raygpt.distill.transport import Transport
from raygpt.parallel.distributed import World
from raygpt.run.frame import Outcome, Run, run_job
from raygpt.run.stop import StopToken
from tests.distill.test_runs import SMALL, alone, folder, settings, train  # noqa: F401
from tests.drills.program import raygpt
from tests.train.gloo_pool import GlooPool
from tests.train.running import CUT_ALL, OPTIONS, assert_same_training, sequence


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_under_zero_it_trains_as_under_ddp(
    gloo: GlooPool, folder: Path, alone: list[dict[str, Any]], tmp_path: Path, strategy: str
) -> None:
    own = {"train__deepspeed": CUT_ALL} if strategy == "zero3" else {}
    config = settings(folder, tmp_path, scale__num_workers="2", train__strategy=strategy, **own)
    rows = train(gloo, config)
    assert_same_training(rows, alone, 1e-4)
    assert sequence(rows, "kd_loss") == pytest.approx(sequence(alone, "kd_loss"), rel=1e-4)


def test_states_are_written_by_workers_and_a_student_learns_from_them(
    ray_cluster: str, folder: Path, tmp_path: Path
) -> None:
    """As a user would: the teacher's states of the shards, then a student of two workers that reads them."""
    data = [f"--data.train={folder / 'data'}", f"--data.val={folder / 'data'}", f"--run.storage={tmp_path}"]
    common = ["distill", "--distill.mode=logits", *data, "--scale.num_workers=2", "--track.wandb=off"]
    states, teacher = tmp_path / "states", f"--distill.teacher={folder / 'teacher'}"
    text = raygpt(*common, "--run.name=states", teacher, f"--distill.store={states}")
    assert f"Wrote 1,500 tokens' states to {states}" in text
    assert json.loads((tmp_path / "states" / "states.json").read_text())["bytes_per_token"] == 48
    assert json.loads((tmp_path / "states" / "summary.json").read_text())["bytes"] == 48 * 1500
    assert "is complete" in raygpt(*common, "--run.name=states", teacher, f"--distill.store={states}")
    small = [f"--{key}={value}" for key, value in {**OPTIONS, **SMALL}.items() if not key.startswith("run.")]
    words = [*common, *small, "--run.name=student", f"--distill.teacher={states}", "--data.backend=ray"]
    raygpt(*words)
    summary = json.loads((tmp_path / "student" / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["kd_loss"] > 0 and "teacher_fraction" not in summary
    refused = raygpt(*words, "--run.name=other", "--distill.transport=topk", status=2)
    assert "distill.transport=topk but the states in" in refused


def test_a_lost_writer_and_a_stop_cost_no_part_twice(ray_cluster: str, folder: Path, tmp_path: Path) -> None:
    uri = str(folder / "data")
    source = find_teacher(
        str(folder / "teacher"),
        load_manifest(uri).tokenizer,
        (folder / "data" / "tokenizer.json").read_bytes(),
        precision="auto",
        seq_len=1,
        student=None,
    )
    transport = Transport("sampled", source.width, 257, samples=5)
    plan = StatesPlan(
        load_manifest(uri).layout(uri), str(tmp_path / "states"), source.uri, "d", transport, 16, 3, part_bytes=500
    )
    assert plan.parts > 40
    stop, killed = StopToken(), []

    def work(run: Run) -> Outcome:
        def say(text: str) -> None:
            if "part 5/" in text:
                for process in psutil.Process().children(recursive=True):
                    if "StatesWriter" in " ".join(process.cmdline()) and not killed:
                        process.kill()
                        killed.append(process.pid)
            if "part 20/" in text:
                stop.request()
            said.append(text)

        run.say = say
        return store_states(run, plan, source, Workers(2, False, 1, 3))

    said: list[str] = []
    config = settings(folder, tmp_path)
    first = run_job(config, work, stop=stop)
    assert first.outcome == "stopped" and killed and any("A worker was lost" in text for text in said)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "states").glob("part-*.bin")}
    assert 20 <= len(there) < plan.parts
    stop = StopToken()
    assert run_job(config, work, stop=stop).outcome == "finished"
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "states").glob("part-*.bin")}
    assert {name: now[name] for name in there} == there and len(now) == plan.parts
    alone = source.load(transport, World(0, 1, torch.device("cpu")))
    again = replace(plan, folder=str(tmp_path / "again"))
    reader = TokenReader(uri)
    assert verify(plan.folder).parts == tuple(write_part(again, part, alone, reader) for part in range(plan.parts))
