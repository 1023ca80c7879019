"""A run as its folder tells it: config, records, summary, history of starts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from raygpt.errors import UserError
from raygpt.storage import Location, read_text
from raygpt.track.account import price_in, read_history
from raygpt.track.finding import is_number
from raygpt.track.jsonl import read_metrics
from raygpt.track.samples import Written, read_samples
from raygpt.track.spending import Share, paid_for, where_it_went
from raygpt.track.summary import SUMMARY


@dataclass(frozen=True)
class Recorded:
    """`config` and `summary` are None where there is none; a run without a summary is not finished."""

    name: str
    uri: str
    records: list[dict[str, Any]]
    config: dict[str, Any] | None
    summary: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    samples: list[Written] = field(default_factory=list)

    @property
    def started(self) -> float | None:
        """Seconds since 1970 at which it was first started, as far as that is known."""
        times = [row["time"] for row in self.records if is_number(row.get("time"))]
        return self.attempts[0]["started"] if self.attempts else times[0] if times else None

    @property
    def shares(self) -> list[Share]:
        """Where its time and dollars went."""
        paid = paid_for(self.attempts, price_in(self.config or {}))
        return where_it_went(self.attempts, self.records, paid, time.time())

    @property
    def environment(self) -> dict[str, str]:
        """What the last start ran on, by its own words."""
        found = self.attempts[-1].get("environment") if self.attempts else None
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def read_recorded(run: Location) -> Recorded:
    """Raises UserError where there is no run, or its config cannot be read."""
    records = read_metrics(run / "metrics.jsonl")
    config, summary = _read_config(run), _read_summary(run)
    if not records and config is None and summary is None:
        raise UserError(
            f"{run.uri} holds no run (no metrics.jsonl, config.yaml or summary.json): check run.storage and run.name."
        )
    return Recorded(run.name, run.uri, records, config, summary, read_history(run), read_samples(run))


def _read_config(run: Location) -> dict[str, Any] | None:
    import yaml

    try:
        config = yaml.safe_load(read_text(run / "config.yaml"))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run.uri}/config.yaml cannot be read as YAML: mend it or move it away.") from error
    return config if isinstance(config, dict) else None


def _read_summary(run: Location) -> dict[str, Any] | None:
    try:
        summary = json.loads(read_text(run / "summary.json"))
    except (FileNotFoundError, ValueError):
        return None  # the run is not finished: its records say how far it came
    if not isinstance(summary, dict):
        return None
    return {name: value for name, value in summary.items() if _is_figure(name, value)}


def _is_figure(name: str, value: Any) -> bool:
    """Whether a page can show it: of the figures that everybody knows only numbers."""
    if name == "yardsticks":
        return isinstance(value, dict) and all(is_number(each) for each in value.values())
    if name == "samples":
        return isinstance(value, list)
    return is_number(value) if name in SUMMARY else value is not None
