"""HellaSwag beside lm-evaluation-harness itself on the same file, and by a real pretrained model. Each within 40 s."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raygpt.data.tokenizer import load_tokenizer
from raygpt.model.export import export_huggingface
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.scoring import hellaswag
from raygpt.scoring.hellaswag import Item
from raygpt.scoring.likelihood import ModelScorer


@pytest.fixture(scope="module")
def file(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items from all over the data, WikiHow's among them, as lm-evaluation-harness reads them too."""
    with gzip.open(shared_data / "hellaswag" / "hellaswag_val_5000.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][::400]
    keys = ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label")
    path = tmp_path_factory.mktemp("hellaswag") / "items.jsonl"
    path.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))
    return path


def test_lm_eval_itself_gives_the_same_sums_and_predictions(
    file: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import process_docs

    tokenizer = load_tokenizer(str(shared_data / "gpt2_bpe"))
    torch.manual_seed(5)
    # a context of 96 tokens, so that some of WikiHow's are cut
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, seq_len=96, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    folder = export_huggingface(model, tmp_path / "export", tokenizer_json=tokenizer.to_json(), eot_id=tokenizer.eot_id)
    task = {
        "task": "hellaswag_here",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "process_docs": process_docs,
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    theirs = simple_evaluate(
        HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4), tasks=[task], bootstrap_iters=2
    )
    samples = sorted(theirs["samples"]["hellaswag_here"], key=lambda sample: sample["doc_id"])

    items = hellaswag.read_items(str(file))
    scorer = ModelScorer("tiny", model, tokenizer)
    asked = scorer.ask(hellaswag.questions(items, "lm_eval"))
    judged = [hellaswag.judge(item, "lm_eval", scores) for item, scores in zip(items, asked)]
    assert len(samples) == len(judged) == 13 and scorer.cut > 0
    for one, scores, sample in zip(judged, asked, samples):
        answers = [answer for answer, *_ in sample["resps"]] if len(sample["resps"][0]) == 1 else sample["resps"]
        assert one.logprobs == pytest.approx([float(logprob) for logprob, _ in answers], abs=1e-4)
        assert [score.greedy for score in scores] == [str(greedy) == "True" for _, greedy in answers]
        assert (one.correct, one.correct_norm) == (bool(sample["acc"]), bool(sample["acc_norm"]))
    summary, results = hellaswag.summarise(judged), theirs["results"]["hellaswag_here"]
    for name in ("acc", "acc_norm"):
        assert summary[name] == pytest.approx(results[f"{name},none"])
        assert summary[f"{name}_stderr"] == pytest.approx(results[f"{name}_stderr,none"])


@pytest.mark.long
def test_a_real_pretrained_model_scores_what_transformers_gives_alone(file: Path, teacher_gguf: Path):
    from raygpt.evaluate.foreign import ForeignModel, load_foreign

    loaded = load_foreign(str(teacher_gguf))
    model = loaded.model
    assert isinstance(model, ForeignModel)
    items = hellaswag.read_items(str(file))[::4]
    for protocol in hellaswag.PROTOCOLS:
        many = ModelScorer("SmolLM2", model, loaded.tokenizer, batch_tokens=64 * 128)
        single = ModelScorer("SmolLM2", model, loaded.tokenizer, batch_tokens=1)
        assert many.bos is None
        questions = hellaswag.questions(items, protocol)
        for item, one, other in zip(items, many.ask(questions), single.ask(questions)):
            expected = _alone(item, protocol, model.net, loaded.tokenizer.backend)
            assert [score.logprob for score in one] == pytest.approx(expected, abs=2e-3)
            judged = [hellaswag.judge(item, protocol, scores) for scores in (one, other)]
            assert judged[0].prediction == judged[1].prediction == int(np.argmax(expected))
            assert judged[0].prediction_norm == judged[1].prediction_norm
    assert model.trees is True


def _alone(item: Item, protocol: hellaswag.ProtocolName, net: Any, tokenizer: Any) -> list[float]:
    """Sums of an item's endings, a pass for each, the softmax in float64."""
    sums = []
    for ending in hellaswag.choices(item, protocol):
        before = hellaswag.context(item, protocol)
        text = before.rstrip() if protocol != "build_nanogpt" else before
        head = tokenizer.encode(text).ids
        if protocol == "build_nanogpt":
            aims = tokenizer.encode(" " + ending).ids
        else:
            aims = tokenizer.encode(before + " " + ending).ids[len(head) :]
        with torch.no_grad():
            logits = net(torch.tensor([head + aims])).logits[0, len(head) - 1 : -1].double()
        sums.append(float(logits.log_softmax(dim=-1)[torch.arange(len(aims)), torch.tensor(aims)].sum()))
    return sums
