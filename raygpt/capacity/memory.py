"""PURE. What a training run needs in memory and on disk, in bytes, from the model's shape and the settings alone.

Every figure follows from what the code holds on to: the model's family (model/gpt2_memory.py for GPT-2),
raygpt.parallel.ddp and raygpt.parallel.zero, and DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py,
partition_parameters.py, runtime/bf16_optimizer.py). benchmarks/memory.md has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod

from raygpt.capacity.allocator import is_tight
from raygpt.capacity.micro_batch import EVALUATION_ROWS, LOSS_TOKENS
from raygpt.model import registry
from raygpt.model.architecture import ModelConfig, Work
from raygpt.parallel.zero_config import BUCKET, LIVE_PARAMETERS, STAGES, SUB_GROUP

MOMENTS = ("start", "forward pass", "backward pass", "optimizer step", "evaluation", "save")

MB = 10**6
SUM = 4  # bytes of a gradient where gradients are added up: in fp32 whatever the model computes in (zero_config.py)
# Elements that DeepSpeed's engine reduces at a time where the optimizer has no buckets (MEMORY_OPT_ALLREDUCE_SIZE).
ENGINE_BUCKET = 500_000_000
# Anonymous memory of one process of each kind, measured (benchmarks/memory.md); "cuda" is what its libraries add.
PROCESSES = {
    "worker": 240 * MB,
    "deepspeed": 115 * MB,
    "ray in a worker": 150 * MB,
    "cuda": 1500 * MB,
    "ray and driver": 1800 * MB,
    "reader": 300 * MB,
}
OBJECT_STORE = 1000 * MB
CUDA_CONTEXT = 700 * MB  # the context, cuBLAS' workspaces
NCCL = 500 * MB  # buffers of a communicator, where there are several workers
# Lost between blocks, as a share of what is allocated: by CUDA's allocator, by glibc's, and by that where large blocks
# are returned (allocator.py).
FRAGMENTATION = {"gpu": 0.06, "cpu": 0.10, "tight": 0.01}


@dataclass(frozen=True)
class Setup:
    """The settings that memory depends on. `workers_per_host` of the `world_size` workers share a machine."""

    strategy: str = "ddp"
    offload: str = "none"
    precision: str = "fp32"  # fp32, tf32, bf16, fp16
    micro_batch_size: int = 1
    seq_len: int = 1024
    grad_accum_steps: int = 1
    activation_checkpointing: bool = False
    lora_rank: int = 0
    world_size: int = 1
    workers_per_host: int = 1
    gpu: bool = True
    keep_checkpoints: int = 2
    loss_tokens: int | None = None  # tokens whose logits exist at a time, 0 for all; none: what training takes there

    @property
    def stage(self) -> int:
        """Of ZeRO; 0 for ddp."""
        return STAGES.get(self.strategy, 0)

    @property
    def half(self) -> bool:
        return self.precision in ("bf16", "fp16")

    @property
    def width(self) -> int:
        """Bytes of a weight the model computes with: ZeRO keeps them in half precision, autocast in fp32."""
        return 2 if self.half and self.stage else 4

    @property
    def work(self) -> Work:
        """One micro-batch."""
        autocast = self.half and not self.stage
        pieces = self.loss_tokens
        if pieces is None:
            pieces = LOSS_TOKENS if self.gpu and not self.stage else 0
        return Work(
            tokens=self.micro_batch_size * self.seq_len,
            seq_len=self.seq_len,
            half=self.half,
            autocast=autocast,
            width=self.width,
            gpu=self.gpu,
            activation_checkpointing=self.activation_checkpointing,
            loss_tokens=0 if self.precision == "fp16" else pieces,  # head_loss.py says why
        )

    @property
    def cut(self) -> int:
        """Parts that ZeRO cuts the optimizer's state into."""
        return self.world_size if self.stage else 1


Parts = dict[str, int]  # what -> bytes


@dataclass(frozen=True)
class Needs:
    """Bytes by moment and purpose: on the device of one worker (nothing on a CPU), on one host, and on disk.

    `disk` is what all checkpoints together take at most, `checkpoint` one of them.
    """

    device: dict[str, Parts]
    host: dict[str, Parts]
    checkpoint: int
    disk: int

    @property
    def device_peak(self) -> int:
        return peak(self.device)[1]

    @property
    def host_peak(self) -> int:
        return peak(self.host)[1]


