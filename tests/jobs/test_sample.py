"""`raygpt sample`: reproducible texts, whole characters, nothing that could harm a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from raygpt.cli import main
from raygpt.jobs import sample
from raygpt.model.generate import generate
from tests.jobs.conftest import FinishedRun


def write(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The texts, without the line about the model and the headings."""
    assert main(["sample", *words]) == 0
    printed = capsys.readouterr().out.partition("\n")[2]
    return [part.partition("\n")[2].removesuffix("\n") for part in printed.split("--- ")[1:]]


def test_the_seed_decides_the_texts(finished: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*finished.options, "--sample.prompt=Call me", "--sample.num_samples=2", "--sample.max_new_tokens=12"]
    first = write(capsys, *words)
    assert len(first) == 2 and first[0] != first[1]
    assert all(text.startswith("Call me") for text in first)
    assert write(capsys, *words) == first
    assert write(capsys, *words, "--run.seed=7") != first


def test_greedy_text_is_what_the_model_finds_likeliest(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "Call me Ishmael"  # and on beyond the context of 16
    words = ["--sample.temperature=0", "--sample.num_samples=1", "--sample.max_new_tokens=20"]
    (text,) = write(capsys, *finished.options, f"--sample.prompt={prompt}", *words)
    ids = generate(finished.model, torch.tensor([list(prompt.encode())]), 20, temperature=0, eot_id=256)[0].tolist()
    assert text == finished.tokenizer.decode(ids)


def test_without_a_prompt_a_text_begins_after_the_end_of_another(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sample.temperature=0", "--sample.num_samples=1", "--sample.max_new_tokens=8"]
    (text,) = write(capsys, *finished.options, *words)
    ids = generate(finished.model, torch.tensor([[256]]), 8, temperature=0, eot_id=256)[0].tolist()
    assert text == finished.tokenizer.decode(ids)


def test_an_exported_folder_writes_the_same(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *finished.options, f"--export.output={tmp_path / 'hf'}"]) == 0
    capsys.readouterr()
    words = ["--sample.prompt=It was", "--sample.max_new_tokens=10"]
    assert write(capsys, f"--model.init_from={tmp_path / 'hf'}", *words) == write(capsys, *finished.options, *words)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_do_not_reach_a_terminal() -> None:
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        sample._show("a\x1b[2J\tb\nc\x9b\x00\r", stream)
    assert screen.getvalue() == "a\ufffd[2J\tb\nc\ufffd\ufffd\ufffd"
    assert file.getvalue() == "a\x1b[2J\tb\nc\x9b\x00\r"
