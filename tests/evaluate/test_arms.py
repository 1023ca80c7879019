"""Models side by side: figures against plain arithmetic, cost along the runs a model comes from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.arms import Spent, as_much_as, find_arms, generation_of, held_out, spent
from raygpt.evaluate.bootstrap import ratio_intervals
from raygpt.evaluate.compare_arms import common_context, scores
from raygpt.evaluate.document_losses import DocumentLosses
from raygpt.evaluate.documents import Documents
from raygpt.evaluate.subject import open_subject
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.storage import locate
from tests.jobs.conftest import write_shards

QUALITY = {"teacher": "smollm2", "answer_tokens": 12_345, "cost_usd": 0.25}


def made(texts: list[str]) -> Documents:
    return Documents("memory", texts, np.arange(len(texts)), len(texts), False)


def test_scores_are_those_of_each_arm_by_itself_and_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    documents = made(["x" * int(size) for size in random.integers(20, 90, 40)])
    hard = random.gamma(2.0, 1.0, 40)
    arms = [
        # tokens of other lengths: another tokenizer
        DocumentLosses([np.full(20 + 10 * k, (hard[n] + 0.1 * k) / (1 + k), np.float32) for n in range(40)])
        for k in range(3)
    ]
    found = scores(documents, arms, resamples=500, seed=3)
    size = np.array([len(text) for text in documents.texts])
    for k, score in enumerate(found):
        nats = np.array([float(np.sum(each, dtype=np.float64)) for each in arms[k].surprisals])
        assert score.tokens == 40 * (20 + 10 * k)
        assert score.loss.value == pytest.approx(nats.sum() / score.tokens)
        assert score.bits.value == pytest.approx(nats.sum() / math.log(2) / size.sum())
        assert score.loss.low < score.loss.value < score.loss.high
        if k:
            before = np.array([float(np.sum(each, dtype=np.float64)) for each in arms[0].surprisals])
            (alone,) = ratio_intervals([nats - before], [size * math.log(2)], resamples=500, seed=3)
            assert score.change is not None and score.easier == np.mean(nats < before)
            assert score.change.value == pytest.approx(alone.value) and score.change.low == pytest.approx(alone.low)
    assert found[0].change is None and found[0].easier is None


def save_run(root: Path, name: str, tokens: int, usd: float | None, **settings: object) -> Path:
    """A run of a tiny model that saw `tokens`, its config and its summary."""
    tokenizer = load_tokenizer("bytes")
    model = GPT(GPTConfig(vocab_size=257, seq_len=16, n_layer=1, n_head=2, n_embd=8))
    state = RunState(
        step=3,
        tokens=tokens,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_name=tokenizer.name,
        eot_id=tokenizer.eot_id,
        model=model.config.to_dict(),
    )
    files: dict[str, bytes | TensorStream] = {
        "model.safetensors": TensorStream.of({key: value.detach() for key, value in model.named_parameters()}),
        "state.json": state.to_json().encode(),
        "config.yaml": json.dumps(settings).encode(),  # JSON is YAML
        "tokenizer.json": tokenizer.to_json(),
    }
    saving.write(locate(root / name / "checkpoints" / checkpoint.folder_name(3)), files)
    (root / name / "summary.json").write_text(json.dumps({"steps": 3, "cost_usd": usd}))
    return root / name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generation, real text, a base run, a student distilled from it, and one trained on real text instead."""
    root = tmp_path_factory.mktemp("arms")
    tokenizer: Tokenizer = load_tokenizer("bytes")
    for name in ("generation", "real"):
        for side in ("train", "val"):
            write_shards(root / name / side, ["some text of it"] * 4, tokenizer)
    (root / "generation" / "quality.json").write_text(json.dumps({"generation": QUALITY}))
    base = save_run(root, "base", 1_000, 2.0, data={"train": str(root / "real")}, model={"init_from": "random"})
    save_run(
        root,
        "student",
        500,
        1.0,
        data={"train": str(root / "generation"), "seq_len": 8},
        model={"init_from": str(base)},
        distill={"real": str(root / "real")},
    )
    save_run(root, "alone", 501, None, data={"train": str(root / "real")}, model={"init_from": str(base)})
    return root


