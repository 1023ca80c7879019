"""`raygpt benchmark` and the folders of runs: nobody's figures are overwritten or relabelled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raygpt.bench.ladder import LadderSettings
from raygpt.bench.provenance import settings_words
from raygpt.bench.result import Result, Row, Spread
from raygpt.bench.step import config_of, parse
from raygpt.cli import main
from raygpt.config import Config
from raygpt.config.settings import dump, load_config
from raygpt.jobs import benchmark
from raygpt.jobs.benchmark import DECLARATION, measured_model, named_by_case, step_words

DONE = Result("ladder", [Row("bf16", {"parameters": 5}, Spread.of([123.0]))], {"date": "then"})


def settings(tmp_path: Path, *words: str) -> Config:
    options = dict(word.split("=", 1) for word in (f"run.storage={tmp_path}", *words))
    return load_config(DECLARATION, options=options, environ={}, base=DECLARATION.base)


def folder(tmp_path: Path, config: Config, job: str = "benchmark", result: Result | None = DONE) -> Path:
    """The folder that a run of these settings has left."""
    made = tmp_path / config.run.name
    made.mkdir()
    (made / "config.yaml").write_text(dump(config))
    attempt: dict[str, Any] = {"id": "1", "host": "h", "pid": 1, "process_started": 0, "started": 0, "last_seen": 1}
    (made / "attempts.json").write_text(json.dumps([{**attempt, "outcome": "finished", "job": job}]))
    if result is not None:
        (made / "benchmark.json").write_text(result.to_json())
    return made


def call(tmp_path: Path, *words: str) -> int:
    return main(["benchmark", f"--run.storage={tmp_path}", *words])


def test_each_case_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = [named_by_case(settings(tmp_path, f"benchmark.case={case}")).run.name for case in ("ladder", "finetune")]
    assert names == ["benchmark-ladder", "benchmark-finetune"]
    assert named_by_case(settings(tmp_path, "run.name=mine")).run.name == "mine"


def test_a_finished_result_is_shown_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = folder(tmp_path, named_by_case(settings(tmp_path)))
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    assert call(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "| bf16 | 123 |" in printed and f"Finished already: {made / 'benchmark.json'}" in printed
    assert call(tmp_path, "--run.resume=never") == 2
    assert "run.resume=never but run" in capsys.readouterr().err
    assert call(tmp_path, "--train.precision=bf16", "--benchmark.repeats=2") == 2
    assert "with other settings (train.precision, benchmark.repeats)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


@pytest.mark.parametrize(
    ("job", "case", "says"),
    [
        ("pretrain", "ladder", "is a run of raygpt pretrain: give the benchmark a run.name of its own"),
        ("benchmark", "finetune", "holds a benchmark of case finetune"),
    ],
)
def test_anothers_folder_is_refused(
    job: str, case: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = folder(tmp_path, settings(tmp_path, "run.name=r", f"benchmark.case={case}"), job)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    for again in ("ladder", "step") + (("finetune",) if job != "benchmark" else ()):
        assert call(tmp_path, "--run.name=r", f"--benchmark.case={again}") == 2
        assert says in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_what_was_stopped_begins_anew_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = replace(DONE, provenance={"stopped": True})
    folder(tmp_path, named_by_case(settings(tmp_path)), result=stopped)
    began: list[str] = []

    def measure(run: Any, shape: Any, command: list[str]) -> Any:
        from raygpt.run.frame import FINISHED, Outcome

        began.append(run.folder.name)
        return Outcome(FINISHED)

    monkeypatch.setattr(benchmark, "measure_speeds", measure)
    assert call(tmp_path) == 0
    assert "did not end: it begins anew" in capsys.readouterr().out and began == ["benchmark-ladder"]


def test_the_workers_measure_the_configured_model_and_step(tmp_path: Path) -> None:
    words = ["model.bias=false", "model.tie_weights=false", "model.vocab_size=250", "train.precision=bf16"]
    config = settings(tmp_path, *words, "train.activation_checkpointing=true")
    shape = measured_model(config)
    options = parse(step_words(config, shape, LadderSettings(), use_gpu=False))
    assert config_of(options) == shape and not shape.bias and not shape.tie_weights
    assert (options.precision, options.activation_checkpointing, options.compile) == ("bf16", True, False)
    # on a GPU as the last rung, unless it is set
    assert parse(step_words(config, shape, LadderSettings(), use_gpu=True)).compile
    plain = settings(tmp_path, *words, "train.compile=false")
    assert not parse(step_words(plain, shape, LadderSettings(), use_gpu=True)).compile


def test_what_is_not_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "--benchmark.case=step", "--train.strategy=zero2") == 2
    assert "train.strategy=zero2 is not measured by benchmark.case=step" in capsys.readouterr().err


def test_the_command_has_the_settings_of_the_environment_and_no_secret() -> None:
    environ = {
        "RAYGPT_TRAIN__PRECISION": "bf16",
        "RAYGPT_DATA__TRAIN": "my text.csv",
        "RAYGPT_SERVE__API_KEY": "hidden",
        "RAYGPT_ONCE_TOY": "1",
        "HOME": "/root",
        "RAYGPT_EVAL__ENDPOINT": "https://me:hidden@host/v1",
    }
    assert settings_words(environ) == ["env", "RAYGPT_DATA__TRAIN=my text.csv", "RAYGPT_TRAIN__PRECISION=bf16"]
    assert settings_words({}) == []
