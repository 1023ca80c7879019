"""PURE. Speeds that others have published for GPT-2-class models, to stand beside one's own bars.

Each has its source, what it was measured on, and dates: when it was published where that is known, and when it was read
here. None of them was measured by raygpt. Those marked "derived" are a quotient of figures in the source, not a figure
that stands there. A result is shown those of its own class of model and of GPU, and others only as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.bench.result import Result, Row
from raygpt.hardware import spec_named

READ = "2026-11-26"


@dataclass(frozen=True)
class Anchor:
    """`tokens_per_second` are of one GPU, `gpu` a name of raygpt.hardware.GPUS, `parameters` in millions; `size` is the
    class of models it stands beside, by GPT-2's sizes (SIZES). `rung` is the rung of the ladder it belongs to, where it
    is one. `mfu` only where the source says it."""

    name: str
    model: str
    parameters: float
    size: str
    gpu: str
    gpus: int
    seq_len: int
    tokens_per_second: float
    source: str
    published: str = ""
    read: str = READ
    mfu: float | None = None
    rung: str = ""
    note: str = ""

    def describe(self) -> str:
        """One line with all that is known of it."""
        share = f", MFU {self.mfu:.1%} by its own count" if self.mfu is not None else ""
        dates = f"published {self.published}, read {self.read}" if self.published else f"read {self.read}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.name}: {self.tokens_per_second:,.0f} tok/s per GPU{share}, {self.model}, context {self.seq_len}, "
            f"{self.gpus} × {self.gpu} ({self.source}; {dates}{note})"
        )


SMALL, MEDIUM, LARGE, XL = "small", "medium", "large", "xl"
SIZES = {SMALL: 124.4, MEDIUM: 354.8, LARGE: 774.0, XL: 1557.6}  # million parameters
LADDER = 'classcentral.com, syllabus of the video "Let\'s reproduce GPT-2" (build-nanogpt itself records no speed)'
FOUNDRY = "github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md"
AUTOTUNING = "github.com/microsoft/DeepSpeedExamples, training/autotuning/hf/gpt2-large/README.md"
AUTOTUNING_SMALL = AUTOTUNING.replace("gpt2-large", "gpt2")
AUTOTUNING_XL = AUTOTUNING.replace("gpt2-large", "gpt2-xl")
STEP_OF = "derived: 16 rows of 1024 tokens over the milliseconds per step that it names"


def _ladder(rung: str, milliseconds: float) -> Anchor:
    speed = 16 * 1024 / milliseconds * 1000
    return Anchor(
        f"build-nanogpt, {rung}",
        "GPT-2 124M",
        124,
        SMALL,
        "A100",
        1,
        1024,
        speed,
        LADDER,
        "2024-06",
        rung=rung,
        note=STEP_OF,
    )


ANCHORS = (
    _ladder("fp32", 1000),
    _ladder("tf32", 333),
    _ladder("bf16", 300),
    _ladder("compile", 130),
    _ladder("flash attention", 96),
    _ladder("padded vocabulary", 93),
    _ladder("fused optimizer", 90),
    Anchor(
        *("nanoGPT", "GPT-2 124M", 124, SMALL, "A100", 8, 1024, 107_000, "github.com/karpathy/nanoGPT, README.md"),
        note='derived: 600,000 steps of 491,520 tokens in "about 4 days"',
    ),
    Anchor(
        *(
            "nanoGPT, compiled",
            "GPT-2 124M",
            124,
            SMALL,
            "A100",
            1,
            1024,
            91_000,
            "github.com/karpathy/nanoGPT, README.md",
        ),
        note="derived: 12 rows of 1024 tokens in 135 ms",
    ),
    Anchor(
        *("litgpt", "GPT-2 124M", 124, SMALL, "A100", 8, 1024, 110_000, "github.com/Lightning-AI/litgpt, issue 1607"),
        note="derived: 98,304 tokens in 111.5 ms",
    ),
    Anchor(
        *("llm.c", "GPT-2 124M", 124, SMALL, "A100 80GB", 8, 1024, 218_000),
        *("github.com/karpathy/llm.c, scripts/run_gpt2_124M.sh", "2024-05"),
        mfu=0.60,
        note="derived: 524,288 tokens in 300 ms",
    ),
    Anchor(
        *("llm.c", "GPT-2 124M", 124, SMALL, "H100", 8, 1024, 468_000),
        *("github.com/KellerJordan/modded-nanogpt, records/track_1_short/2024-10-13_llmc", "2024-10-13"),
        note="derived: 524,288 tokens in 140 ms",
    ),
    Anchor(
        *("build-nanogpt, rerun by another", "GPT-2 124M", 124, SMALL, "A100", 8, 1024, 137_000),
        *("debtirthasaha.github.io/blog/2026/gpt2-124m", "2026"),
        note="derived: 1.1 million tok/s on 8 GPUs, whose memory is not named in what was read",
    ),
    Anchor(
        *("modded-nanogpt, plain PyTorch", "GPT-2 124M, modified", 124, SMALL, "H100", 8, 1024, 462_000),
        *("github.com/KellerJordan/modded-nanogpt, records/track_1_short/2024-10-18_PyTorch25", "2024-10-18"),
        note="derived: 524,288 tokens in 141.8 ms",
    ),
    Anchor(
        *("modded-nanogpt, simple track", "GPT-2 124M, modified", 124, SMALL, "H100", 8, 1024, 422_000),
        *("github.com/KellerJordan/modded-nanogpt, records/track_3_optimization", "2026-06-10"),
        note="derived: 155 ms a step, Muon included",
    ),
    Anchor("llm-foundry", "MPT 125M", 125, SMALL, "A100 80GB", 8, 1024, 156_468, FOUNDRY, mfu=0.432),
    Anchor("llm-foundry", "MPT 125M", 125, SMALL, "A100", 8, 1024, 148_289, FOUNDRY, mfu=0.409),
    Anchor(
        *(
            "nanoGPT in fp16",
            "GPT-2 124M",
            124,
            SMALL,
            "V100",
            1,
            1024,
            56_000,
            "github.com/karpathy/nanoGPT, issue 215",
        ),
        note="derived: 61,440 tokens in 1097 ms; not a number from step 3010 on",
    ),
    Anchor(
        *(
            "nanoGPT",
            "GPT-2 124M",
            124,
            SMALL,
            "RTX 4090",
            1,
            1024,
            106_000,
            "github.com/karpathy/nanoGPT, pull request 225",
        ),
        note="derived: 491,520 tokens in 4627 ms",
    ),
    Anchor("llm-foundry", "MPT 760M", 760, LARGE, "H100", 8, 1024, 78_581, FOUNDRY, mfu=0.398),
    Anchor(
        *("llm-foundry", "MPT 760M", 760, LARGE, "H100", 8, 2048, 68_500, FOUNDRY),
        note="the best of several configurations, which begin at 63,100",
    ),
    Anchor("llm-foundry", "MPT 760M", 760, LARGE, "A100 80GB", 8, 1024, 29_765, FOUNDRY, mfu=0.478),
    Anchor("llm-foundry", "MPT 760M", 760, LARGE, "A100 80GB", 8, 2048, 32_434, FOUNDRY, mfu=0.569),
    Anchor(
        *("DeepSpeed, autotuned", "GPT-2 124M", 124, SMALL, "V100", 16, 1024, 27_600, AUTOTUNING_SMALL),
        note="derived: 432 samples/s of 1024 tokens on 16 GPUs, fp16",
    ),
    Anchor(
        *("DeepSpeed, set by hand", "GPT-2 Large 774M", 774, LARGE, "V100", 16, 1024, 3_635, AUTOTUNING),
        note="derived: 56.8 samples/s of 1024 tokens on 16 GPUs, fp16",
    ),
    Anchor(
        *("DeepSpeed, autotuned", "GPT-2 Large 774M", 774, LARGE, "V100", 16, 1024, 4_420, AUTOTUNING),
        note="derived: 69.1 samples/s of 1024 tokens on 16 GPUs, fp16, ZeRO-1",
    ),
    Anchor(
        *("fgpt", "Llama block of GPT-2 Large's width, 600M", 600, LARGE, "GH200", 1, 1024, 81_000),
        *("github.com/feljost/fgpt, README.md",),
        note="with Muon; its context is not named in what was read",
    ),
    Anchor(
        *("llm.c", "GPT-2 XL 1558M", 1558, XL, "H100", 8, 1024, 48_500),
        *("github.com/karpathy/llm.c, scripts/run_gpt2_1558M.sh", "2024-07"),
        note="derived: 1,048,576 tokens in 2.7 s",
    ),
    Anchor(
        *("DeepSpeed, autotuned", "GPT-2 XL 1558M", 1558, XL, "V100", 16, 1024, 1_760, AUTOTUNING_XL),
        note="derived: 27.5 samples/s of 1024 tokens on 16 GPUs, fp16",
    ),
    Anchor(
        *("transformers, ZeRO-2 with offloading", "GPT-2 XL 1558M", 1558, XL, "V100", 1, 1024, 1_800),
        *("github.com/Xirider/finetune-gpt2xl, README.md", "2021"),
        note="derived: 16 rows of 1024 tokens in about 9 s, fine-tuning in fp16 with recomputed activations, 16 GB",
    ),
)

CLASS = 0.15  # a model whose number of parameters differs by less from one of SIZES is of that class


def of_model(parameters: int) -> list[Anchor]:
    """Those of models of that class."""
    sizes = [name for name, millions in SIZES.items() if abs(millions * 1e6 / parameters - 1) <= CLASS]
    return [anchor for anchor in ANCHORS if anchor.size in sizes]


def matching(parameters: int, device: str) -> list[Anchor]:
    """Those of models of that size on the GPU of that name (as the driver says it)."""
    spec = spec_named(device)
    if spec is None:
        return []
    found = []
    for anchor in of_model(parameters):
        theirs = spec_named(anchor.gpu)
        if theirs is not None and theirs.name == spec.name:
            found.append(anchor)
    return found


def of_result(result: Result) -> tuple[list[Anchor], list[Anchor]]:
    """(published for its class of model and GPU, for its class of model on other hardware)."""
    sizes = {row.settings["parameters"] for row in result.rows if "parameters" in row.settings}
    hardware = result.provenance.get("hardware")
    device = hardware.get("device", "") if isinstance(hardware, dict) else ""
    same = [anchor for size in sizes for anchor in matching(size, device)]
    other = [anchor for size in sizes for anchor in of_model(size) if anchor not in same]
    return same, other


def per_gpu(row: Row) -> float | None:
    """A row's tokens per second and worker, as anchors count them."""
    if row.tokens_per_second is None:
        return None
    return row.tokens_per_second.median / row.settings.get("world_size", 1)


def beside(result: Result) -> str:
    """Markdown list of the anchors that stand beside a result, those of other hardware labelled as such."""
    same, other = of_result(result)
    if not same and not other:
        return "Published speeds: none is of a model of this size.\n"
    lines = []
    if same:
        lines += ["Published for a model of this size on this GPU (not measured here):", ""]
        lines += [f"- {anchor.describe()}" for anchor in same]
    if other:
        lines += ["", "Published for a model of this size on other hardware, and so no measure of this one:", ""]
        lines += [f"- {anchor.describe()}" for anchor in other]
    return "\n".join(lines).strip() + "\n"
