"""Every command of docs/distillation.md runs, in order, with a real teacher: fewer steps and prompts, nothing else."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import start_ray
from tests.drills.program import ROOT
from tests.drills.program import raygpt as run_here

PAGE = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
SMALL = {
    "prepare": ["--prepare.max_documents=150", "--data.tokenizer=train:512"],
    "pretrain": ["--train.epochs=none", "--train.max_steps=20", "--train.global_batch_tokens=1024", "--eval.batches=2"],
    "generate": [
        "--generate.max_prompts=16",
        "--generate.max_new_tokens=24",
        "--generate.min_characters=20",
        "--generate.filters=[]",
        "--generate.val_fraction=0.5",
    ],
    "distill": ["--train.max_steps=6", "--train.global_batch_tokens=256", "--eval.batches=2"],
    "finetune": ["--train.max_steps=6", "--train.global_batch_tokens=256", "--eval.batches=2"],
    "evaluate": [
        "--compare.documents=4",
        "--compare.samples=1",
        "--compare.sample_tokens=8",
        "--compare.resamples=200",
    ],
    "sample": ["--sample.max_new_tokens=8"],
}


@pytest.fixture
def cluster_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster started in the test's folder, as the commands themselves would: the page names places from there."""
    import ray

    monkeypatch.chdir(tmp_path)
    ray.shutdown()
    start_ray(cpus=4, gpus=0, object_store=400_000_000)
    yield
    ray.shutdown()


def test_the_commands_are_of_kinds_that_are_tested() -> None:
    assert [words[1] for words in COMMANDS if words[0] == "raygpt"] == list(SMALL)
    assert {words[0] for words in COMMANDS} == {"make", "raygpt"}


@pytest.mark.timeout(900)
def test_the_walk_through_runs_from_beginning_to_end(
    cluster_here: None, shared_data: Path, teacher_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / ".cache").symlink_to(ROOT / ".cache")
    for words in COMMANDS:
        if words[0] != "raygpt":
            continue
        words = [word.replace("../shared/data", str(shared_data)) for word in words]
        if words[1] == "generate":
            files = ["openstax_ccby.parquet", "openwebtext_1k.parquet"]
            words.append(f"--generate.prompts={json.dumps([str(shared_data / 'pretrain_text' / n) for n in files])}")
        kept = [word for word in words[1:] if not any(word.startswith(s.partition("=")[0]) for s in SMALL[words[1]])]
        run_here(*kept, *SMALL[words[1]])
    figures = json.loads((tmp_path / "runs" / "comparison" / "arms.json").read_text())
    student, distilled, alone, teacher = figures["arms"]
    assert distilled["generation"]["teacher"].count("SmolLM2")
    assert "no-teacher" in distilled["as_many_tokens_as"] and "distilled" in alone["as_much_compute_as"]
    for text in ("real", "synthetic"):
        bits = {arm["name"]: arm["texts"][text]["bits_per_byte"]["value"] for arm in figures["arms"]}
        assert bits[teacher["name"]] < min(bits[arm["name"]] for arm in (student, distilled, alone))
