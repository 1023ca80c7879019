"""What a run will take and cost on clusters, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raygpt.capacity.clusters import Offer
from raygpt.capacity.forecast import Forecast, options
from raygpt.capacity.speed import Speed
from raygpt.prices import ON_DEMAND, SPOT


def hours(tokens: float, tokens_per_second: float) -> float:
    """Hours of training."""
    return tokens / tokens_per_second / 3600


def usd(hours: float, usd_per_hour: float) -> float:
    """US dollars for so many hours of all machines."""
    return hours * usd_per_hour


@dataclass(frozen=True)
class Quote:
    """A run on `nodes` machines of an offer with `workers` workers. `refusal` says why it cannot run as configured,
    `forecast` what it takes (None where the machines are too few). `tokens` are the run's, None where its length is not
    known; `price` is the user's, US dollars per hour of the whole cluster."""

    offer: Offer
    nodes: int
    workers: int
    refusal: str | None
    forecast: Forecast | None
    speed: Speed | None
    tokens: int | None
    price: float | None = None

    @property
    def fits(self) -> bool:
        return self.refusal is None

    @property
    def hours(self) -> float | None:
        """Of training alone: what it takes until the machines run comes on top."""
        if self.speed is None or self.tokens is None:
            return None
        return hours(self.tokens, self.speed.tokens_per_second)

    def usd_per_hour(self, market: str = ON_DEMAND) -> float | None:
        if self.price is not None and market == ON_DEMAND:
            return self.price
        return self.offer.usd_per_hour(self.nodes, market)

    def usd(self, market: str = ON_DEMAND) -> float | None:
        """What the run costs on a market; None where its hours or a price are not known."""
        rate = self.usd_per_hour(market)
        return None if rate is None or self.hours is None else usd(self.hours, rate)

    @property
    def lowest_usd(self) -> float | None:
        known = [cost for cost in (self.usd(ON_DEMAND), self.usd(SPOT)) if cost is not None]
        return min(known) if known else None

    @property
    def what(self) -> str:
        """`1 x p4d.24xlarge + m5.2xlarge`"""
        beside = f" + {self.offer.head.machine.name}" if self.offer.head is not None else ""
        return f"{self.nodes} x {self.offer.machine.name}{beside}"

    @property
    def devices(self) -> str:
        """`8 x A100 40GB`, what a person would count."""
        machine = self.offer.machine
        return f"{self.nodes * machine.gpus} x {machine.gpu}" if machine.gpus else f"{self.nodes * machine.cpus} CPUs"

    def to_dict(self) -> dict[str, Any]:
        """For scripts; hours and US dollars, None where not known."""
        return {
            "cluster": self.offer.cluster,
            "machine": self.offer.machine.name,
            "nodes": self.nodes,
            "workers": self.workers,
            "fits": self.fits,
            "refusal": self.refusal,
            "settings": self.forecast.changes if self.forecast is not None else {},
            "tokens_per_second": self.speed.tokens_per_second if self.speed is not None else None,
            "speed_from": self.speed.source if self.speed is not None else None,
            "hours": self.hours,
            "usd_per_hour": self.usd_per_hour(),
            "usd": self.usd(),
            "spot_usd_per_hour": self.usd_per_hour(SPOT),
            "spot_usd": self.usd(SPOT),
            "price_read": self.offer.machine.read,
            "price_from": self.offer.machine.source,
        }


def cheapest(quotes: Sequence[Quote]) -> Quote | None:
    """Of those that fit and whose cost is known."""
    able = [quote for quote in quotes if quote.fits and quote.lowest_usd is not None]
    return min(able, key=lambda quote: quote.lowest_usd or 0.0) if able else None


def text(quotes: Sequence[Quote], own_hours: float | None = None) -> str:
    """The table, then where each figure comes from. `own_hours`: what a person reckons with, for a line beside ours."""
    rows = [("cluster", "machines", "fits", "tok/s", "hours", "$/h", "$", "spot $/h", "spot $", "prices read")]
    for quote in quotes:
        rows.append(
            (
                quote.offer.cluster,
                quote.what,
                "yes" if quote.fits else "no",
                "?" if quote.speed is None else f"{quote.speed.tokens_per_second:,.0f}",
                _figure(quote.hours),
                _figure(quote.usd_per_hour()),
                _figure(quote.usd()),
                _figure(quote.usd_per_hour(SPOT)),
                _figure(quote.usd(SPOT)),
                "plan.price_per_hour" if quote.price is not None else quote.offer.machine.read or "?",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:{width}s}" if column < 3 or column == 9 else f"{cell:>{width}s}"
                  for column, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]  # fmt: skip
    lines.append("")
    for quote in quotes:
        lines += _reasons(quote)
        rate = quote.usd_per_hour()
        for length, whose in ((quote.hours, ""), (own_hours, "By hand: ")):
            if length is not None and rate is not None:
                cost = usd(length, rate)
                lines.append(f"  {whose}{quote.devices} for {length:,.2f} h at ${rate:,.2f}/h = ${cost:,.2f}")
    if (best := cheapest(quotes)) is not None:
        spot = best.usd(SPOT) == best.lowest_usd and best.usd(SPOT) != best.usd()
        lines.append(
            f"Cheapest: {best.offer.cluster}, {best.what}{' on spot' * spot}, ${best.lowest_usd:,.2f} for "
            f"{best.hours:,.2f} h of training; starting the machines comes on top."
        )
    return "\n".join(lines)


def _reasons(quote: Quote) -> list[str]:
    machine = quote.offer.machine
    lines = [f"{quote.offer.cluster}, {quote.what}, {quote.workers} worker{'s' * (quote.workers != 1)}:"]
    if quote.refusal is not None:
        lines.append(f"  does not fit: {quote.refusal}")
        if quote.forecast is not None and quote.forecast.changes:
            lines.append(f"  speed and cost are with {options(quote.forecast.changes)}")
    if quote.speed is not None:
        lines.append(f"  speed: {quote.speed.source}")
    elif not machine.gpus:
        lines.append("  speed: not known of CPUs; set plan.tokens_per_second to one that you measured")
    if machine.retired:
        lines.append(f"  {machine.cloud} no longer lists {machine.name}: only accounts that have it can start it")
    if SPOT in quote.offer.markets and machine.spot is None:
        lines.append(f"  the spot price of {machine.name} is not known: name it in the file of RAYGPT_PRICES")
    return lines


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:,.2f}"
