"""The classification head: padding cannot matter, and the figures are transformers' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raygpt.classify.classifier import (
    Classifier,
    classification_metrics,
    layer_groups,
    pad_rows,
    reinit_top,
    with_pad,
)
from raygpt.classify.folder import load_classifier, save_classifier
from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig

SHAPE = GPTConfig(vocab_size=257, seq_len=64, n_layer=3, n_head=4, n_embd=32)


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(3)
    base = GPT(SHAPE)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(4)  # weights large enough for differences to show
        base.wte.weight[SHAPE.vocab_size :] = 0
    return Classifier(with_pad(base), 3).eval()


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    # one row ends in a true end of text, which code with pad = eos would take for padding
    found = [random.integers(0, 256, n) for n in (1, 5, 17, 40)]
    found[2][-1] = 256
    return found


def test_pad_is_one_token_past_the_vocabulary_and_the_config_says_so(model: Classifier) -> None:
    assert model.pad_id == 257 and model.trunk.config.vocab_size == 258
    assert float(model.trunk.wte.weight[257].abs().sum()) == 0


def test_left_right_and_no_padding_give_equal_logits_in_any_batch(model: Classifier, rows: list[np.ndarray]) -> None:
    with torch.no_grad():
        alone = torch.cat([model(torch.from_numpy(row)[None]) for row in rows])
        right = model(pad_rows(rows, model.pad_id))
        left = model(pad_rows(rows, model.pad_id, left=True))
        wide = model(torch.cat([pad_rows(rows, model.pad_id), torch.full((4, 9), model.pad_id)], 1))
    for padded in (right, left, wide):
        assert torch.allclose(padded, alone, atol=1e-5)


def test_pad_never_changes_logits_wherever_it_stands_and_whatever_its_embedding(
    model: Classifier, rows: list[np.ndarray]
) -> None:
    spread = np.full(25, model.pad_id)
    spread[[0, 3, 4, 11, 24]] = rows[1]
    with torch.no_grad():
        expected = model(torch.from_numpy(rows[1])[None])
        assert torch.allclose(model(torch.from_numpy(spread)[None]), expected, atol=1e-5)
        model.trunk.wte.weight[model.pad_id] = 100.0
        try:
            assert torch.allclose(model(torch.from_numpy(spread)[None]), expected, atol=1e-5)
        finally:
            model.trunk.wte.weight[model.pad_id] = 0.0


def test_a_mask_decides_where_one_is_given(model: Classifier, rows: list[np.ndarray]) -> None:
    tokens = torch.from_numpy(rows[2])[None]
    mask = torch.ones_like(tokens)
    mask[0, 10:] = 0
    with torch.no_grad():
        assert torch.allclose(model(tokens, mask), model(tokens[:, :10]), atol=1e-5)


def test_pad_gets_no_gradient_and_stays_zero(model: Classifier, rows: list[np.ndarray]) -> None:
    model(pad_rows(rows, model.pad_id)).sum().backward()
    grad = model.trunk.wte.weight.grad
    assert grad is not None and float(grad[model.pad_id].abs().sum()) == 0 and float(grad.abs().sum()) > 0
    model.zero_grad()


def test_a_row_of_padding_alone_is_refused(model: Classifier) -> None:
    with pytest.raises(ValueError, match="nothing but padding"):
        model(torch.tensor([[1, 2], [model.pad_id, model.pad_id]]))


def test_logits_are_those_of_transformers_on_the_same_weights(
    model: Classifier, rows: list[np.ndarray], tmp_path: Path
) -> None:
    from transformers import GPT2ForSequenceClassification

    folder = save_classifier(
        model, tmp_path / "c", labels=["no", "maybe", "yes"], eot_id=256, tokenizer_json=None, rows={"max_tokens": 64}
    )
    theirs = GPT2ForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.pad_token_id == model.pad_id and theirs.config.vocab_size == 258
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    tokens = pad_rows(rows, model.pad_id)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=(tokens != model.pad_id).long()).logits
        ours = model(tokens)
        again = load_classifier(folder)[0](tokens)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.equal(ours, again)


def test_a_folder_of_something_else_is_refused(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no exported classifier"):
        save_classifier(model, tmp_path, labels=["a"], eot_id=0, tokenizer_json=None, rows={})
    with pytest.raises(UserError, match="holds no classifier"):
        load_classifier(tmp_path)


def test_growing_leaves_the_language_model_as_it_was() -> None:
    torch.manual_seed(0)
    base = GPT(SHAPE).eval()
    tokens = torch.randint(0, 257, (2, 9))
    with torch.no_grad():
        assert torch.equal(with_pad(base).eval()(tokens)[..., :257], base(tokens))


def test_layer_decay_shrinks_the_rate_block_by_block_and_misses_no_parameter(model: Classifier) -> None:
    groups = layer_groups(model, 0.1, 0.5)
    scale = {name: group["scale"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert set(scale) == {name for name, _ in model.named_parameters()}
    assert scale["score.weight"] == scale["trunk.ln_f.weight"] == 1
    assert [scale[f"trunk.h.{i}.mlp.c_fc.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scale["trunk.wte.weight"] == scale["trunk.wpe.weight"] == 0.0625
    assert decay["trunk.h.0.ln_1.weight"] == 0 and decay["trunk.h.0.attn.c_attn.weight"] == 0.1
    assert len(layer_groups(model, 0.1, 1.0)) == 2


def test_reinit_renews_the_top_blocks_and_no_others() -> None:
    torch.manual_seed(0)
    base = GPT(SHAPE)
    fresh = Classifier(with_pad(base), 2)
    reinit_top(fresh, 1)
    new = dict(fresh.trunk.named_parameters())
    for name, old in base.named_parameters():
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
            assert torch.equal(old, new[name]) == (not name.startswith("h.2.")), name
    with pytest.raises(UserError, match="task.reinit_layers=4 but the model has 3 blocks"):
        reinit_top(fresh, 4)


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    random = np.random.default_rng(1)
    for classes, average in ((2, "binary"), (4, "macro")):
        logits = random.normal(size=(200, classes))
        labels = random.integers(0, classes, 200)
        found = classification_metrics(logits, labels)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
        assert found["f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average=average))
        assert found["loss"] == pytest.approx(log_loss(labels, probabilities))
