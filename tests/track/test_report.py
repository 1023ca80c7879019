from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raygpt.cli import main
from raygpt.errors import UserError
from raygpt.storage import locate
from raygpt.track.charting import run_charts
from raygpt.track.jsonl import MetricsLog
from raygpt.track.page import Page as Document
from raygpt.track.page import render
from raygpt.track.record import make_record
from raygpt.track.recorded import Recorded
from raygpt.track.report import write_report
from raygpt.track.summary import summarise

CONFIG = """
run: {name: words, storage: "s3://user:hunter22@bucket/runs"}
optim: {lr: 0.0006, betas: [0.9, 0.95]}
model: {vocab_size: null, bias: true}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "words"
    log = MetricsLog(locate(folder / "metrics.jsonl"))
    rows = [
        make_record(
            step=step,
            tokens=1000 * step,
            train_loss=3.0,
            lr=1e-3,
            step_seconds=0.5,
            val_loss=2.5 if step == 20 else None,
        )
        for step in range(1, 21)
    ]
    for row in rows:
        log.append(row)
    log.close()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "summary.json").write_text(json.dumps(summarise(rows, wall_seconds=200.0, cost_usd=3.119)))
    return folder


class Page(HTMLParser):
    """Visible text, images and every address a page refers to. Fails on tags left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value or "")
            elif name in ("src", "href"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] not in ("style", "title", "script"):
            self.text.append(" ".join(data.split()))


def read(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_the_run(run: Path) -> None:
    where = write_report(locate(run), yardsticks={"unigram entropy": 3.3124}, samples=["Once upon a time"])
    assert where.path == str(run / "report.html")
    page = read(run)
    for text in ("words", "2.5000", "perplexity 12.2", "20.0k tokens", "2.00k tok/s", "3m20s", "$3.12"):
        assert text in page.text, text
    for text in ("unigram entropy", "3.3124", "27.5", "this model", "Once upon a time"):
        assert text in page.text, text
    for key, value in (("lr", "0.0006"), ("betas", "0.9, 0.95"), ("vocab_size", "–"), ("bias", "true")):
        assert page.text[page.text.index(key) + 1] == value


def test_the_page_stands_alone(run: Path) -> None:
    write_report(locate(run))
    page = read(run)
    assert page.addresses == ["data:,"], "an icon, so that nobody is asked for one"
    text = (run / "report.html").read_text()
    assert "url(" not in text.split("<script", 1)[0] and "default-src &#39;none&#39;" in text
    names = ["loss", "learning_rate", "tokens_per_second", "grad_norm", "data_wait"]
    files = [run / "plots" / f"{name}.png" for name in names if (run / "plots" / f"{name}.png").exists()]
    assert files
    inlined = [base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in page.images]
    assert inlined == [file.read_bytes() for file in files]


def test_what_a_model_wrote_is_text_and_nothing_else(run: Path) -> None:
    write_report(locate(run), samples=["<script>alert('x')</script> & <b>"], yardsticks={"<i>": 3.0})
    assert "<script>alert('x')</script> & <b>" in read(run).text
    text = (run / "report.html").read_text()
    assert text.count("<script") == text.count("</script>") == 3 and not re.search(r"<i>|alert\('x'\)</", text)


def test_secrets_of_the_configuration_are_not_shown(run: Path) -> None:
    write_report(locate(run))
    assert "hunter22" not in (run / "report.html").read_text()


def test_yardsticks_and_samples_come_from_the_summary_by_default(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"yardsticks": {"bigram entropy": 2.75}, "samples": ["It was a dark night"]}
    (run / "summary.json").write_text(json.dumps(summary))
    write_report(locate(run))
    page = read(run)
    assert {"bigram entropy", "2.7500", "It was a dark night"} <= set(page.text)


@pytest.mark.parametrize("left", [None, '{"steps": 20, "tok'])
def test_a_run_that_is_not_finished_is_reported_from_its_records(run: Path, left: str | None) -> None:
    (run / "summary.json").unlink()
    if left is not None:
        (run / "summary.json").write_text(left)
    write_report(locate(run))
    page = read(run)
    assert any("not finished when this was written" in text for text in page.text)
    assert "2.00k tok/s" in page.text


def test_a_run_that_has_logged_nothing_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    write_report(locate(tmp_path))
    assert "Nothing has been logged yet." in read(tmp_path).text


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run .* check run\.storage and run\.name"):
        write_report(locate(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_broken_configuration_names_its_file(run: Path) -> None:
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"words/config\.yaml cannot be read"):
        write_report(locate(run))


def put_run(folder: Path, steps: int = 20, **summary: object) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"step": step, "tokens": 1000 * step, "train_loss": 3 + 1 / step, "step_seconds": 0.5, "time": 1.78e9 + step}
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text("track: odd\n")
    (folder / "attempts.json").write_text('[{"started": null, "last_seen": 3, "environment": 3}]')
    (folder / "summary.json").write_text(json.dumps({"steps": steps, **summary}))
    return folder


def test_a_folder_of_runs_brings_its_sweeps_and_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old ones as well: figures without a value, settings and a history that are something else."""
    home = tmp_path / "runs"
    scored = {"model": "m", "tasks": {"hellaswag": {"items": 9, "lm_eval": {"acc": 0.25}}}}
    run = put_run(home / "model", val_loss=None, cost_usd="?", samples=None)
    trial = {"id": "t1", "params": {}, "status": "finished", "metric": "loss", "score": 2.5}
    for folder, file, tree in (
        (run / "evaluation", "evaluation.json", scored),
        (home / "evaluation-gpt2", "evaluation.json", {**scored, "model": "gpt2"}),
        (home / "swept", "sweep.json", [{**trial, "history": [{"epoch": 1, "loss": 2.5}]}]),
        (home / "measured", "benchmark.json", {"case": "ladder", "rows": [{"name": "fp32"}]}),
    ):
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(tree))
    assert main(["report", str(home), f"--run.storage={tmp_path}"]) == 0
    page = Page((tmp_path / "report.html").read_text())
    for words in ("Sweep swept", "Benchmark measured: ladder", "gpt2", "hellaswag lm_eval acc", "m"):
        assert words in page.text
    # one run, by a name that is an empty folder here: its page stays in its folder, its evaluation on it
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert main(["report", "model", f"--run.storage={home}"]) == 0
    assert "hellaswag lm_eval acc" in Page((run / "report.html").read_text()).text
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), f"--run.storage={home}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_page_of_very_many_runs_stays_small(tmp_path: Path) -> None:
    names = ("train_loss", "tokens_per_second", "mfu", "data_wait_seconds", "lr", "grad_norm", "cost_usd")
    names += ("kd_loss", "ce_loss", "teacher_seconds", "gpu_memory_bytes", "hellaswag_acc_norm", "val_loss")
    rows = [
        {"step": step, "tokens": 500_000 * step, "time": 1.78e9 + 1.37 * step, "step_seconds": 1.37}
        | {name: math.sin(step * number) + 2.34567 for number, name in enumerate(names)}
        for step in range(1, 301)
    ]
    runs = [Recorded(f"run-{number}", "", rows, {}, {"steps": 300}, []) for number in range(120)]
    assert len(render(Document(name="x", where="", made_from="", charts=run_charts(runs)))) < 3e6
    assert len({len(each["y"]) for chart in run_charts(runs[:1]) for each in chart["series"]} - {300}) == 0
