"""Unknown devices are unknown, and every automatic choice has a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygpt import hardware
from raygpt.errors import UserError

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "bf16", "memory"),
    [
        ("NVIDIA H200", 989.4e12, 141),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 80),
        ("NVIDIA H100 PCIe", 756e12, 80),
        ("NVIDIA A100-SXM4-40GB", 312e12, 40),
        ("NVIDIA A100-SXM4-80GB", 312e12, 80),
        ("NVIDIA A100-PCIE-40GB", 312e12, 40),
        ("NVIDIA A100 80GB PCIe", 312e12, 80),
        ("NVIDIA A10G", 70e12, 24),
        ("NVIDIA A10", 125e12, 24),
        ("NVIDIA L4", 121e12, 24),
        ("NVIDIA L40", 181e12, 48),
        ("NVIDIA L40S", 362e12, 48),
        ("NVIDIA GH200 480GB", 989.4e12, 96),
        ("NVIDIA GH200 144G HBM3e", 989.4e12, 144),
        ("NVIDIA H200 NVL", 835e12, 141),
        ("NVIDIA H100 NVL", 835e12, 94),
        ("NVIDIA B200", 2250e12, 192),
        ("NVIDIA RTX 6000 Ada Generation", 364.2e12, 48),
        ("NVIDIA RTX A6000", 154.8e12, 48),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 24),
        ("NVIDIA GeForce RTX 3090", 71e12, 24),
        ("Tesla T4", None, 16),
        ("Tesla V100-SXM2-32GB", None, 32),
        ("Tesla V100-PCIE-16GB", None, 16),
        ("v100", None, 16),
        ("A100", 312e12, 40),
        ("Tesla V100-SXM2-16GB", None, 16),
    ],
)
def test_peaks_are_the_datasheets_dense_figures(name: str, bf16: float | None, memory: int) -> None:
    spec = hardware.spec_named(name)
    assert spec is not None and spec.bf16 == bf16 and spec.memory == memory * 10**9


def test_an_unknown_gpu_has_no_mfu_instead_of_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 6: MFU above 100 % on a GPU the table does not know."""
    assert hardware.spec_named("NVIDIA Imaginary 9000") is None
    for other in (
        *("NVIDIA A100X", "NVIDIA A10M", "NVIDIA L40G", "NVIDIA T400", "NVIDIA GB200", "NVIDIA H20", "NVIDIA L20"),
        *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti"),
        *("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A10-24Q", "NVIDIA T4G"),
        *("Quadro RTX 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "Tesla V100S-PCIE-32GB", "NVIDIA", ""),
    ):
        assert hardware.spec_named(other) is None, f"{other}: another chip's name with one of ours in it"
    pcie, sxm = (hardware.spec_named(f"Tesla V100-{form}") for form in ("PCIE-32GB", "SXM2-32GB"))
    assert pcie is not None and sxm is not None and (pcie.fp16, sxm.fp16) == (112e12, 125e12)
    assert hardware.mfu(1e6, 1e9, "bf16", 1) is None
    monkeypatch.setattr(hardware, "gpu_spec", lambda: hardware.spec_named("NVIDIA H100 80GB HBM3"))
    assert hardware.mfu(400_000, 8.6e8, "bf16", 1) == pytest.approx(400_000 * 8.6e8 / 989.4e12)
    assert hardware.mfu(800_000, 8.6e8, "bf16", 2) == pytest.approx(400_000 * 8.6e8 / 989.4e12)
    monkeypatch.setattr(hardware, "gpu_spec", lambda: hardware.spec_named("Tesla V100-SXM2-16GB"))
    assert hardware.mfu(1e5, 1e9, "bf16", 1) is None


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretend GPU")


@pytest.mark.parametrize(
    ("capability", "choice", "reason"),
    [((9, 0), "bf16", "bf16 tensor cores"), ((7, 0), "fp16", "has no bf16"), ((6, 1), "fp32", "no tensor cores")],
)
def test_precision_follows_the_device_and_says_why(monkeypatch, capability, choice, reason) -> None:
    pretend(monkeypatch, capability)
    chosen, why = hardware.choose_precision("auto", CUDA)
    assert chosen == choice and reason in why


def test_a_precision_the_device_lacks_is_refused_with_one_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 0))
    with pytest.raises(UserError, match=r"train.precision=bf16 is not supported by Pretend GPU .*7.0\): use fp16"):
        hardware.choose_precision("bf16", CUDA)
    with pytest.raises(UserError, match="tf32 needs an NVIDIA GPU"):
        hardware.choose_precision("tf32", CPU)
    assert hardware.choose_precision("auto", CPU)[0] == "fp32"
    assert hardware.choose_precision("bf16", CPU) == ("bf16", "as set")


@pytest.mark.parametrize(
    ("capability", "kernel", "first"),
    [((9, 0), "auto", "cudnn"), ((8, 0), "auto", None), ((10, 0), "auto", None), ((8, 0), "math", "math")],
)
def test_attention_prefers_cudnn_on_hopper_alone_or_what_is_asked_for(monkeypatch, capability, kernel, first) -> None:
    pretend(monkeypatch, capability)
    before = torch._C._get_sdp_priority_order()
    try:
        sentence = hardware.prefer_attention(CUDA, kernel)
        order = torch._C._get_sdp_priority_order()
        if first is None:
            assert order == before and "torch's own order" in sentence
        else:
            assert order[0] == int(hardware.KERNELS[first]) and f"{first} first" in sentence
            assert sorted(order) == sorted(before), "an order, no restriction"
            query = torch.randn(1, 1, 4, 8)  # what the first cannot do goes on to another
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    finally:
        hardware._attention.close()
    assert torch._C._get_sdp_priority_order() == before


def test_a_device_gets_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert hardware.indexed(torch.device("cuda")) == torch.device("cuda", 3)
    assert hardware.indexed(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert hardware.indexed(CPU) == CPU


def test_ids_of_any_width_reach_the_device_as_int64() -> None:
    for dtype in (np.uint16, np.uint32, np.int64):
        ids = np.array([[1, 65535], [7, 0]], dtype=dtype)
        rows = hardware.to_device(ids, CPU)
        assert rows.dtype == torch.int64 and rows.tolist() == ids.tolist()
