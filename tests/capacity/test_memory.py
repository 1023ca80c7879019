"""What a run needs, against what autograd really keeps, peft really adds, and the known multiples of ZeRO."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from raygpt.capacity.memory import Counts, Setup, needs, peak
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.presets import PRESETS

XL = GPTConfig(**PRESETS["gpt2-xl"])
LARGE = GPTConfig(**PRESETS["gpt2-large"])
CPU = Setup(gpu=False)


def kept_by_autograd(model: GPT, precision: str, rows: int) -> int:
    """Bytes of everything but parameters that a forward pass leaves behind for the backward pass."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, model.config.vocab_size, (rows, model.config.seq_len))
    half = torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), half:
        loss = model(tokens, tokens)
    assert loss.isfinite()
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "autocast", "half"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_what_autograd_keeps(precision: str, checkpointing: bool, dropout: float) -> None:
    config = GPTConfig(vocab_size=640, seq_len=256, n_layer=5, n_head=4, n_embd=128, dropout=dropout)
    model = GPT(config, checkpointing)
    if precision == "half":
        model = model.bfloat16()
    setup = Setup(
        strategy="zero2" if precision == "half" else "ddp",
        precision="fp32" if precision == "fp32" else "bf16",
        micro_batch_size=4,
        seq_len=256,
        activation_checkpointing=checkpointing,
        gpu=False,
    )
    forward = needs(config, setup).host["forward pass"]
    # of the logits' three copies one stays when the loss is there; with checkpointing none does
    logits = 0 if checkpointing else forward["logits and loss"] / 3
    # inputs of blocks that are computed again are arguments, not saved tensors: the hooks see the rest
    copies = 0 if checkpointing else forward.get("half-precision copies", 0)
    predicted = forward["activations"] + logits + copies
    seen = kept_by_autograd(model, precision, 4)
    assert seen == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize(
    ("setup", "logits_at_a_time"),
    [
        (Setup(precision="bf16"), 8192),
        (Setup(precision="tf32"), 8192),
        (Setup(precision="fp16"), 64 * 1024),  # all of them: gradients must see the loss scale
        (Setup("zero2", precision="bf16"), 64 * 1024),
        (Setup(precision="fp32", gpu=False), 64 * 1024),
        (Setup(precision="bf16", loss_tokens=2048), 2048),
    ],
    ids=lambda value: f"{value.strategy}-{value.precision}-{value.loss_tokens}" if isinstance(value, Setup) else "",
)
def test_no_more_logits_are_counted_than_exist_at_a_time(setup: Setup, logits_at_a_time: int) -> None:
    small = GPTConfig(**PRESETS["gpt2"])
    parts = needs(small, replace(setup, micro_batch_size=64))
    counted = (parts.device or parts.host)["forward pass"]["logits and loss"]
    matrix, hidden = 4 * 50304 * 768, 4 * 64 * 1024 * 768  # gradients that are there by then, in fp32
    assert counted == pytest.approx(12 * logits_at_a_time * 50304, abs=2 * matrix + hidden)
    assert counted >= 12 * logits_at_a_time * 50304


def test_model_states_are_the_known_multiples_of_the_parameters() -> None:
    parameters = Counts.of(XL).total
    assert parameters == 1_557_611_200 + 47 * 1600  # with the padding rows of the vocabulary

    def states(**values: Any) -> dict[str, float]:
        parts = needs(XL, Setup(**{"precision": "fp16", "grad_accum_steps": 1, **values})).device["optimizer step"]
        return {name: round(size / parameters, 2) for name, size in parts.items()}

    ddp = states(strategy="ddp")
    assert (ddp["weights"], ddp["gradients"], ddp["optimizer"]) == (4, 4, 8)
    zero2 = states(strategy="zero2", world_size=8)
    assert (zero2["weights"], zero2["optimizer"]) == (2, 1.5)
    zero3 = states(strategy="zero3", world_size=8)
    assert (zero3["weights"], zero3["optimizer"]) == (0.25, 1.5)
    offloaded = states(strategy="zero2", offload="optimizer")
    assert offloaded["weights"] == 2 and "optimizer" not in offloaded
    fp32 = needs(XL, Setup(strategy="zero1", precision="fp32", world_size=4)).device["optimizer step"]
    assert fp32["weights"] == 4 * parameters and fp32["optimizer"] == 3 * parameters


