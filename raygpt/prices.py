"""PURE. What machines cost, in US dollars per hour: one table for plans, live cost, reports and cluster files.

Every price has the day on which it was read and where; they change without notice, and what is not known is None. A
YAML or JSON file named in RAYGPT_PRICES overrides or adds entries: `{p4d.24xlarge: 20.5}`, or with more about it
`{p4d.24xlarge: {price: 20.5, spot: 7, read: 2026-11-27}}`. Lambda's are read live where a key is there (`raygpt plan`).
"""

from __future__ import annotations

import datetime
import difflib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raygpt.errors import UserError, one_line

VARIABLE = "RAYGPT_PRICES"
SPOT, ON_DEMAND = "spot", "on-demand"
GIB = 2**30
NOVEMBER, SEPTEMBER, OFFER = "2026-11-09", "2026-09-20", "2026-09-24"
OFFER_FILE = "AWS price list of us-east-1, Linux, on demand"


@dataclass(frozen=True)
class Machine:
    """One type of machine. `memory` is the host's in bytes (0: not known), `gpu` a name of raygpt.hardware.GPUS with
    the memory that the vendor's driver would say, `price` and `spot` US dollars per hour (None: not known), `read` the
    day on which the price was read, `retired` whether the cloud no longer lists it."""

    name: str
    cloud: str  # aws, lambda, other
    cpus: int
    memory: int
    gpus: int = 0
    gpu: str | None = None
    price: float | None = None
    spot: float | None = None
    read: str = ""
    source: str = ""
    retired: bool = False

    def hourly(self, market: str = ON_DEMAND) -> float | None:
        """US dollars per hour on a market (spot, on-demand); None: not known. A spot machine whose spot price is not
        known counts at the on-demand price, which it does not exceed."""
        return self.spot if market == SPOT and self.spot is not None else self.price


def _aws(
    name: str, cpus: int, gib: int, gpus: int, gpu: str | None, price: float, read: str = OFFER, **more: Any
) -> Machine:
    more.setdefault("source", OFFER_FILE)
    return Machine(name, "aws", cpus, gib * GIB, gpus, gpu, price, read=read, **more)


def _lambda(name: str, cpus: int, gib: int, gpus: int, gpu: str | None, price: float) -> Machine:
    return Machine(name, "lambda", cpus, gib * GIB, gpus, gpu, price, read=SEPTEMBER, source="lambda.ai/instances")


