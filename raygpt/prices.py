"""PURE. What machines cost, in US dollars per hour: one table for plans, live cost, reports and cluster files.

Every price has the date it was read and where; they change without notice. A JSON or YAML file named in RAYGPT_PRICES
overrides or adds entries. Lambda's are read live where a key is there (`raygpt.cluster`).
"""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.errors import UserError

GIB = 2**30
NOVEMBER, SEPTEMBER = "2026-11-09", "2026-09-20"


@dataclass(frozen=True)
class Machine:
    """One type of machine. `memory` is the host's in bytes, `gpu` a name of raygpt.hardware.GPUS with the memory that
    the vendor's driver would say, `price` and `spot` US dollars per hour (None: not known), `read` the day on which
    the price was read, `retired` whether the cloud no longer lists it."""

    name: str
    cloud: str  # aws, lambda
    cpus: int
    memory: int
    gpus: int = 0
    gpu: str | None = None
    price: float | None = None
    spot: float | None = None
    read: str = ""
    source: str = ""
    retired: bool = False


def _aws(
    name: str, cpus: int, gib: int, gpus: int, gpu: str | None, price: float | None, read: str, **more: object
) -> Machine:
    source = str(more.pop("source", "AWS on-demand price of us-east-1"))
    return Machine(name, "aws", cpus, gib * GIB, gpus, gpu, price, read=read, source=source, **more)  # type: ignore[arg-type]


def _lambda(name: str, cpus: int, gib: int, gpus: int, gpu: str | None, price: float) -> Machine:
    return Machine(name, "lambda", cpus, gib * GIB, gpus, gpu, price, read=SEPTEMBER, source="lambda.ai/instances")


MACHINES = (
    _aws("m5.2xlarge", 8, 32, 0, None, 0.384, "2026-11-27", source="published price lists, us-east-1"),  # heads
    _aws("p3.2xlarge", 8, 61, 1, "V100 16GB", 3.06, "2020-02-01", spot=0.918, retired=True),
    _aws("p3dn.24xlarge", 96, 768, 8, "V100 32GB", 31.21, "2020-02-01"),
    _aws("g4dn.4xlarge", 16, 64, 1, "T4", None, ""),
    _aws("g5.2xlarge", 8, 32, 1, "A10G", 1.212, "2024-01-01"),
    _aws("g5.12xlarge", 48, 192, 4, "A10G", 5.672, "2024-01-01"),
    _aws("g5.48xlarge", 192, 768, 8, "A10G", 16.288, "2024-01-01"),
    _aws("g6e.48xlarge", 192, 1536, 8, "L40S", None, ""),
    _aws("p4d.24xlarge", 96, 1152, 8, "A100 40GB", 21.957642, NOVEMBER),
    _aws("p4de.24xlarge", 96, 1152, 8, "A100 80GB", 27.44705, NOVEMBER),
    _aws("p5.4xlarge", 16, 256, 1, "H100", 6.88, NOVEMBER),
    _aws("p5.48xlarge", 192, 2048, 8, "H100", 55.04, NOVEMBER),
    _lambda("cpu_4x_general", 4, 16, 0, None, 0.20),
    _lambda("gpu_1x_a10", 30, 226, 1, "A10", 1.29),
    _lambda("gpu_8x_v100_n", 88, 448, 8, "V100 16GB", 6.32),
    _lambda("gpu_8x_a100", 124, 1800, 8, "A100 40GB", 15.92),
    _lambda("gpu_8x_a100_80gb_sxm4", 240, 1800, 8, "A100 80GB", 22.32),
    _lambda("gpu_1x_h100_sxm5", 26, 225, 1, "H100", 4.29),
    _lambda("gpu_8x_h100_sxm5", 208, 1800, 8, "H100", 31.92),
)


def machine(name: str) -> Machine:
    """The type of that name. Raises UserError, naming the closest, for another."""
    for entry in MACHINES:
        if entry.name == name:
            return entry
    raise UserError(f"no price is known of machine type {name}: name it in the file of RAYGPT_PRICES.")
