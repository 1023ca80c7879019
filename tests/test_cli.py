"""The command line itself: help, settings and their precedence, mistakes, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raygpt import __version__
from raygpt.cli import main, parse
from raygpt.config import Config
from raygpt.config.job import whole_tree
from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.jobs import find_jobs

ROOT = Path(__file__).resolve().parent.parent


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def settings(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    return yaml.safe_load(printed(capsys, *words, "--print_config"))


@pytest.mark.parametrize("name", find_jobs())
def test_help_lists_every_setting_of_a_job(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, name, "--help")
    assert text.startswith(f"raygpt {name}: ")
    for section in find_jobs()[name].sections:
        for key, field in whole_tree(find_jobs().values()).model_fields[section].annotation.model_fields.items():  # type: ignore[union-attr]
            assert f"--{section}.{key}=" in text
            assert field.description and field.description.split()[0] in text
    assert max(len(line) for line in text.splitlines()) <= 120
    assert text == printed(capsys, name, "-h")


def test_the_quick_start_shows_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert "default quickstart)" in " ".join(printed(capsys, "quickstart", "--help").split())
    assert settings(capsys, "quickstart")["data"]["tokenizer"] == "train:2048"
    assert settings(capsys, "quickstart", "--data.tokenizer=bytes")["data"]["tokenizer"] == "bytes"


def test_without_a_job_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    assert all(f"  {name} " in text and job.summary in text for name, job in find_jobs().items())
    assert main([]) == 2
    assert capsys.readouterr().out == text
    assert printed(capsys, "--version") == f"raygpt {__version__}\n"


def test_help_loads_no_large_library() -> None:
    large = ("numpy", "pyarrow", "torch", "ray", "transformers", "boto3", "wandb")
    code = f"import sys; from raygpt.cli import main; main(['--help']); print([m for m in {large} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr[-500:]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrian"], "'pretrian' is no job: did you mean pretrain? (jobs: quickstart, prepare,"),
        (["xyz"], "'xyz' is no job (jobs: "),
        (["sample", "hello"], "'hello' is no option: settings are written --section.key=value"),
        (["sample", "--sample.prompt"], "--sample.prompt needs a value: write --sample.prompt=value"),
        (["sample", "--sample.promt=x"], "sample.promt (--sample.promt) is no setting: did you mean sample.prompt?"),
        (["sample", "--prompt=x"], "prompt (--prompt) is no setting: did you mean sample.prompt?"),
        (["sample", "--config=none.yaml"], "--config none.yaml does not exist"),
        (["sample", "--sample.top_k=0"], "sample.top_k (--sample.top_k) is 0: must be at least 1"),
        (["evaluate", "--dry_run=1"], "dry_run (--dry_run) is no setting"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert says in error and error.startswith("raygpt: ") and error.count("\n") == 1 and not out


def test_several_mistakes_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--train.precision=fp8", "--modl.preset=gpt2", "--eval.every=-2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"raygpt: {len(lines) - 1} problems" and all(line.startswith("  - ") for line in lines[1:])
    text = "\n".join(lines)
    assert "train.precision" in text and "modl.preset" in text and "eval.every" in text


@pytest.mark.parametrize("name", find_jobs())
def test_a_printed_config_gives_the_same_config_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run.name=2026-01-01", "--optim.betas=[0.8, 0.9]", "--scale.num_workers=[1, 4]", "--track.wandb=off"]
    words += ["--prepare.sources=[a.txt, b c.txt]", "--sample.prompt= # not: a comment ", "--data.seq_len=none"]
    text = printed(capsys, name, *words, "--print_config")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert printed(capsys, name, "--config", str(file), "--print_config") == text
    tree = yaml.safe_load(text)
    assert tree["run"]["name"] == "2026-01-01" and tree["sample"]["prompt"] == " # not: a comment "
    assert tree["prepare"]["sources"] == ["a.txt", "b c.txt"] and tree["track"]["wandb"] == "off"
    assert tree["scale"]["num_workers"] == [1, 4] and tree["data"]["seq_len"] is None


def test_defaults_lose_to_the_file_the_file_to_the_environment_and_that_to_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("train: {log_every: 2, max_steps: 2, keep_checkpoints: 4}\n")
    monkeypatch.setenv("RAYGPT_TRAIN__LOG_EVERY", "3")
    monkeypatch.setenv("RAYGPT_TRAIN__MAX_STEPS", "3")
    tree = settings(capsys, "pretrain", "--config", str(file), "--train.max_steps", "4")["train"]
    assert (tree["max_steps"], tree["log_every"], tree["keep_checkpoints"]) == (4, 3, 4)
    assert tree["checkpoint_every"] == Config().train.checkpoint_every


def test_options_may_be_written_both_ways() -> None:
    words = ["--a.b=1=2", "--c.d", "-3", "--dry-run", "--config", "x.yaml"]
    assert parse(words, ("dry_run",)) == ("x.yaml", {"a.b": "1=2", "c.d": "-3"}, {"dry_run"})
    with pytest.raises(UserError, match="is no option"):
        parse(["a.b=1"], ())
    assert parse(["one", "--a.b=1", "t,wo"], (), plain="c.d")[1] == {"a.b": "1", "c.d": '["one", "t,wo"]'}


def test_text_is_taken_as_typed() -> None:
    for text in ("007", "null", "yes", " two  spaces ", "a: b", "'quoted'", "1e3", ""):
        assert load_config("sample", None, {"sample.prompt": text}, {}).sample.prompt == text


def test_a_script_in_jobs_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    # from elsewhere and without the installed package in the way
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--run.storage=nowhere", "--run.name=none"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"raygpt: run {tmp_path / 'nowhere' / 'none'} has no checkpoint")
    assert done.stderr.count("\n") == 1 and not done.stdout
    assert not list(tmp_path.iterdir())