# AWS: vCPUs, memory and GPUs as DescribeInstanceTypes has them. Spot prices move by the hour and differ between zones:
# where none is written here, `aws ec2 describe-spot-price-history` says it, and RAYGPT_PRICES takes it.
MACHINES = (
    _aws("m5.large", 2, 8, 0, None, 0.096),
    _aws("m5.xlarge", 4, 16, 0, None, 0.192),
    _aws("m5.2xlarge", 8, 32, 0, None, 0.384),
    _aws("m5.4xlarge", 16, 64, 0, None, 0.768),
    _aws("m6i.large", 2, 8, 0, None, 0.096),
    _aws("m6i.xlarge", 4, 16, 0, None, 0.192),
    _aws("m6i.2xlarge", 8, 32, 0, None, 0.384),
    _aws("m6i.4xlarge", 16, 64, 0, None, 0.768),
    _aws("m7i.large", 2, 8, 0, None, 0.1008),
    _aws("m7i.xlarge", 4, 16, 0, None, 0.2016),
    _aws("m7i.2xlarge", 8, 32, 0, None, 0.4032),
    _aws("m7i.4xlarge", 16, 64, 0, None, 0.8064),
    # the spot price of p3.2xlarge is an undated sample in SkyPilot's catalog
    _aws("p3.2xlarge", 8, 61, 1, "V100 16GB", 3.06, spot=0.918, retired=True),
    _aws("p3.8xlarge", 32, 244, 4, "V100 16GB", 12.24, retired=True),
    _aws("p3.16xlarge", 64, 488, 8, "V100 16GB", 24.48, retired=True),
    _aws("p3dn.24xlarge", 96, 768, 8, "V100 32GB", 31.212, "2026-04-01", source="public lists of EC2 prices"),
    _aws("g4dn.xlarge", 4, 16, 1, "T4", 0.526),
    _aws("g4dn.2xlarge", 8, 32, 1, "T4", 0.752),
    _aws("g4dn.4xlarge", 16, 64, 1, "T4", 1.204),
    _aws("g4dn.8xlarge", 32, 128, 1, "T4", 2.176),
    _aws("g4dn.12xlarge", 48, 192, 4, "T4", 3.912),
    _aws("g5.xlarge", 4, 16, 1, "A10G", 1.006),
    _aws("g5.2xlarge", 8, 32, 1, "A10G", 1.212),
    _aws("g5.4xlarge", 16, 64, 1, "A10G", 1.624),
    _aws("g5.8xlarge", 32, 128, 1, "A10G", 2.448),
    _aws("g5.12xlarge", 48, 192, 4, "A10G", 5.672),
    _aws("g5.16xlarge", 64, 256, 1, "A10G", 4.096),
    _aws("g5.24xlarge", 96, 384, 4, "A10G", 8.144),
    _aws("g5.48xlarge", 192, 768, 8, "A10G", 16.288),
    _aws("g6.xlarge", 4, 16, 1, "L4", 0.8048),
    _aws("g6.2xlarge", 8, 32, 1, "L4", 0.9776),
    _aws("g6.4xlarge", 16, 64, 1, "L4", 1.3232),
    _aws("g6.8xlarge", 32, 128, 1, "L4", 2.0144),
    _aws("g6.12xlarge", 48, 192, 4, "L4", 4.6016),
    _aws("g6.24xlarge", 96, 384, 4, "L4", 6.6752),
    _aws("g6.48xlarge", 192, 768, 8, "L4", 13.3504),
    _aws("g6e.xlarge", 4, 32, 1, "L40S", 1.861),
    _aws("g6e.2xlarge", 8, 64, 1, "L40S", 2.24208),
    _aws("g6e.4xlarge", 16, 128, 1, "L40S", 3.00424),
    _aws("g6e.8xlarge", 32, 256, 1, "L40S", 4.52856),
    _aws("g6e.12xlarge", 48, 384, 4, "L40S", 10.49264),
    _aws("g6e.16xlarge", 64, 512, 1, "L40S", 7.57719),
    _aws("g6e.24xlarge", 96, 768, 4, "L40S", 15.06559),
    _aws("g6e.48xlarge", 192, 1536, 8, "L40S", 30.13118),
    _aws("p4d.24xlarge", 96, 1152, 8, "A100 40GB", 21.957642, NOVEMBER),
    _aws("p4de.24xlarge", 96, 1152, 8, "A100 80GB", 27.44705, NOVEMBER),
    _aws("p5.4xlarge", 16, 256, 1, "H100", 6.88, NOVEMBER),
    _aws("p5.48xlarge", 192, 2048, 8, "H100", 55.04, NOVEMBER),
    _aws("p5en.48xlarge", 192, 2048, 8, "H200", 63.296),
    _lambda("cpu_4x_general", 4, 16, 0, None, 0.20),
    _lambda("gpu_1x_a10", 30, 226, 1, "A10", 1.29),
    _lambda("gpu_1x_a6000", 14, 100, 1, "A6000", 1.09),
    _lambda("gpu_2x_a6000", 28, 200, 2, "A6000", 2.18),
    _lambda("gpu_4x_a6000", 56, 400, 4, "A6000", 4.36),
    _lambda("gpu_8x_v100_n", 88, 448, 8, "V100 16GB", 6.32),
    _lambda("gpu_8x_v100", 92, 448, 8, "V100 16GB", 6.32),
    _lambda("gpu_8x_a100", 124, 1800, 8, "A100 40GB", 15.92),
    _lambda("gpu_8x_a100_80gb_sxm4", 240, 1800, 8, "A100 80GB", 22.32),
    _lambda("gpu_1x_gh200", 64, 432, 1, "GH200", 2.29),
    _lambda("gpu_1x_h100_pcie", 26, 200, 1, "H100 PCIe", 3.29),
    _lambda("gpu_1x_h100_sxm5", 26, 225, 1, "H100", 4.29),
    _lambda("gpu_2x_h100_sxm5", 52, 450, 2, "H100", 8.38),
    _lambda("gpu_4x_h100_sxm5", 104, 900, 4, "H100", 16.36),
    _lambda("gpu_8x_h100_sxm5", 208, 1800, 8, "H100", 31.92),
    _lambda("gpu_8x_b200_sxm6", 208, 2900, 8, "B200", 53.52),
)


def machines() -> dict[str, Machine]:
    """Every type by name, with the file of RAYGPT_PRICES put over the table. UserError for a file that is wrong."""
    table = {entry.name: entry for entry in MACHINES}
    for name, facts in _own_prices().items():
        table[name] = _changed(table.get(name, Machine(name, "other", 0, 0)), facts)
    return table


def machine(name: str) -> Machine:
    """The type of that name. Raises UserError, naming the closest, for another."""
    table = machines()
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    near = f" (the closest that is known: {close[0]})" if close else ""
    raise UserError(f"no price is known of machine type {name}{near}: name it in the file of {VARIABLE}.")


def _own_prices() -> dict[str, Any]:
    where = os.environ.get(VARIABLE)
    if not where:
        return {}
    import yaml  # reads JSON as well

    try:
        found = yaml.safe_load(Path(where).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{VARIABLE}={where} cannot be read ({one_line(error, 120)}): name a YAML or JSON file."
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{VARIABLE}={where} must hold machine types with their prices, as in `p4d.24xlarge: 20.5`.")
    return {str(name): facts for name, facts in found.items()}


def _changed(entry: Machine, facts: Any) -> Machine:
    """A machine with what the user's file says of it: a price, or a mapping."""
    where = f"{VARIABLE}: {entry.name}"
    if not isinstance(facts, dict):
        facts = {"price": facts}
    changes: dict[str, Any] = {"read": "", "source": os.environ.get(VARIABLE, "")}
    for key, value in facts.items():
        if key in ("price", "spot"):
            changes[key] = None if value is None else _number(where, key, value)
        elif key in ("cpus", "gpus"):
            changes[key] = int(_number(where, key, value))
        elif key == "memory_gib":
            changes["memory"] = int(_number(where, key, value) * GIB)
        elif key in ("gpu", "cloud", "source") and isinstance(value, str):
            changes[key] = value
        elif key == "read" and isinstance(value, (str, datetime.date)):
            changes[key] = str(value)
        else:
            raise UserError(
                f"{where}.{key} is no fact of a machine: write price, spot, cpus, memory_gib, gpus, gpu, cloud, read "
                "or source."
            )
    return replace(entry, **changes)


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise UserError(f"{where}.{key}={value} must be a number, 0 or more.")
    return float(value)