def peak(moments: dict[str, Parts]) -> tuple[str, int]:
    """(moment, bytes) where the most is needed."""
    if not moments:
        return "", 0
    name = max(moments, key=lambda moment: sum(moments[moment].values()))
    return name, sum(moments[name].values())


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: all of them (padding rows too), of the largest, of those trained."""

    total: int
    largest: int
    trained: int

    @classmethod
    def of(cls, model: ModelConfig, lora_rank: int = 0) -> Counts:
        shapes = registry.parameter_shapes(model)
        total = sum(prod(shape) for shape in shapes.values())
        targets = registry.of(model).adapter_targets
        beside = [
            shape for name, shape in shapes.items() if name.endswith(tuple(f".{part}.weight" for part in targets))
        ]
        adapters = lora_rank * sum(sum(shape) for shape in beside)  # in + out of every matrix that has one
        return cls(
            total=total + adapters,
            largest=max(prod(shape) for shape in shapes.values()),
            trained=adapters if lora_rank else total,
        )


def needs(model: ModelConfig, setup: Setup) -> Needs:
    """Everything; see the parts below."""
    counts = Counts.of(model, setup.lora_rank)
    worker = _zero_states(counts, setup) if setup.stage else _ddp_states(counts, setup)
    family, work = registry.of(model), setup.work
    passes = {
        "forward pass": family.forward_memory(model, work),
        "backward pass": family.backward_memory(model, work),
        "evaluation": family.evaluation_memory(model, replace(work, tokens=EVALUATION_ROWS * work.tokens)),
    }
    device: dict[str, Parts] = {}
    host: dict[str, Parts] = {}
    for moment in MOMENTS:
        on_device, on_host = worker[moment]
        on_device = _sum(on_device, passes.get(moment, {}))
        if setup.gpu:
            device[moment] = _with_fragments(on_device, "gpu")
            device[moment]["CUDA context"] = CUDA_CONTEXT + (NCCL if setup.world_size > 1 else 0)
        else:
            on_host = _sum(on_device, on_host)
        tight = "tight" if is_tight(setup.strategy, setup.activation_checkpointing) else "cpu"
        host[moment] = _host(_with_fragments(on_host, tight), setup, moment, counts)
    checkpoint = 12 * counts.trained + 2 * MB
    return Needs(device, host, checkpoint, checkpoint * (setup.keep_checkpoints + 2))


def process(setup: Setup, deepspeed: bool | None = None) -> int:
    """Bytes of a worker's process without model and data."""
    zero = setup.stage > 0 if deepspeed is None else deepspeed
    kinds = ["worker", *(["deepspeed"] if zero else []), *(["cuda"] if setup.gpu else [])]
    return sum(PROCESSES[kind] for kind in kinds)


def _ray(workers: int) -> int:
    """What Ray adds to each worker, and the process that reads its data."""
    return (PROCESSES["ray in a worker"] + PROCESSES["reader"]) * workers


def reading(counts: Counts) -> int:
    """One tensor on its way from a file: as it lies there, in fp32, and as it is laid out here."""
    return 3 * 4 * counts.largest


