"""Will it fit? From a setup and a machine to a forecast: what is needed, whether there is enough, what to change."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from typing import Any

from raygpt.capacity.fit import Hardware, Shortage, fit, largest_rows, resized, shortages, smallest
from raygpt.capacity.memory import Counts, Needs, Setup, needs, peak
from raygpt.capacity.micro_batch import micro_batch_choices, most_rows
from raygpt.model.architecture import ModelConfig

GB = 1e9
GIB = 2**30


@dataclass(frozen=True)
class Forecast:
    """What a run needs on a machine. `suggestion` is the fastest setup that fits, None where none does."""

    model: ModelConfig
    setup: Setup
    needs: Needs
    hardware: Hardware
    shortages: tuple[Shortage, ...]
    suggestion: Setup | None
    run: str  # where checkpoints go

    @property
    def fits(self) -> bool:
        return not self.shortages

    @property
    def micro_batch_size(self) -> int:
        """Rows of a forward pass that the figures are for: the setting, or the largest that fits."""
        return self.setup.micro_batch_size

    @property
    def changes(self) -> dict[str, str | int | bool]:
        """Settings that would differ under `suggestion`, by dotted key."""
        if self.suggestion is None:
            return {}
        names = ("strategy", "offload", "micro_batch_size", "activation_checkpointing")
        return {
            f"train.{name}": getattr(self.suggestion, name)
            for name in names
            if getattr(self.suggestion, name) != getattr(self.setup, name)
        }

    @property
    def refusal(self) -> str | None:
        """One sentence naming what is short and the setting to change; None where the run fits."""
        if self.fits:
            return None
        worst = self.shortages[0]
        lack = f"{_subject(self, worst)} but {_supply(self, worst)}"
        return f"{lack}: {self._way_out(worst)}."

    def _way_out(self, worst: Shortage) -> str:
        if all(shortage.what == "disk" for shortage in self.shortages):
            room = max(0, worst.available // self.needs.checkpoint - 2)
            if room >= 1:
                return f"set train.keep_checkpoints={room}"
            return "free some, or set run.storage to a larger disk or an s3:// URI"
        if self.suggestion is not None:
            return "set " + " and ".join(f"{key}={_text(value)}" for key, value in self.changes.items())
        least = smallest(self.model, self.setup, self.hardware)
        wanted = []
        if self.hardware.gpu is not None and least.device_peak > self.hardware.device_limit:
            wanted.append(f"{_gb(least.device_peak)} per GPU")
        if least.host_peak > self.hardware.host_limit:
            wanted.append(f"{_gb(least.host_peak)} of host memory")
        most = "everything in host memory" if self.hardware.gpu else "ZeRO-3"
        share = "raise scale.num_workers, " if not self.setup.lora_rank else ""
        return (
            f"even {most} and one row at a time takes {' and '.join(wanted)}; {share}choose a smaller model "
            "(model.preset, model.init_from), or a larger machine"
        )

    def text(self) -> str:
        """The tables and the verdict, for people."""
        rows = [_header(self), ""]
        if self.hardware.gpu is not None:
            rows += _table(
                f"Each GPU ({self.hardware.gpu}, {_gb(self.hardware.gpu_memory)})",
                self.needs.device,
                self.hardware.gpu_memory,
            )
        rows += _table(
            f"Each host ({_gb(self.hardware.host_memory)}, {_plural(self.setup.workers_per_host, 'worker')})",
            self.needs.host,
            self.hardware.host_memory,
        )
        free = f" of {_gb(self.hardware.disk)} free" if self.hardware.disk is not None else ""
        rows += [
            f"Disk: {_gb(self.needs.disk)}{free} in {self.run}: {self.setup.keep_checkpoints} newest checkpoints, the "
            f"best and the one being written, {_gb(self.needs.checkpoint)} each",
            "",
        ]
        estimate = deepspeed_estimate(self.model, self.setup) if self.setup.gpu else None
        if estimate is not None:
            rows += [_beside(self, estimate), ""]
        rows.append("It fits." if self.fits else f"It does not fit: {self.refusal}")
        if self.changes and self.suggestion is not None:
            there = needs(self.model, self.suggestion)
            device = f"{_gb(there.device_peak)} per GPU, " if self.hardware.gpu is not None else ""
            rows.append(f"Add: {options(self.changes)}   ({device}{_gb(there.host_peak)} per host)")
        return "\n".join(rows)

    def to_json(self) -> str:
        """The figures in bytes, for scripts."""
        moments = {"device": self.needs.device, "host": self.needs.host}
        return json.dumps(
            {
                "fits": self.fits,
                "refusal": self.refusal,
                "device_bytes": self.needs.device_peak,
                "host_bytes": self.needs.host_peak,
                "checkpoint_bytes": self.needs.checkpoint,
                "disk_bytes": self.needs.disk,
                "parts": {name: moment[peak(moment)[0]] for name, moment in moments.items() if moment},
                "micro_batch_size": self.micro_batch_size,
                "settings": self.changes,
            }
        )


def forecast(
    model: ModelConfig, setup: Setup, hardware: Hardware, *, local_rows: int, micro_batch_size: int | str, run: str
) -> Forecast:
    """What `setup` needs on `hardware`, `local_rows` being a worker's rows of one optimizer step.

    `micro_batch_size` in place of the setup's: rows, or auto for what the workers would find. `run` is where
    checkpoints go, for the sentences.
    """
    if isinstance(micro_batch_size, int):
        setup = resized(setup, micro_batch_size, local_rows)
    elif hardware.gpu is None:
        # on a CPU the workers do not try sizes out: larger ones gain nothing
        most = most_rows(setup.strategy, gpu=False, seq_len=setup.seq_len)
        setup = resized(setup, micro_batch_choices(local_rows, most)[0], local_rows)
    else:
        fitting = largest_rows(model, setup, hardware, local_rows)
        setup = fitting or resized(setup, 1, local_rows)
    need = needs(model, setup)
    found = tuple(shortages(need, hardware))
    suggestion = fit(model, setup, hardware, local_rows) if any(item.what != "disk" for item in found) else setup
    return Forecast(model, setup, need, hardware, found, suggestion, run)


def deepspeed_estimate(model: ModelConfig, setup: Setup) -> tuple[int, int] | None:
    """(host, GPU) bytes of the model's states as DeepSpeed's own estimators have it, host buffers times 1.5 included.

    None without ZeRO or where DeepSpeed is not installed.
    """
    if not setup.stage:
        return None
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
            from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    except ImportError:
        return None
    counts = Counts.of(model)
    hosts = -(-setup.world_size // setup.workers_per_host)
    places = {"num_gpus_per_node": setup.workers_per_host, "num_nodes": hosts}
    if setup.stage == 3:
        host, gpu, _ = estimate_zero3_model_states_mem_needs(
            counts.total,
            counts.largest,
            cpu_offload=setup.offload != "none",
            cpu_offload_params=setup.offload == "all",
            zero_init=True,
            **places,
        )
    else:
        host, gpu = estimate_zero2_model_states_mem_needs(counts.total, cpu_offload=setup.offload != "none", **places)
    return host, gpu


def options(settings: dict[str, Any]) -> str:
    """As they are written on the command line."""
    return " ".join(f"--{key}={_text(value)}" for key, value in settings.items())


def _header(forecast: Forecast) -> str:
    setup = forecast.setup
    recomputed = ", activation checkpointing" if setup.activation_checkpointing else ""
    adapters = f", adapters of rank {setup.lora_rank}" if setup.lora_rank else ""
    return (
        f"Model of {forecast.model.num_parameters():,} parameters{adapters}, {setup.strategy}, "
        f"offload {setup.offload}, {setup.precision}, {_plural(setup.world_size, 'worker')}, "
        f"{setup.micro_batch_size} x {setup.seq_len} tokens per pass{recomputed}"
    )


WHEN = {"start": "at the start", "evaluation": "during evaluation", "save": "when a checkpoint is saved"}


def _table(title: str, moments: dict[str, dict[str, int]], limit: int) -> list[str]:
    moment, total = peak(moments)
    parts = sorted(moments[moment].items(), key=lambda item: -item[1])
    width = max(len(name) for name, _ in parts)
    rows = [f"{title}, most {WHEN.get(moment, f'in the {moment}')}:"]
    rows += [f"  {name:{width}s} {size / GB:9.2f} GB" for name, size in parts]
    rows += [f"  {'total':{width}s} {total / GB:9.2f} GB of {limit / GB:.2f} ({total / limit:.0%})", ""]
    return rows


def _beside(forecast: Forecast, estimate: tuple[int, int]) -> str:
    """DeepSpeed's figures next to ours for the same: states, without activations, processes and the context."""
    ours = states(forecast.needs)
    host, gpu = estimate
    return (
        f"States alone: {ours[1] / GIB:.1f} GiB per GPU, {ours[0] / GIB:.1f} GiB per host; DeepSpeed's estimator: "
        f"{gpu / GIB:.1f} and {host / GIB:.1f} (its host figure: values times 1.5 for buffers; ours: pinned memory in "
        "powers of two, as PyTorch allocates it, and on the GPU the gradients' sums in fp32)"
    )


