"""A family of models is one file (toy_architecture.py): planned, trained, resumed, sampled, and its export refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raygpt.cli import main
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.parallel import checkpoint
from raygpt.parallel.weights import load
from raygpt.storage import locate
from raygpt.train.resolve import resolve
from tests.train.gloo_pool import GlooPool
from tests.train.running import POOLED, run, settings

TOY = {"model__preset": "toy-small", "model__n_layer": "none", "model__n_embd": "8", "model__dropout": "0"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.model.toy_architecture import ToyFamily

    monkeypatch.setenv("POOL_IMPORTS", "tests.model.toy_architecture")  # in the workers
    monkeypatch.setattr(registry, "FAMILIES", {**registry.FAMILIES, "toy": ToyFamily()})


def test_it_is_planned_trained_resumed_sampled_and_not_exported(
    gloo: GlooPool, make_shards: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(3000)
    options = {**POOLED, **TOY, "scale__num_workers": "2", "train__checkpoint_every": "3"}
    shape = resolve(settings(shards, tmp_path, **options)).model
    assert shape.to_dict() == {"architecture": "toy", "vocab_size": shape.vocab_size, "seq_len": 16, "n_embd": 8}
    schedule = {"optim__schedule": "constant"}
    whole = run(settings(shards, tmp_path / "once", **options, **schedule, train__max_steps="9"), pool=gloo)[1]
    for steps in ("6", "9"):  # stopped after six, then resumed
        parts = run(settings(shards, tmp_path, **options, **schedule, train__max_steps=steps), pool=gloo)[1]
    losses = [[record["train_loss"] for record in records if "train_loss" in record] for records in (whole, parts)]
    assert len(losses[0]) == 9 and losses[0] == losses[1] and losses[0][-1] < losses[0][0]

    state = checkpoint.read_state(checkpoint.complete_checkpoints(locate(tmp_path / "r"))[0])
    assert state.model == shape.to_dict()
    model = load(str(tmp_path / "r")).model
    tokens = torch.tensor([[1, 2, 3]])
    logits = model.out.weight @ model.embed.weight[3].tanh()
    assert torch.allclose(registry.of(shape).next_logits(model, tokens)[0], logits, atol=1e-6)

    run_options = [f"--run.storage={tmp_path}", "--run.name=r"]
    assert main(["sample", *run_options, "--sample.prompt=a", "--sample.max_new_tokens=20"]) == 0
    capsys.readouterr()
    assert main(["export", *run_options]) == 2
    assert "architecture toy cannot be exported to Hugging Face: transformers has no such" in capsys.readouterr().err
    plan = ["plan", "--model.preset=toy-small", "--data.tokenizer=bytes", "--train.global_batch_tokens=512"]
    assert main([*plan, "--train.micro_batch_size=32", "--plan.gpu=V100", "--train.max_steps=1"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["parts"]["device"]["logits"] == 12 * 2 * 512 * 257  # an evaluation takes twice the rows
    assert figures["checkpoint_bytes"] == 12 * 2 * 257 * 16 + 2_000_000


def test_what_it_does_not_have_is_refused_by_name(make_shards: Callable[..., str], tmp_path: Path) -> None:
    def sentence(**options: str) -> str:
        with pytest.raises(UserError) as caught:
            resolve(settings(make_shards(500), tmp_path, **{**TOY, **options}))
        return str(caught.value)

    assert "model.n_head=2 means nothing to model.preset=toy-small" in sentence(model__n_head="2")
    assert "choose one of gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano, toy-small" in sentence(model__preset="toy")
    with pytest.raises(UserError, match="architecture other, which this raygpt does not know"):
        registry.model_config({"architecture": "other", "vocab_size": 3})


def test_a_checkpoint_from_before_there_were_others_is_gpt2() -> None:
    shape = registry.model_config({"vocab_size": 257, "seq_len": 8, "n_layer": 1, "n_head": 1, "n_embd": 8})
    assert shape.architecture == "gpt2" and registry.model_config(shape.to_dict()) == shape
