"""Every command of the README runs: the walk-through for real on small data, the big jobs as far as a dry run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygpt.jobs import find_jobs
from tests.conftest import S3, start_ray
from tests.drills.program import ROOT
from tests.drills.program import raygpt as run_here

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
# what keeps a run short; the README's own settings stay in force where they are not named here
SMALL = {
    "pretrain": [
        "--train.max_steps=6",
        "--train.global_batch_tokens=1024",
        "--train.log_every=2",
        "--track.wandb=off",
        "--eval.batches=1",
    ],
    "finetune": [
        "--train.max_steps=6",
        "--train.global_batch_tokens=1024",
        "--train.log_every=2",
        "--track.wandb=off",
        "--eval.batches=1",
        "--eval.every=3",
    ],
    "sample": ["--sample.max_new_tokens=12"],
    "plan": ["--plan.disk_gb=500"],
}


def of(*programs: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in COMMANDS if shlex.split(line, comments=True)[0] in programs]


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    kinds = {shlex.split(line, comments=True)[0] for line in COMMANDS}
    assert kinds <= {"raygpt", "make", "ray", "python", "git", "cd", "wandb"}, kinds
    assert {"raygpt", "make", "ray"} <= kinds


def test_every_make_target_and_script_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in of("make"):
        assert re.search(rf"^{words[1]}:", makefile, flags=re.M), words
    for words in of("ray"):
        assert words[:3] == ["ray", "job", "submit"]
        json.loads(words[words.index("--runtime-env-json") + 1])
        script = words[words.index("python") + 1]
        assert (ROOT / script).is_file()
        assert (ROOT / words[words.index("--config") + 1]).is_file()


def test_the_benchmark_command_runs(tmp_path: Path) -> None:
    import subprocess
    import sys

    commands = [words for words in of("python") if words[1:3] == ["-m", "raygpt.bench.step"]]
    ladders = [words for words in of("python") if words[1:3] == ["-m", "raygpt.bench"]]
    assert commands and ladders
    for words in ladders:
        done = subprocess.run([sys.executable, *words[1:], "--toy"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and "| fused loss |" in done.stdout, done.stderr
    for words in commands:
        small = ["--preset=nano", "--seq_len=16", "--micro_batch=2", "--steps=2", "--device=cpu", "--precision=fp32"]
        kept = [word for word in words[1:] if word != "--compile"]
        done = subprocess.run([sys.executable, *kept, *small], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def cluster_here(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster started in the test's folder, as the commands themselves would: the README names places from there."""
    import ray

    monkeypatch.chdir(tmp_path)
    ray.shutdown()
    start_ray(cpus=3, gpus=0, object_store=400_000_000)
    yield
    ray.shutdown()


@pytest.mark.timeout(900)
def test_the_walk_through_runs_from_beginning_to_end(
    cluster_here: None, bucket: str, shared_data: Path, tmp_path: Path
) -> None:
    from raygpt.data.stdlib_corpus import documents

    (tmp_path / "docs").mkdir()
    with open(tmp_path / "docs" / "some.jsonl", "w") as file:
        for _, text in zip(range(120), documents()):
            file.write(json.dumps({"text": text[:5000]}) + "\n")
    from raygpt import storage

    # a part of it: with GPT-2's vocabulary a token takes a CPU twenty times as long
    fewer = (tmp_path / "docs" / "some.jsonl").read_bytes().splitlines(keepends=True)[:40]
    storage.write_bytes(storage.locate(bucket) / "text" / "some.jsonl", b"".join(fewer))
    (tmp_path / "input.txt").write_bytes((shared_data / "shakespeare" / "input.txt").read_bytes())
    for name in ("jobs", "cluster"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("train.csv", "validation.csv"):
        (tmp_path / name).write_bytes((shared_data / "shakespeare" / name).read_bytes())
    papers = gzip.decompress((shared_data / "scipapers" / "arxiv_abstracts_21353.csv.gz").read_bytes()).decode()
    with open(tmp_path / "papers.csv", "w", newline="") as file:
        csv.writer(file).writerows(row for row, _ in zip(csv.reader(io.StringIO(papers, newline="")), range(300)))
    ran = set()
    for words in of("raygpt"):
        job = words[1]
        assert job in find_jobs() or job.startswith("--"), words
        arguments = [word.replace("s3://my-bucket", bucket) for word in words[1:]]
        if "--data.tokenizer=gpt2" in arguments or (job == "prepare" and "s3" in " ".join(words)):
            arguments = [word for word in arguments if not word.startswith("--data.tokenizer")]
            arguments.append(f"--data.tokenizer={shared_data / 'gpt2_bpe'}")
        if job == "tune":
            arguments += ["--dry_run", f"--task.train={shared_data / 'mrpc' / 'glue'}"]
        # tests/drills/test_serving.py, tests/drills/test_distillation.py, tests/drills/test_benchmark.py
        if job in ("serve", "generate", "distill", "benchmark") or "--compare" in arguments:
            arguments.append("--print_config")
        if job == "cluster":  # tests/drills/test_hosts.py, tests/cluster/
            assert (ROOT / words[-1]).is_file()
            arguments.append("--print_config")
        if job == "submit":  # tests/drills/test_ray_jobs.py
            arguments[1:1] = ["--dry_run", f"--submit.working_dir={ROOT}"]
        if "--base=runs/mine" in arguments:
            arguments += ["--compare.documents=8", "--compare.samples=1", "--compare.sample_tokens=10"]
        if any("gpt2-" in word for word in arguments) and job != "plan":
            if job not in ("pretrain", "finetune"):
                arguments.append("--print_config")
            elif "--print_deepspeed" not in arguments:
                arguments.append("--dry_run")
        elif "--help" not in arguments:
            arguments += [word for word in SMALL.get(job, []) if "--dry_run" not in arguments]
        run_here(*arguments)
        ran.add(job)
    assert ran >= {"prepare", "pretrain", "finetune", "plan", "tune", "evaluate", "sample", "export", "report"}
