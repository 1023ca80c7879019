"""A run's figures for Prometheus: Ray's metrics agent of the driver's node shows them beside Ray's own.

The names are those of Ray Train's benchmark harness where it has the figure (`train/global_tokens_per_sec` and so on in
ray/release/train_tests/benchmark/core, a slash written as `_`); Ray puts `ray_` before each. They come from the driver,
which outlives every restart of the workers, so that a restart leaves no gap and no second series.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raygpt.track.record import Record

REPEAT_SECONDS = 2.5
EXPORT_SECONDS = 10.0  # Ray's metrics_report_interval_ms
TAGS = ("run", "ray_job")  # `job` is Prometheus's own label for what it scrapes


@dataclass(frozen=True)
class Exported:
    """One gauge: what it is, and its value from a record, None where the record has none."""

    description: str
    value: Callable[[Record], float | None]
    harness: bool = False  # whether Ray Train's harness has it under this name


def _of(key: str, factor: float = 1.0) -> Callable[[Record], float | None]:
    return lambda record: record[key] * factor if key in record else None


def _per_worker(record: Record) -> float | None:
    if "tokens_per_second" not in record or not record.get("world_size"):
        return None
    return record["tokens_per_second"] / record["world_size"]


FROM_RECORDS: dict[str, Exported] = {
    "train_num_steps": Exported("optimizer steps taken so far", _of("step"), True),
    "train_tokens": Exported("training tokens seen so far", _of("tokens")),
    "train_loss": Exported("mean training loss since the last record, nats per token", _of("train_loss")),
    "train_val_loss": Exported("validation loss, nats per token", _of("val_loss")),
    "train_hellaswag_acc_norm": Exported("accuracy on HellaSwag, 0 to 1", _of("hellaswag_acc_norm")),
    "train_grad_norm": Exported("global gradient norm before clipping", _of("grad_norm")),
    "train_lr": Exported("learning rate", _of("lr")),
    "train_global_tokens_per_sec": Exported("tokens per second of all workers", _of("tokens_per_second"), True),
    "train_tokens_per_sec_per_device": Exported("tokens per second of one worker", _per_worker, True),
    "train_mfu": Exported("model FLOP utilisation, 0 to 1", _of("mfu"), True),
    "train_step_time_mean_s": Exported("seconds per step, mean since the last record", _of("step_seconds"), True),
    "data_step_time_mean_s": Exported("part of it spent waiting for data", _of("data_wait_seconds"), True),
    "train_checkpoint_stall_s": Exported(
        "seconds the last checkpoint held training up", _of("checkpoint_stall_seconds")
    ),
    "train_skipped_steps": Exported("steps skipped because gradients were not finite", _of("skipped_steps")),
    "train_eta_s": Exported("estimated seconds until the run ends", _of("eta_seconds")),
    "train_cost_usd": Exported("US dollars spent so far", _of("cost_usd")),
    "train_last_record_time_s": Exported("when the last record was made, seconds since 1970 UTC", _of("time")),
    "gpu_peak_memory_allocated_gb": Exported(
        "peak device memory of rank 0, 1e9 bytes", _of("gpu_memory_bytes", 1e-9), True
    ),
    "world_size": Exported("training workers", _of("world_size"), True),
}
# What no record says.
FROM_DRIVER: dict[str, str] = {
    "train_started_time_s": "when this job took the run, seconds since 1970 UTC",
    "train_restarts": "starts of the workers after the first",
    "train_max_cost_usd": "track.max_cost_usd, where it is set",
    "train_diverged": "1 when the run ended because loss, weights or gradients were no numbers",
}
NAMES = frozenset(f"ray_{name}" for name in [*FROM_RECORDS, *FROM_DRIVER])


def figures(record: Record) -> dict[str, float]:
    """Gauges and values of one record; what the record does not say is absent."""
    found = {name: each.value(record) for name, each in FROM_RECORDS.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


class MetricsExport:
    """Shows one run's figures. Needs a connected Ray.

    Ray forgets a gauge that was not set for two of its export intervals (20 s), so the last values are set again by
    `repeat`, to be called now and then: what stays away then is a run whose driver is gone.
    """

    def __init__(self, run_name: str, *, started: float, restarts: int, max_cost_usd: float | None = None) -> None:
        import ray
        from ray.util.metrics import Gauge

        descriptions = {name: each.description for name, each in FROM_RECORDS.items()} | FROM_DRIVER
        tags = {"run": run_name, "ray_job": ray.get_runtime_context().get_job_id()}
        self._gauges: dict[str, Any] = {}
        self._values: dict[str, float] = {}
        self._repeated = 0.0
        for name, description in descriptions.items():
            self._gauges[name] = Gauge(name, description, tag_keys=TAGS)
            self._gauges[name].set_default_tags(tags)
        self.set("train_started_time_s", started)
        self.set("train_restarts", restarts)
        self.set("train_diverged", 0)
        if max_cost_usd is not None:
            self.set("train_max_cost_usd", max_cost_usd)

    def set(self, name: str, value: float) -> None:
        self._values[name] = value
        self._gauges[name].set(value)

    def repeat(self) -> None:
        """Set every figure again, if that was not done within REPEAT_SECONDS."""
        if time.monotonic() - self._repeated < REPEAT_SECONDS:
            return
        self._repeated = time.monotonic()
        for name, value in self._values.items():
            self._gauges[name].set(value)

    def log(self, record: Record) -> None:
        """Show what a record says."""
        for name, value in figures(record).items():
            self.set(name, value)

    def diverged(self) -> None:
        """Show that the run ended in numbers that are none, for as long as it takes to be seen."""
        self.set("train_diverged", 1)
        time.sleep(EXPORT_SECONDS)
