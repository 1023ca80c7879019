"""`train`: length, batch, precision, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raygpt.config.section import AlsoCalled, Fixed, Problem, Section


class Train(Section):
    alternatives: ClassVar = (("max_steps", "max_tokens", "epochs"),)

    max_steps: Annotated[
        int | None, AlsoCalled(("max_iters", "num_steps")), Fixed(("sweep",), "its trials have it as their length")
    ] = Field(None, description="optimizer steps (one of max_steps, max_tokens, epochs)", ge=1)
    max_tokens: Annotated[int | None, Fixed(("sweep",), "its trials have it as their length")] = Field(
        None, description="tokens to train on", ge=1
    )
    epochs: Annotated[
        float | None,
        AlsoCalled(("num_train_epochs", "num_epochs")),
        Fixed(("sweep",), "its trials have it as their length"),
    ] = Field(None, description="passes over the training shards", gt=0)
    global_batch_tokens: Annotated[
        int,
        AlsoCalled(("total_batch_size", "global_batch_size")),
        Fixed(("train", "sweep"), "the steps follow from it"),
    ] = Field(524_288, description="tokens per optimizer step over all workers", ge=1)
    micro_batch_size: Annotated[int | Literal["auto"], AlsoCalled(("per_device_train_batch_size",))] = Field(
        "auto", description="rows per forward pass of one worker"
    )
    precision: Annotated[Literal["auto", "fp32", "tf32", "bf16", "fp16"], AlsoCalled(("dtype",))] = Field(
        "auto", description="arithmetic of the model"
    )
    compile: bool = Field(False, description="torch.compile the model")
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = Field(
        "ddp", description="what workers share out (DeepSpeed ZeRO): 1 optimizer state, 2 gradients too, 3 weights too"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="kept in host memory: nothing, the optimizer's part, or the weights too (zero3)"
    )
    deepspeed: dict[str, Any] = Field({}, description="DeepSpeed settings that override the derived ones, key by key")
    activation_checkpointing: Annotated[bool, AlsoCalled(("gradient_checkpointing",))] = Field(
        False, description="recompute activations: less memory, about a third more work"
    )
    log_every: Annotated[int, AlsoCalled(("logging_steps", "log_interval"))] = Field(
        10, description="steps between log lines", ge=1
    )
    checkpoint_every: Annotated[int, AlsoCalled(("save_steps", "save_interval"))] = Field(
        500, description="steps between checkpoints; 0: only at the end", ge=0
    )
    keep_checkpoints: Annotated[int, AlsoCalled(("save_total_limit",))] = Field(
        2, description="newest checkpoints kept (the best one is kept besides)", ge=1
    )
    save_best: bool = Field(False, description="save whenever an evaluation is the best so far")
    max_failures: int = Field(
        3, description="restarts after a lost worker before the job gives up; -1: no limit", ge=-1
    )
    log_batch_digest: bool = Field(False, description="log a digest of every step's token ids (slower)")

    @property
    def lengths(self) -> list[str]:
        """Which of the keys that say how long to train are set."""
        return [key for key in self.alternatives[0] if getattr(self, key) is not None]

    def problems(self) -> Iterator[Problem]:
        if len(self.lengths) > 1:
            first, *others = self.lengths
            yield (
                first,
                f"is set beside train.{' and train.'.join(others)}: set exactly one of train.max_steps, "
                "train.max_tokens, train.epochs",
            )
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size < 1:
            yield "micro_batch_size", "must be at least 1, or auto"
        if self.offload != "none" and self.strategy == "ddp":
            yield "offload", "needs DeepSpeed: set train.strategy to zero1, zero2 or zero3"
        if self.offload == "all" and self.strategy in ("zero1", "zero2"):
            yield "offload", f"is all but train.strategy={self.strategy} keeps whole weights: set zero3"
        if self.deepspeed and self.strategy == "ddp":
            yield "deepspeed", "has no effect with train.strategy=ddp: set zero1, zero2 or zero3"
        if self.compile and self.strategy != "ddp":
            yield "compile", "is not supported with DeepSpeed: set it to false or train.strategy to ddp"
