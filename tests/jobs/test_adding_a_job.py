"""A job is added by one module beside the others, with a section of its own."""

from __future__ import annotations

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