@pytest.mark.parametrize(
    ("setup", "between", "backward", "step"),
    [
        # bytes per parameter on the device of one of 4 workers: between micro-batches, while the last one is reduced,
        # and when the optimizer steps. BF16_Optimizer: a whole sum, and bf16 gradients
        (Setup("zero1", precision="bf16"), 6, 6, 6),
        # otherwise the whole sum waits in stage 1, and is reduced into this worker's part
        (Setup("zero1", precision="fp16"), 4, 5, 1),
        (Setup("zero1", "optimizer", "bf16"), 4, 5, 1),
        (Setup("zero2", precision="bf16"), 1, 1, 1),
        (Setup("zero2", "optimizer", "bf16"), 1, 1, 1),
        (Setup("zero3", precision="bf16"), 1, 1, 2),
        (Setup("zero3", "optimizer", "bf16"), 0, 0, 0),
    ],
    ids=lambda value: f"{value.strategy}-{value.offload}-{value.precision}" if isinstance(value, Setup) else "",
)
def test_gradients_are_added_up_in_fp32(setup: Setup, between: int, backward: int, step: int) -> None:
    counts = Counts.of(LARGE)
    device = needs(LARGE, replace(setup, grad_accum_steps=2, world_size=4)).device
    largest = 2 * counts.largest if setup.offload != "none" and setup.stage < 3 else 0  # on its way to the host
    for moment, bytes_each, besides in (
        ("forward pass", between, 0), ("backward pass", backward, largest), ("optimizer step", step, 0)
    ):  # fmt: skip
        # stage 3 flattens 200M parts at a time, here all of them
        assert device[moment].get("gradients", 0) == pytest.approx(bytes_each * counts.total + besides, abs=16), moment


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"micro_batch_size": 2}, True),
        ({"seq_len": 128}, False),
        ({"grad_accum_steps": 2}, True),
        ({"activation_checkpointing": True}, False),
        ({"world_size": 4}, True),  # DDP's buckets outlive the step
        ({"lora_rank": 8}, False),
    ],
)
def test_more_work_needs_more_memory(change: dict[str, Any], grows: bool) -> None:
    before = needs(LARGE, Setup(precision="bf16")).device_peak
    after = needs(LARGE, Setup(**{"precision": "bf16", **change})).device_peak
    assert (after > before) == grows and after != before


@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_more_workers_share_what_zero_cuts_up(offload: str) -> None:
    for strategy in ("zero1", "zero2", "zero3") if offload != "all" else ("zero3",):
        one, eight = (
            needs(XL, Setup(strategy=strategy, offload=offload, precision="bf16", world_size=count)) for count in (1, 8)
        )
        assert eight.host_peak < one.host_peak or offload == "none"
        assert eight.device_peak < one.device_peak or offload != "none"


def test_a_host_carries_all_its_workers_and_their_shares_of_a_snapshot() -> None:
    one, four = (
        needs(LARGE, Setup(precision="bf16", world_size=4, workers_per_host=count)).host["save"] for count in (1, 4)
    )
    # every rank keeps its share of it
    assert 4 * one["snapshot for checkpoints"] == four["snapshot for checkpoints"] == 12 * Counts.of(LARGE).total
    assert four["processes"] > 3 * one["processes"] / 2
    zero = needs(LARGE, Setup(strategy="zero3", precision="bf16", world_size=4))
    assert not any("snapshot for checkpoints" in parts for parts in zero.host.values())  # streamed from where it lies


def test_a_cpu_has_one_memory() -> None:
    need = needs(LARGE, CPU)
    assert need.device == {} and need.device_peak == 0 and peak(need.device) == ("", 0)
    assert need.host["backward pass"]["weights"] == 4 * Counts.of(LARGE).total


def test_checkpoints_take_twelve_bytes_per_trained_parameter() -> None:
    need = needs(XL, Setup(keep_checkpoints=2))
    assert need.checkpoint == pytest.approx(12 * 1_557_611_200, rel=0.001)
    assert need.disk == 4 * need.checkpoint  # two, the best one, and the one being written
    assert needs(XL, Setup(lora_rank=8)).checkpoint < need.checkpoint / 100


def test_adapters_are_counted_as_peft_makes_them() -> None:
    from raygpt.parallel.lora import Adapters, add_adapters

    config = GPTConfig(vocab_size=128, seq_len=16, n_layer=3, n_head=2, n_embd=32)
    model = GPT(config)
    add_adapters(model, Adapters("base", 4, 8.0))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert Counts.of(config, 4).trained == trained
    assert Counts.of(config, 4).total == sum(parameter.numel() for parameter in model.parameters())
