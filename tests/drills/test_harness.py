"""lm-evaluation-harness on an export, as docs/evaluation.md has it: its figures are those of `raygpt evaluate`.

May take 40 s; most of it is the harness's own imports.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygpt.cli import main
from tests.conftest import save_byte_model
from tests.evaluate.hellaswag_items import write

TASK = """
task: hellaswag_here
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {path}}}}}
output_type: multiple_choice
validation_split: validation
test_split: null
num_fewshot: 0
process_docs: !function here.process_docs
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "choices"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def test_the_harness_says_of_an_export_what_evaluate_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    path = write(tmp_path / "h.jsonl", 60)
    export = save_byte_model(tmp_path / "export", seq_len=128, n_layer=2, n_head=2, n_embd=32)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "here.py").write_text("from lm_eval.tasks.hellaswag.utils import process_docs\n")
    (tasks / "here.yaml").write_text(TASK.format(path=path))
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={export},dtype=float32",
        tasks=["hellaswag_here"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=8,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    words = [f"--model.init_from={export}", "--tasks=hellaswag", f"--eval.hellaswag={path}", "--eval.protocols=lm_eval"]
    assert main(["evaluate", *words, f"--run.storage={tmp_path}"]) == 0
    ours = json.loads(capsys.readouterr().out.splitlines()[-1])["hellaswag"]["lm_eval"]
    found = theirs["results"]["hellaswag_here"]
    assert ours["acc"] == found["acc,none"] and ours["acc_norm"] == found["acc_norm,none"]
    rows = [json.loads(line) for line in (tmp_path / "evaluation-export" / "hellaswag.jsonl").read_text().splitlines()]
    samples = sorted(theirs["samples"]["hellaswag_here"], key=lambda sample: sample["doc_id"])
    for row, sample in zip(rows, samples, strict=True):
        their_logprobs = [float(response[0][0]) for response in sample["resps"]]
        assert row["logprobs"] == pytest.approx(their_logprobs, abs=1e-3)
        assert (row["acc"], row["acc_norm"]) == (sample["acc"], sample["acc_norm"])
