"""lm-evaluation-harness itself, on a model of this process and a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raygpt.data.tokenizer import END_OF_TEXT, Tokenizer


def harness(
    task: str, rows: Path, net: Any, tokenizer: Tokenizer, context: int, *, bos: str = END_OF_TEXT
) -> dict[str, Any]:
    """Results of its task, `folder/name`, over the JSONL file `rows`, which stands for the data set of the hub."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    name = task.rpartition("/")[2]
    folder = rows.parent / "task"
    folder.mkdir()
    config = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / f"{task}.yaml"),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": None,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=END_OF_TEXT, bos_token=bos)
    model = HFLM(pretrained=net, tokenizer=fast, max_length=context, batch_size=4, device="cpu")
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load(name)
    found = evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)
    assert found is not None
    return found["results"][name]