def _host(worker: Parts, setup: Setup, moment: str, counts: Counts) -> Parts:
    """A machine: its workers, and what exists once. Each rank of DDP keeps a snapshot of its share of the state."""
    count = setup.workers_per_host
    out = {name: size * count for name, size in worker.items()}
    if setup.strategy == "ddp" and moment not in ("start",):
        out = _sum(out, {"snapshot for checkpoints": 12 * counts.trained * count // setup.world_size})
    once = PROCESSES["ray and driver"] + _ray(count)
    return {**out, "processes": process(setup) * count + once, "object store": OBJECT_STORE}


# --- states: (on the device, in host memory) of one worker at each moment ------------------------------------------


def _ddp_states(counts: Counts, setup: Setup) -> dict[str, tuple[Parts, Parts]]:
    weights, optimizer, gradients = 4 * counts.total, 8 * counts.trained, 4 * counts.trained
    always = {"weights": weights, "optimizer": optimizer}
    # DDP's gradients are views of its buckets, which stay; alone they go after every step
    between = _sum(always, {"gradients": gradients if setup.world_size > 1 else 0})
    full = _sum(always, {"gradients": gradients})
    # one tensor at a time passes through a GPU's host; a model that adapters are put beside is made there as a whole
    passing = {"loading": weights if setup.lora_rank else reading(counts)} if setup.gpu else {}
    return {
        "start": (full, passing),
        "forward pass": (full if setup.grad_accum_steps > 1 else between, {}),
        "backward pass": (full, {}),
        "optimizer step": (full, {}),
        "evaluation": (between, {}),
        "save": (between, {}),
    }


def _zero_states(counts: Counts, setup: Setup) -> dict[str, tuple[Parts, Parts]]:
    return (_stage_3 if setup.stage == 3 else _stage_1_and_2)(counts, setup)


def _stage_1_and_2(counts: Counts, setup: Setup) -> dict[str, tuple[Parts, Parts]]:
    """Whole weights everywhere; the fp32 copy, the moments and, from 2 on, the gradients in parts."""
    if setup.stage == 1 and setup.precision == "bf16" and setup.offload == "none":
        return _bf16_stage_1(counts, setup)
    width, total, part = setup.width, counts.total, ceil(counts.total / setup.cut)
    accumulates = setup.grad_accum_steps > 1
    staged = SUM if setup.stage == 1 else width
    bucket = staged * min(BUCKET, total)
    # reduced in a bucket, from where a copy is flattened, and cast to fp32 if it is not; a larger matrix comes alone
    buffers = bucket + (staged + (SUM if staged != SUM else 0)) * max(min(BUCKET, total), counts.largest)
    weights = {"weights": width * total}
    # before they become views of one flat tensor they exist twice, but then nothing else does
    start_device = {"weights": (2 if setup.gpu else 1) * width * total}
    # stage 1 reduces after the last micro-batch; until then all of them wait
    waiting = SUM * total if setup.stage == 1 else 0
    # the sum of this worker's part: of half-precision gradients a tensor of its own, on the device even when offloaded
    sums = SUM * part if setup.half else 0
    if waiting and not setup.gpu:
        buffers -= bucket  # memory of a CPU counts when it is touched: the bucket grows as what waits is given up
    if setup.offload == "none":
        states = {"weights": width * total, "optimizer": 12 * part}
        # in fp32 the part itself, and in stage 2 a second one beside the one that accumulates
        gradients = sums or width * part * (2 if accumulates and setup.stage == 2 else 1)
        last = sums or 2 * width * part  # in fp32 the part, and the same flattened
        if waiting and not setup.gpu and not sums:
            gradients = 0  # parts grow as what waits is given up, too
        micro = _sum(states, {"gradients": waiting + gradients, "buffers": buffers})
        gathering = _sum(states, {"buffers": _gathering(total, setup)})
        before = _sum(states, {"gradients": (waiting or sums or width * part) if accumulates else 0})
        return {
            "start": (_larger(start_device, gathering), {}),
            "forward pass": (before, {}),
            "backward pass": (micro, {}),
            "optimizer step": (_larger(_sum(states, {"gradients": last}), gathering), {}),
            "evaluation": (states, {}),
            "save": (states, {}),
        }
    pin = _pinned if setup.gpu else int
    lying = {
        "optimizer": pin(4 * part) + 8 * part,
        "gradients": pin(4 * part) + (_pinned_pieces(width, part, setup) if accumulates and not waiting + sums else 0),
        "buffers": pin(width * part) + pin(width * counts.largest),
    }
    device = _sum(weights, {"buffers": width * counts.largest})
    micro = _sum(device, {"gradients": width * counts.largest + waiting + sums, "buffers": buffers})
    return {
        "start": (start_device, lying),
        "forward pass": (_sum(device, {"gradients": (waiting or sums) if accumulates else 0}), lying),
        "backward pass": (micro, lying),
        "optimizer step": (_sum(device, {"gradients": sums, "buffers": _gathering(total, setup)}), lying),
        "evaluation": (device, lying),
        "save": (device, lying),
    }


def _bf16_stage_1(counts: Counts, setup: Setup) -> dict[str, tuple[Parts, Parts]]:
    """DeepSpeed's BF16_Optimizer: each worker always holds fp32 gradients of everything, and bf16 ones for a step."""
    width, total, part = setup.width, counts.total, ceil(counts.total / setup.cut)
    states = {"weights": width * total, "optimizer": 12 * part, "gradients": SUM * total}
    fresh = _sum(states, {"gradients": width * total})
    # matrices and vectors are reduced together from a flat copy, unless the matrices fill a bucket: then in place
    buffers = SUM * total if total <= ENGINE_BUCKET else 0
    start = {"weights": (2 if setup.gpu else 1) * width * total}
    gathering = {"buffers": _gathering(total, setup)}
    return {
        "start": (_larger(start, _sum(states, gathering)), {}),
        "forward pass": (fresh if setup.grad_accum_steps > 1 else states, {}),
        "backward pass": (_sum(fresh, {"buffers": buffers}), {}),
        "optimizer step": (_sum(fresh, gathering), {}),
        "evaluation": (states, {}),
        "save": (states, {}),
    }


def _stage_3(counts: Counts, setup: Setup) -> dict[str, tuple[Parts, Parts]]:
    """Everything in parts; weights are gathered for as long as they are used."""
    width, part = setup.width, ceil(counts.total / setup.cut)
    # one worker alone has nothing to gather, only to fetch from the host
    gathers = setup.world_size > 1 or (setup.gpu and setup.offload == "all")
    live = width * min(counts.total, LIVE_PARAMETERS + BUCKET) * gathers
    # a bucket of gradients, reduced through a flat copy, and the largest gradient, which fits no bucket
    # gloo works in a buffer of its own; in half precision weights that are done with make room for it (measured)
    copies = 2 if setup.gpu or setup.half or setup.world_size == 1 else 3
    reduced = max(copies * min(BUCKET, counts.total), (copies - 1) * counts.largest)
    buffers = SUM * reduced + width * counts.largest
    group = min(part, SUB_GROUP)
    master = 0 if width == 4 and setup.offload == "none" else 4 * part  # fp32 weights serve as their own copy
    pin = _pinned if setup.gpu else int
    device, lying = {"weights": width * part}, {}
    if setup.offload == "none":
        device = _sum(device, {"optimizer": master + 8 * part, "gradients": SUM * part})
        last = {"gradients": SUM * group}  # the same flattened
    else:
        groups = ceil(part / SUB_GROUP)
        lying = {
            "optimizer": 4 * part + 8 * part,
            "gradients": groups * pin(4 * ceil(part / groups)) + pin(SUM * part),
        }
        last = {}
    if setup.offload == "all":
        # made one by one, then moved into one buffer; pinned memory that is freed stays with the process
        pieces = _pinned_pieces(width, part, setup) if setup.gpu else 0
        lying = _sum(lying, {"weights": pin(width * part) + pieces})
        device = {}
    device = _sum(device, {"buffers": SUM * min(BUCKET, counts.total)})
    work = {"gathered weights": live, "buffers": buffers}
    # DeepSpeed puts the parts together by way of the host, before anything else lies there
    passing = {"loading": width * part} if setup.gpu and setup.offload == "none" else {}
    return {
        "start": (device, _sum(lying, passing)),
        "forward pass": (_sum(device, {"gathered weights": live}), lying),
        "backward pass": (_sum(device, work), lying),
        "optimizer step": (_sum(device, last, {"gathered weights": width * counts.largest * gathers}), lying),
        "evaluation": (_sum(device, {"gathered weights": live}), lying),
        "save": (device, lying),
    }


def _gathering(total: int, setup: Setup) -> int:
    """What collecting the updated weights takes besides them: gloo collects in a buffer of its own, NCCL in place."""
    return 0 if setup.gpu or setup.world_size == 1 else setup.width * total


def _pinned(size: int) -> int:
    """PyTorch's allocator of pinned host memory hands out powers of two."""
    return 1 << (int(size) - 1).bit_length() if size > 0 else 0


def _pinned_pieces(width: int, part: int, setup: Setup) -> int:
    """Pinned one parameter at a time: a third is lost on average."""
    return int(width * part * (4 / 3 if setup.gpu else 1))


# --- sums ----------------------------------------------------------------------------------------------------------


def _sum(*parts: Parts) -> Parts:
    out: Parts = {}
    for part in parts:
        for name, size in part.items():
            out[name] = out.get(name, 0) + int(size)
    return {name: size for name, size in out.items() if size}


def _larger(one: Parts, other: Parts) -> Parts:
    return one if sum(one.values()) > sum(other.values()) else other


def _with_fragments(parts: Parts, kind: str) -> Parts:
    lost = int(FRAGMENTATION[kind] * sum(parts.values()))
    return {**parts, "fragmentation": lost} if lost else dict(parts)