STATES = ("weights", "optimizer", "gradients", "buffers", "gathered weights", "loading", "half-precision copies")


def states(need: Needs) -> tuple[int, int]:
    """(host, GPU) bytes of weights, gradients, optimizer and buffers at their worst: what DeepSpeed estimates."""

    def worst(moments: dict[str, dict[str, int]]) -> int:
        return max((sum(part.get(name, 0) for name in STATES) for part in moments.values()), default=0)

    return worst(need.host), worst(need.device)


def _subject(forecast: Forecast, shortage: Shortage) -> str:
    setup = forecast.setup
    if shortage.what == "disk":
        return (
            f"train.keep_checkpoints={setup.keep_checkpoints} needs {_gb(shortage.needed)} of disk "
            f"({_gb(forecast.needs.checkpoint)} per checkpoint, the best and one being written besides)"
        )
    offload = f", train.offload={setup.offload}" if setup.offload != "none" else ""
    where = "on each GPU" if shortage.what == "device" else "of host memory"
    return (
        f"train.strategy={setup.strategy}{offload} with {_plural(setup.micro_batch_size, 'row')} per pass needs "
        f"{_gb(shortage.needed)} {where}"
    )


def _supply(forecast: Forecast, shortage: Shortage) -> str:
    if shortage.what == "device":
        return f"{forecast.hardware.gpu} has {_gb(shortage.available)}"
    if shortage.what == "host":
        return f"the machine has {_gb(shortage.available)}"
    return f"{_gb(shortage.available)} are free in {forecast.run}"


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
