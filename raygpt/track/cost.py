"""What a run costs: the price of all its machines together, times the hours it has held them."""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.errors import UserError


@dataclass(frozen=True)
class Cost:
    """Cost at `price_per_hour` US dollars for the whole cluster; without a price every figure is None.

    Raises UserError for a price or budget that is not positive and for a budget without a price.
    """

    price_per_hour: float | None = None
    max_usd: float | None = None

    def __post_init__(self) -> None:
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise UserError(f"track.price_per_hour={self.price_per_hour} must be 0 or more US dollars per hour.")
        if self.max_usd is not None and not self.max_usd > 0:
            raise UserError(f"track.max_cost_usd={self.max_usd} must be above 0 US dollars; leave it out for no limit.")
        if self.max_usd is not None and self.price_per_hour is None:
            raise UserError(
                "track.max_cost_usd needs a price to count with: set track.price_per_hour to what all machines of the "
                "run cost per hour in US dollars."
            )

    def usd(self, seconds: float) -> float | None:
        """US dollars for `seconds` of the cluster; None without a price."""
        return None if self.price_per_hour is None else self.price_per_hour * seconds / 3600

    def seconds_left(self, seconds: float) -> float | None:
        """Seconds the budget still pays for after `seconds`; None without a budget, 0 when it is spent."""
        if self.max_usd is None or not self.price_per_hour:
            return None
        return max(0.0, self.max_usd / self.price_per_hour * 3600 - seconds)

    def is_spent(self, seconds: float) -> bool:
        """Whether `seconds` of the cluster have used up the budget; never without one."""
        left = self.seconds_left(seconds)
        return left is not None and left <= 0
