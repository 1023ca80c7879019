"""The metrics record: one flat dict per logged step or evaluation, the same for every tracker.

A figure that is not known is absent: no record holds None, and no value stands in for one.
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

# name -> what it is, with its unit. This table is the schema of metrics.jsonl.
METRICS: dict[str, str] = {
    "step": "optimizer steps taken so far",
    "tokens": "training tokens seen so far",
    "train_loss": "mean cross-entropy since the last record, nats per token, over all ranks and micro-batches",
    "val_loss": "cross-entropy on validation tokens, nats per token",
    "lr": "learning rate of the step",
    "grad_norm": "global gradient norm before clipping",
    "tokens_per_second": "training tokens per second of step time, all workers together",
    "mfu": "model FLOP utilisation, 0 to 1, against the device's peak",
    "step_seconds": "seconds per optimizer step, mean since the last record, evaluations and checkpoints left out",
    "data_wait_seconds": "part of step_seconds spent waiting for data",
    "checkpoint_stall_seconds": "seconds the last checkpoint held training up",
    "eta_seconds": "estimated seconds until the run ends",
    "cost_usd": "US dollars spent so far at track.price_per_hour",
    "gpu_memory_bytes": "peak device memory allocated, bytes",
    "loss_scale": "scale of the fp16 gradient scaler",
    "world_size": "training workers",
    "batch_digest": "hex digest of the global batch's token ids",
    # below: written where they mean something
    "kd_loss": "divergence from the teacher times its temperature squared, nats per token, as train_loss",
    "ce_loss": "cross-entropy of the next token beside it, nats per token, as train_loss",
    "hellaswag_acc": "share of eval.hellaswag's items whose ending of the largest probability is right, 0 to 1",
    "hellaswag_acc_norm": "the same by the first of eval.protocols, lengths of endings made up for, 0 to 1",
    "teacher_seconds": "part of step_seconds in which a teacher beside the student computed, on rank 0",
    "epoch": "pass over the training tokens, from 0",
    "skipped_steps": "steps skipped so far because gradients were not finite",
    "restarts": "times the run had been restarted, on the first record after each restart",
    "time": "seconds since 1970-01-01 UTC when the record was made",
}

COUNTS = frozenset(
    {"step", "tokens", "gpu_memory_bytes", "world_size", "epoch", "skipped_steps", "restarts"},
)


def make_record(**fields: Any) -> Record:
    """Record of the given METRICS, in the table's order; None values are left out.

    NumPy and torch scalars become Python numbers (exactly: a float32 survives), counts become int.
    Raises TypeError for a name METRICS does not have and when `step` is missing.
    """
    unknown = sorted(set(fields) - set(METRICS))
    if unknown:
        raise TypeError(f"not in the metrics record: {', '.join(unknown)}")
    if fields.get("step") is None:
        raise TypeError("a metrics record needs its step")
    return {name: _plain(name, fields[name]) for name in METRICS if fields.get(name) is not None}


def _plain(name: str, value: Any) -> int | float | str:
    if name == "batch_digest":
        return str(value)
    number = value.item() if hasattr(value, "item") else value
    return int(number) if name in COUNTS else float(number)
