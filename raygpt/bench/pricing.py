"""PURE. What the machines of a row cost: the share of them that its workers use, at a price that the row names."""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.errors import UserError
from raygpt.prices import Machine


@dataclass(frozen=True)
class Pricing:
    """US dollars per hour of one worker, a share of `unit`, which `workers_per_unit` workers fill."""

    usd_per_worker: float
    workers_per_unit: float
    unit: str

    def per_hour(self, workers: int) -> float:
        """US dollars per hour of that many workers."""
        return self.usd_per_worker * workers

    def describe(self, workers: int) -> str:
        """What `per_hour` is the price of."""
        return f"{workers / self.workers_per_unit:.4g} × {self.unit}"


def of_all(price: float, workers: int) -> Pricing:
    """A price that is that of all `workers` workers' machines together."""
    of = "the machine" if workers == 1 else f"the machines of {workers} workers"
    return Pricing(price / workers, workers, f"{of} at ${price:g} an hour")


def of_machine(machine: Machine, gpus_per_worker: float, cpus_per_worker: float) -> Pricing | None:
    """The price table's machine, a worker using so many of its GPUs, or of its cores where it uses no GPU; None without
    a price. Raises UserError where the table does not say how many the machine has."""
    if machine.price is None:
        return None
    has, uses, what = (
        (machine.gpus, gpus_per_worker, "gpus") if gpus_per_worker else (machine.cpus, cpus_per_worker, "cpus")
    )
    if not has:
        raise UserError(
            f"how many {what} a {machine.name} has is not known, and so not what a worker's share of it costs: name "
            f"{what} in the file of RAYGPT_PRICES, or give the price of all machines together (track.price_per_hour)."
        )
    share = min(1.0, uses / has)
    return Pricing(machine.price * share, 1 / share, f"{machine.name} at ${machine.price:g} an hour")


def of_nodes(nodes: list[tuple[float | None, float]], uses: float, what: str) -> Pricing | None:
    """A cluster of (US dollars per hour, GPUs or cores) at its nodes' own prices, a worker using `uses` of what they
    have; nodes without any are left out. None where one has no price."""
    used = [(price, has) for price, has in nodes if has > 0]
    if not used or any(price is None for price, _ in used):
        return None
    total, has = sum(price for price, _ in used if price is not None), sum(has for _, has in used)
    share = min(1.0, uses / has)
    number = len(used)
    unit = f"the cluster's {has:g} {what} ({number} node{'s' * (number != 1)}) at ${total:g} an hour"
    return Pricing(total * share, 1 / share, unit)
