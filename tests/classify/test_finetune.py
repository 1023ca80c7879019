"""A classification run stops, goes on and refuses like any other; no epoch of it is left out of the records."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from raygpt.classify.finetune import train_classifier
from raygpt.config.settings import config_with
from raygpt.errors import UserError
from raygpt.evaluate.classification import score_classifier
from raygpt.parallel.weights import load
from raygpt.storage import locate
from raygpt.track.jsonl import read_metrics
from tests.before.make import HERE, classifier_config
from tests.train.running import Screen, press_ctrl_c


def test_ctrl_c_keeps_the_epoch_and_the_next_start_goes_on(ray_cluster: str, tmp_path: Path) -> None:
    for name in ("task", "ddp"):
        shutil.copytree(HERE / name, tmp_path / name)
    config = config_with(classifier_config(tmp_path), {"train.epochs": 4, "run.name": "r"}, "test")
    screen = Screen({"epoch 1/4": press_ctrl_c})
    outcome = train_classifier(config, "raygpt finetune …", screen)
    assert (outcome.outcome, outcome.exit_status) == ("stopped", 130)
    assert "which is kept. To go on: raygpt finetune …" in screen.getvalue()
    metrics = tmp_path / "r" / "metrics.jsonl"
    metrics.write_text("")  # as a kill between an epoch's state and its record leaves it
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "task", other)
    rows = (other / "train.csv").read_text().splitlines()
    (other / "train.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    with pytest.raises(UserError, match="task.train holds other examples than run .* was trained on"):
        train_classifier(config_with(config, {"task.train": str(other)}, "test"), "", io.StringIO())
    moved = tmp_path / "moved"  # where the file lies does not matter
    shutil.move(tmp_path / "task", moved)
    outcome = train_classifier(config_with(config, {"task.train": str(moved)}, "test"), "", io.StringIO())
    assert outcome.outcome == "finished" and outcome.summary["restarts"] >= 1
    whole = config_with(config, {"task.train": str(moved), "run.name": "whole"}, "test")
    train_classifier(whole, "", io.StringIO())
    kept, unbroken = (read_metrics(locate(tmp_path / name / "metrics.jsonl")) for name in ("r", "whole"))
    figures = ("epoch", "train_loss", "accuracy", "loss")
    assert [[row[key] for key in figures] for row in kept] == [[row[key] for key in figures] for row in unbroken]
    # a kill before the export of more epochs: what is there is not taken for it
    longer = config_with(whole, {"train.epochs": 5}, "test")
    train_classifier(longer, "", io.StringIO())
    (tmp_path / "whole" / "summary.json").write_text(json.dumps({"epochs": 4}))
    outcome = train_classifier(longer, "", io.StringIO())
    assert outcome.outcome == "finished" and outcome.summary["epochs"] == 5
    assert train_classifier(longer, "", io.StringIO()).outcome == "complete"
    # the classifier that is named is scored, not the one of the run that has the default name
    task = config.task
    scores = score_classifier(
        [locate(tmp_path / "whole" / "export"), locate(tmp_path / "r")],
        str(moved / "validation.csv"),
        text_columns=task.text_columns,
        label_column=task.label_column,
        resamples=100,
    )
    assert scores.origin == str(tmp_path / "whole" / "export")
    exported = json.loads((tmp_path / "whole" / "export" / "tokenizer.json").read_text())
    assert exported["model"] == json.loads(load(str(tmp_path / "ddp")).tokenizer.to_json())["model"]
