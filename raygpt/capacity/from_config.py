"""From the settings of a run to its forecast: the one place in capacity/ that is told a Config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raygpt.capacity.clusters import Offer
from raygpt.capacity.fit import Hardware
from raygpt.capacity.forecast import GB, Forecast, forecast
from raygpt.capacity.memory import Setup
from raygpt.capacity.micro_batch import most_local_rows
from raygpt.capacity.quote import Quote
from raygpt.capacity.speed import Measured, Speed, expected_speed
from raygpt.config import Config, Plan
from raygpt.errors import UserError
from raygpt.hardware import spec_named
from raygpt.model.architecture import ModelConfig
from raygpt.storage import Location


def forecast_run(config: Config, model: ModelConfig, hardware: Hardware, *, teacher: int = 0) -> Forecast:
    """The forecast of a run as it is configured, on `hardware` with the `plan` section's figures put over it.
    `teacher` is what one takes beside the student, bytes of a worker.

    Raises UserError where the settings and the GPU that is planned with do not go together.
    """
    hardware = assumed_hardware(config.plan, hardware, config.scale.worker_range[1])
    workers = config.scale.worker_range[0 if config.train.strategy != "ddp" else 1]
    on_host = min(workers, config.plan.gpus_per_host or max(hardware.workers_per_host, 1))
    if hardware.gpu is None and config.plan.gpus_per_host is None:
        on_host = workers
    seq_len = config.data.seq_len or model.seq_len
    setup = Setup(
        strategy=config.train.strategy,
        offload=config.train.offload,
        precision=assumed_precision(config.train.precision, hardware),
        seq_len=seq_len,
        activation_checkpointing=config.train.activation_checkpointing,
        lora_rank=config.model.lora_rank,
        world_size=workers,
        workers_per_host=on_host,
        gpu=hardware.gpu is not None,
        keep_checkpoints=config.train.keep_checkpoints,
        teacher=teacher,
    )
    return forecast(
        model,
        setup,
        replace(hardware, workers_per_host=on_host),
        local_rows=max(1, most_local_rows(config.train.global_batch_tokens // seq_len, workers)),
        micro_batch_size=config.train.micro_batch_size,
        run=f"{config.run.storage}/{config.run.name}",
    )


def quote_run(
    config: Config, model: ModelConfig, offer: Offer, *, tokens: int | None, results: Sequence[Measured] = ()
) -> Quote:
    """What the run would take and cost on an offer's machines; `tokens` are its own, None where nobody knows them."""
    machine, (low, high) = offer.machine, config.scale.worker_range
    a_node = machine.gpus or max(1, int(machine.cpus // config.scale.cpus_per_worker))
    workers = min(high, offer.most * a_node)
    nodes = max(-(-workers // a_node), offer.least)
    if workers < low:
        unit = "GPU" if machine.gpus else "worker"
        lack = (
            f"scale.num_workers={low} but {offer.cluster} has at most {offer.most} x {machine.name} with {a_node} "
            f"{unit}{'s' * (a_node != 1)} each: lower it, or raise max_workers there."
        )
        return Quote(offer, nodes, workers, lack, None, None, tokens, config.plan.price_per_hour)
    spec = spec_named(machine.gpu) if machine.gpu is not None else None
    if not machine.memory or (machine.gpus and spec is None):
        raise UserError(
            f"of {machine.name} in {offer.cluster} the memory or the GPU is not known: give memory_gib and a gpu such "
            "as A100 80GB in the file of RAYGPT_PRICES."
        )
    hardware = Hardware(machine.memory, workers_per_host=a_node)
    if spec is not None:
        hardware = replace(hardware, gpu=machine.gpu, gpu_memory=spec.memory)
    scaled = config.scale.model_copy(update={"num_workers": workers})
    planned = config.plan.model_copy(update={"gpus_per_host": a_node})
    report = forecast_run(config.model_copy(update={"scale": scaled, "plan": planned}), model, hardware)
    setup = report.setup if report.suggestion is None else report.suggestion
    speed = expected_speed(model, setup, machine.gpu, results, config.plan.mfu)
    if config.plan.tokens_per_second is not None:
        speed = Speed(config.plan.tokens_per_second, "plan.tokens_per_second")
    if report.suggestion is None:
        speed = None
    return Quote(offer, nodes, workers, report.refusal, report, speed, tokens, config.plan.price_per_hour)


def check_fit(config: Config, model: ModelConfig, run: Location, *, teacher: int = 0) -> Forecast | None:
    """The forecast of a run on the connected cluster, printed in a line; None with plan.check=off. `teacher` is what
    one takes beside the student in each worker, bytes.

    Raises UserError, naming the setting to change, where it does not fit and plan.check is refuse.
    """
    from raygpt.capacity.preflight import announce, survey
    from raygpt.cluster.connect import wants_gpu

    if config.plan.check == "off":
        return None
    use_gpu = wants_gpu(config.scale)
    hardware, share = survey(
        run, use_gpu=use_gpu, cpus=config.scale.cpus_per_worker, workers=config.scale.worker_range[0]
    )
    if config.plan.gpus_per_host is None:
        config = config.model_copy(update={"plan": config.plan.model_copy(update={"gpus_per_host": share})})
    report = forecast_run(config, model, hardware, teacher=teacher)
    announce(report, config.plan.check)
    return report


def assumed_hardware(plan: Plan, here: Hardware, workers: int) -> Hardware:
    """`here` with plan.gpu, plan.gpu_memory_gb, plan.host_memory_gb and plan.disk_gb in place of its own figures.

    `workers` share a host of which plan.gpus_per_host says nothing. Raises UserError for a GPU that the table lacks and
    no memory is given for.
    """
    if plan.gpu is not None and plan.gpu.lower() == "cpu":
        here = replace(here, gpu=None, gpu_memory=0, workers_per_host=1)
    elif plan.gpu is not None:
        spec = spec_named(plan.gpu)
        if spec is None and plan.gpu_memory_gb is None:
            raise UserError(f"plan.gpu={plan.gpu} is not in the table of GPUs: set plan.gpu_memory_gb too, or cpu.")
        here = replace(
            here,
            gpu=plan.gpu,
            gpu_memory=spec.memory if spec else 0,
            workers_per_host=plan.gpus_per_host or workers,
        )
    if plan.gpu_memory_gb is not None:
        here = replace(here, gpu=here.gpu or "GPU", gpu_memory=int(plan.gpu_memory_gb * GB))
    if plan.host_memory_gb is not None:
        here = replace(here, host_memory=int(plan.host_memory_gb * GB))
    if plan.disk_gb is not None:
        here = replace(here, disk=int(plan.disk_gb * GB))
    return here


def assumed_precision(wanted: str, hardware: Hardware) -> str:
    """train.precision, with auto as a job on that hardware resolves it. UserError for what the GPU cannot do."""
    spec = spec_named(hardware.gpu) if hardware.gpu else None
    if hardware.gpu is None:
        return "fp32" if wanted == "auto" else wanted
    if wanted == "auto":
        return "fp16" if spec is not None and spec.bf16 is None else "bf16"
    if spec is not None and wanted in ("bf16", "tf32") and spec.peak(wanted) is None:
        raise UserError(f"train.precision={wanted} is not supported by {hardware.gpu}: use fp16.")
    return wanted
