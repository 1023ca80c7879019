"""A job is added by one module beside the others, with a section of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import raygpt.jobs
from raygpt.cli import main

TOY = '''
from pydantic import Field
from raygpt.config.job import Job
from raygpt.config.section import Section

class Toy(Section):
    """what is said"""
    word: str = Field("hello", description="the word")

DECLARATION = Job("toy", "say a word", ("run", "toy"), own={"toy": Toy})

def run(config, call):
    print(config.run.name, config.toy.word)
    return 0
'''

COUNT = """
from raygpt.config.job import Job
from raygpt.run.frame import FINISHED, STOPPED, Outcome, run_job

DECLARATION = Job("count", "count to ten", ("run", "track"))

def work(run):
    for number in range(1, 11):
        run.say(str(number))
        if number == run.config.run.seed:
            run.stop.request()
        if run.stop.requested:
            return Outcome(STOPPED, {"steps": number}, closing=f"after {number} of 10.")
    return Outcome(FINISHED, {"steps": number}, closing="Counted.")

def run(config, call):
    return run_job(config, work, again=call.command).exit_status
"""


def test_a_run_of_its_own_is_one_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "count.py").write_text(COUNT)
    monkeypatch.setattr(raygpt.jobs, "__path__", [*raygpt.jobs.__path__, str(tmp_path)])
    place = [f"--run.storage={tmp_path / 'runs'}", "--run.name=r"]
    try:
        assert main(["count", *place, "--run.seed=3"]) == 128  # stopped, by no signal
        assert f"3\nStopped after 3 of 10. To go on: raygpt count --run.storage={tmp_path}" in capsys.readouterr().out
        assert main(["count", *place]) == 0 and capsys.readouterr().out.endswith("10\nCounted.\n")
    finally:
        sys.modules.pop("raygpt.jobs.count", None)
    folder = tmp_path / "runs" / "r"
    assert json.loads((folder / "summary.json").read_text()) == {"steps": 10, "outcome": "finished"}
    assert [each["outcome"] for each in json.loads((folder / "attempts.json").read_text())] == ["stopped", "finished"]
    assert (folder / "config.yaml").exists() and not (folder / "lock.json").exists()


def test_a_module_is_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(raygpt.jobs, "__path__", [*raygpt.jobs.__path__, str(tmp_path)])
    try:
        assert main(["toy", "--toy.word=hi", "--train.max_steps=5"]) == 0
        out, error = capsys.readouterr()
        assert out == "gpt2 hi\n"
        assert "train.max_steps (--train.max_steps) has no effect: `raygpt toy` reads run, toy." in error
        assert main(["toy", "--help"]) == 0 and "--toy.word=" in capsys.readouterr().out
        assert main(["toy", "--toy.wort=x", "--train.lr=1", "--learning_rate=1"]) == 2
        error = capsys.readouterr().err
        assert "did you mean toy.word?" in error and error.count("did you mean optim.lr?") == 2
    finally:
        sys.modules.pop("raygpt.jobs.toy", None)
