"""What the cluster files and pages say to submit could run there: on data and storage that its nodes see."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from raygpt.jobs.submit import check_job

ROOT = Path(__file__).resolve().parents[2]
FILES = [*sorted((ROOT / "cluster").glob("*.yaml")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
JOB = re.compile(r"python\s+jobs/(pretrain|finetune)\.py\s|raygpt (?:submit |)(pretrain|finetune) --config /opt")


def commands(path: Path) -> list[str]:
    """Every submitted training of a file, in one line each."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text().splitlines()]
    text = "\n".join(lines).replace("\\\n", " ")
    text = re.sub(r"\n(?=--scale|python jobs)", " ", text)
    found = [line for line in text.splitlines() if JOB.search(line)]
    return [line[match.start() :] for line in found if (match := JOB.search(line))]


@pytest.mark.parametrize("path", [path for path in FILES if commands(path)], ids=lambda path: path.name)
def test_submitted_jobs_read_and_write_where_every_node_sees_it(path: Path) -> None:
    for command in commands(path):
        words = shlex.split(command.split("`")[0], comments=True)
        job = Path(words[1]).stem
        _, file = check_job(job, tuple(word.replace("/opt/raygpt/", "") for word in words[2:]), ROOT)
        assert (ROOT / str(file)).is_file(), command
        for setting in ("--data.train=s3://", "--run.storage=s3://"):
            assert any(word.startswith(setting) for word in words), (setting, command)


def test_all_files_have_one() -> None:
    names = {path.name for path in FILES if commands(path)}
    assert {path.name for path in (ROOT / "cluster").glob("*.yaml")} - {"alerts-raygpt.yaml"} <= names
