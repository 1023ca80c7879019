"""The choice of strategy, offload and micro-batch: known cases, and every choice held against its own arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygpt.capacity.fit import SLOWDOWN, Hardware, fit, largest_rows, shortages, slowdown
from raygpt.capacity.forecast import forecast
from raygpt.capacity.memory import Setup, needs
from raygpt.model.gpt import GPTConfig
from raygpt.model.presets import PRESETS

XL = GPTConfig(**PRESETS["gpt2-xl"])
SMALL = GPTConfig(**PRESETS["gpt2"])
GB = 10**9
V100 = Hardware(host_memory=61 * GB, gpu="V100", gpu_memory=16 * GB)
FP16 = Setup(precision="fp16", seq_len=1024)


def fits(setup: Setup, hardware: Hardware = V100, model: GPTConfig = XL) -> bool:
    return not shortages(needs(model, setup), hardware)


@pytest.mark.parametrize(("strategy", "offload"), [("zero2", "optimizer"), ("zero3", "optimizer"), ("zero3", "all")])
def test_xl_fits_one_16_gb_gpu_and_61_gb_of_memory_with_offload(strategy: str, offload: str) -> None:
    setup = replace(FP16, strategy=strategy, offload=offload, activation_checkpointing=True, grad_accum_steps=2)
    for rows in (1, 4, 8):
        assert fits(replace(setup, micro_batch_size=rows))


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_xl_does_not_fit_one_16_gb_gpu_without_offload(strategy: str) -> None:
    setup = replace(FP16, strategy=strategy, activation_checkpointing=True)
    assert [shortage.what for shortage in shortages(needs(XL, setup), V100)] == ["device"]


def test_xl_fits_eight_16_gb_gpus_with_zero3_and_one_80_gb_gpu_without_zero() -> None:
    eight = replace(FP16, strategy="zero3", world_size=8, workers_per_host=8, activation_checkpointing=True)
    host = replace(V100, host_memory=244 * GB, workers_per_host=8)
    assert fits(replace(eight, micro_batch_size=4), host)
    h100 = Hardware(host_memory=200 * GB, gpu="H100", gpu_memory=80 * GB)
    assert fits(Setup(precision="bf16", micro_batch_size=8, grad_accum_steps=2), h100)


def test_xl_does_not_fit_with_offload_where_the_host_is_small() -> None:
    setup = replace(FP16, strategy="zero3", offload="all", activation_checkpointing=True)
    assert [shortage.what for shortage in shortages(needs(XL, setup), replace(V100, host_memory=32 * GB))] == ["host"]
    # the pain of loading everywhere: eight workers' states do not fit what one has room for
    eight = replace(setup, strategy="zero2", offload="optimizer", world_size=1, workers_per_host=8)
    assert not fits(eight)


def test_the_chosen_setup_fits_and_nothing_faster_does() -> None:
    base = replace(FP16, strategy="ddp")
    for model, hardware in (
        (XL, V100),
        (XL, replace(V100, gpu_memory=40 * GB)),
        (XL, Hardware(200 * GB, "H100", 80 * GB)),
        (SMALL, V100),
        (SMALL, replace(V100, gpu_memory=6 * GB)),
    ):
        chosen = fit(model, base, hardware, 16)
        assert chosen is not None and fits(chosen, hardware, model)
        assert chosen.micro_batch_size * chosen.grad_accum_steps == 16
        for strategy, offload in SLOWDOWN:
            for recompute in (False, True):
                other = replace(base, strategy=strategy, offload=offload, activation_checkpointing=recompute)
                found = largest_rows(model, other, hardware, 16)
                assert found is None or slowdown(found) >= slowdown(chosen)


def test_what_fits_plainly_stays_plain() -> None:
    chosen = fit(SMALL, FP16, Hardware(200 * GB, "H100", 80 * GB), 16)
    assert chosen is not None
    assert (chosen.strategy, chosen.offload, chosen.activation_checkpointing) == ("ddp", "none", False)
    assert chosen.micro_batch_size == 16


def test_nothing_is_chosen_where_nothing_fits() -> None:
    assert fit(XL, FP16, replace(V100, host_memory=20 * GB), 16) is None
    assert fit(XL, replace(FP16, gpu=False, precision="fp32"), Hardware(host_memory=24 * GB), 16) is None


def test_adapters_stay_with_ddp() -> None:
    chosen = fit(XL, replace(FP16, lora_rank=8), V100, 16)
    assert chosen is not None and chosen.strategy == "ddp" and chosen.lora_rank == 8


def test_a_full_disk_is_told_apart() -> None:
    need = needs(SMALL, FP16)
    found = shortages(need, Hardware(200 * GB, "H100", 80 * GB, disk=need.disk - 1))
    assert [(shortage.what, shortage.needed) for shortage in found] == [("disk", need.disk)]


@pytest.mark.parametrize(("strategy", "gpu", "rows"), [("ddp", True, 64), ("zero2", True, 16), ("ddp", False, 16)])
def test_auto_is_forecast_with_the_rows_that_workers_take(strategy: str, gpu: bool, rows: int) -> None:
    # workers try up to 64 rows out on a GPU; ZeRO, which cannot, takes what the plan found; a CPU up to 16,384 tokens
    machine = Hardware(500 * GB, "H100" if gpu else None, 80 * GB if gpu else 0)
    setup = Setup(strategy, precision="bf16" if gpu else "fp32", seq_len=1024, gpu=gpu)
    report = forecast(SMALL, setup, machine, local_rows=512, micro_batch_size="auto", run="runs/x")
    assert report.fits and report.micro_batch_size == rows
    tight = replace(machine, gpu_memory=24 * GB)
    if gpu and strategy == "ddp":
        report = forecast(SMALL, setup, tight, local_rows=512, micro_batch_size="auto", run="runs/x")
        assert report.fits and 8 <= report.micro_batch_size < 64