def test_an_arm_costs_what_its_runs_and_its_text_cost(home: Path) -> None:
    base, student, alone = find_arms(["base", "student", "alone"], str(home))
    took = {arm.name: spent(arm, open_subject(arm.uri, use_gpu=False)) for arm in (base, student, alone)}
    assert (took["base"].tokens, took["base"].whole_usd, took["base"].generation) == (1_000, 2.0, None)
    assert (took["student"].tokens, took["student"].own_tokens, took["student"].usd) == (1_500, 500, 3.0)
    assert took["student"].generation is not None and took["student"].generation.answer_tokens == 12_345
    assert took["student"].whole_usd == 3.25
    assert took["alone"].whole_usd is None  # no price was known
    # stored states do not say what the teacher's passes took; of one beside the student they count
    logits = replace(student, saved={**student.saved, "distill": {"mode": "logits"}})
    opened = open_subject(student.uri, use_gpu=False)
    assert opened.state is not None and spent(logits, opened).flops is None
    shape = GPTConfig(vocab_size=257, seq_len=16, n_layer=1, n_head=2, n_embd=8)
    assert took["student"].flops == 1_500 * shape.flops_per_token(8)
    beside = replace(opened, state=replace(opened.state, teacher=base.uri))
    assert spent(logits, beside).flops == 1_500 * shape.flops_per_token(8) + 500 * shape.flops_per_token(8) / 3
    # what it was trained on from took something as well, whatever that was
    lost = replace(student, saved={**student.saved, "model": {"init_from": str(home / "deleted")}})
    assert spent(lost, opened) == replace(took["student"], tokens=None, flops=None, usd=None)
    # 1,500 and 1,501 tokens are as many; in rows of another length they are not as much compute
    alike = as_much_as(took)
    assert alike["student"]["tokens"] == ["alone"] and alike["base"]["tokens"] == []


def test_no_arm_is_alike_one_of_which_nothing_is_known() -> None:
    alike = as_much_as({"a": Spent(), "b": Spent(), "c": Spent(100, 100, 1e9), "d": Spent(100, 100, 5e9)})
    assert alike["a"] == alike["b"] == {"tokens": [], "compute": []}
    assert alike["c"] == {"tokens": ["d"], "compute": []}


def test_texts_are_those_that_the_runs_held_out(home: Path) -> None:
    arms = find_arms(["base", "student"], str(home))
    assert held_out(arms) == (str(home / "real" / "val"), str(home / "generation" / "val"))
    assert held_out(arms[1:]) == (str(home / "real" / "val"), str(home / "generation" / "val"))
    assert held_out(arms[:1]) == (str(home / "real" / "val"), None)
    # an arm that was trained on all of a raw text has seen whatever another held out of it
    raw = replace(arms[1], saved={**arms[1].saved, "distill": {"real": str(home / "text.parquet")}})
    assert held_out([arms[0], raw]) == (None, str(home / "generation" / "val"))
    assert generation_of(str(home / "generation" / "train")) == generation_of(str(home / "generation"))
    assert generation_of(str(home / "real")) is None


def test_all_arms_read_rows_that_fit_the_shortest(home: Path) -> None:
    arms = find_arms(["base", "student"], str(home))
    assert common_context(None, arms[:1]) == 16 and common_context(None, arms) == 8
    assert common_context(12, arms) == 12
    with pytest.raises(UserError, match="data.seq_len=17 exceeds the context of base, 16"):
        common_context(17, arms)


def test_what_is_no_model_is_refused_by_name(home: Path) -> None:
    with pytest.raises(UserError, match="compare.models: .*nowhere"):
        find_arms(["base", str(home / "nowhere")], str(home))
    with pytest.raises(UserError, match="names one model twice"):
        find_arms(["base", "base"], str(home))
    (home / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="compare.models: .*begun is a run without a usable checkpoint"):
        find_arms(["base", "begun"], str(home))
