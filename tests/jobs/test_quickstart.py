"""`raygpt quickstart`, the whole of it with a smaller model and fewer steps."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from raygpt.cli import main, parse
from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.data import stdlib_corpus
from raygpt.data.reader import TokenReader
from raygpt.data.stdlib_corpus import place_corpus
from raygpt.evaluate.yardsticks import yardsticks
from raygpt.jobs import find_jobs, quickstart
from raygpt.train.evaluation import Evaluation

SMALL = [
    "--model.n_layer=1",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.seq_len=16",
    "--data.tokenizer=train:300",
    "--prepare.max_documents=60",
    "--prepare.val_fraction=0.1",
    "--train.max_steps=12",
    "--train.global_batch_tokens=64",
    "--train.log_every=4",
    "--eval.every=6",
    "--sample.max_new_tokens=8",
    "--track.tensorboard=false",
]


def quickstart_config(**more: str) -> Config:
    return load_config(
        "quickstart", find_jobs()["quickstart"].config, {k.replace("__", "."): v for k, v in more.items()}, {}
    )


def test_it_trains_evaluates_samples_and_reports_and_does_so_again(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quickstart", f"--run.storage={tmp_path}", "--run.name=qs", *SMALL]
    assert main(words) == 0
    first = capsys.readouterr().out
    for text in ("1/5 Corpus", "2/5 Tokens", "step 12/12 100%", "--- 3 of 3", "5/5 Report", "What to try next"):
        assert text in first, text
    assert "2 workers on CPU" in first
    # the table's figures, from the shards
    (home,) = (tmp_path / "prepared").iterdir()
    train, val = TokenReader(str(home / "train")), TokenReader(str(home / "val"))
    vocab = train.manifest.tokenizer.vocab_size
    known = yardsticks(train.read(0, train.total_tokens), val.read(0, val.total_tokens), vocab)
    rows = dict(re.findall(r"^  (unigram entropy|bigram entropy|this model) +([\d.]+) ", first, re.MULTILINE))
    assert rows["unigram entropy"] == f"{known['unigram entropy']:.4f}"
    assert rows["bigram entropy"] == f"{known['bigram entropy']:.4f}"
    summary = json.loads((tmp_path / "qs" / "summary.json").read_text())
    # training evaluated in two halves, the job in one piece
    assert float(rows["this model"]) == pytest.approx(summary["val_loss"], abs=2e-4)
    assert summary["yardsticks"] == known and len(summary["samples"]) == 3 and summary["bits_per_byte"] > 0
    page = (tmp_path / "qs" / "report.html").read_text()
    assert "bigram entropy" in page and "data:image/png" in page

    assert main(words) == 0
    second = capsys.readouterr().out
    assert "is complete at step 12" in second and "already there" in second
    cut = "--- 1 of 3"
    assert second[second.index(cut) :] == first[first.index(cut) :]


def test_the_corpus_keeps_its_name_and_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [f"{number} is a number" for number in range(1000)]
    monkeypatch.setattr(stdlib_corpus, "documents", lambda: iter(some))  # each walk over the library takes 3 s
    where = place_corpus(str(tmp_path))
    written = Path(where).stat().st_mtime_ns
    assert place_corpus(str(tmp_path)) == where
    assert Path(where).stat().st_mtime_ns == written
    assert where.endswith(".jsonl.gz")
    # a copy cut short is mended
    Path(where).write_bytes(b"")
    assert place_corpus(str(tmp_path)) == where
    with gzip.open(where, "rt", encoding="utf-8") as lines:
        assert [json.loads(line)["text"] for line in lines] == some
    some.append("another Python's")
    assert place_corpus(str(tmp_path)) != where


@pytest.mark.parametrize("storage", ["runs", "/some/where else"])
def test_every_command_it_suggests_is_a_sound_one(storage: str) -> None:
    commands = quickstart.next_steps(quickstart_config(run__storage=storage))
    assert {shlex.split(command)[1] for command, _ in commands} == {
        "sample",
        "evaluate",
        "export",
        "quickstart",
        "pretrain",
    }
    for command, _ in commands:
        program, job, *words = shlex.split(command)
        assert Path(program).name == "raygpt"
        file, options, flags = parse(words, find_jobs()[job].flags)
        config = load_config(job, file or find_jobs()[job].config, options, {})
        assert config.run.storage == storage and not flags


def test_the_table_compares_on_the_same_tokens() -> None:
    result = Evaluation(loss=2.0, perplexity=7.39, tokens=1000, bits_per_byte=1.5, rows=10)
    lines = quickstart.comparison(result, {"unigram entropy": 6.0, "bigram entropy": 4.0}).splitlines()
    assert [line.split()[-3:] for line in lines[1:]] == [
        ["6.0000", "4.5000", "403.43"],
        ["4.0000", "3.0000", "54.60"],
        ["2.0000", "1.5000", "7.39"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert "2.00 nats per token better than the bigram entropy" in quickstart.closing(result, {"bigram entropy": 4.0})
    assert "not beaten yet" in quickstart.closing(result, {"bigram entropy": 1.9})
