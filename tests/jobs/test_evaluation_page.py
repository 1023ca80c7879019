"""Every command of docs/evaluation.md is one: on a tiny model, or as far as its settings where it takes a network."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from raygpt.cli import main
from tests.conftest import ROOT
from tests.evaluate.hellaswag_items import WORDS, write
from tests.jobs.conftest import make_run
from tests.jobs.test_evaluate_texts import save_tiny_classifier

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()
]


def test_the_page_s_commands_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs")
    run.folder.rename(tmp_path / "runs" / "mine")
    shutil.copytree(tmp_path / "runs" / "mine", tmp_path / "runs" / "other")
    shutil.copytree(tmp_path / "runs" / "data", tmp_path / "tokens")
    save_tiny_classifier(tmp_path / "runs" / "mrpc" / "export", tmp_path / "test.tsv")
    (tmp_path / "runs" / "mrpc" / "config.yaml").write_text("run: {name: mrpc}\n")
    write(tmp_path / "hellaswag_val.jsonl", 20)
    text = " ".join(WORDS[:6])
    (tmp_path / "lambada_test.jsonl").write_text((json.dumps({"text": text}) + "\n") * 3)
    (tmp_path / "wiki.test.raw").write_text(f" \n = A = \n \n {text} . \n = B = \n \n {text} , {text} \n")
    monkeypatch.chdir(tmp_path)
    seen = set()
    for words in COMMANDS:
        if words[0] == "lm_eval":  # tests/drills/test_harness.py
            assert (tmp_path / "runs/mine/export/config.json").is_file()
            continue
        assert words[0] == "raygpt"
        given = [word for word in words[1:] if "num_workers" not in word]  # Ray's: tests/jobs/test_evaluate_tasks.py
        if any("SmolLM2" in word or "endpoint" in word for word in given):
            given.append("--print_config")
        if words[1] == "pretrain":
            given += ["--dry_run", "--run.name=new", "--data.seq_len=16", "--train.global_batch_tokens=64"]
        assert main(given) == 0, words
        printed = capsys.readouterr().out
        if words[1] == "evaluate" and "--print_config" not in given:
            seen |= set(json.loads(printed.splitlines()[-1]))
    assert {"loss", "hellaswag", "lambada", "wikitext", "classification", "compare", "pairs"} <= seen
    assert {path.name for path in (tmp_path / "runs/mine/evaluation").iterdir()} >= {
        "evaluation.json",
        "hellaswag.jsonl",
        "parts",
        "summary.json",
    }
