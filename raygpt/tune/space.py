"""The search space as it stands in a config: any setting -> choice, grid, uniform, loguniform or randint.

    tune:
      space:
        optim.lr: {loguniform: [1.0e-5, 3.0e-4]}
        task.batch_size: {choice: [16, 32]}
        task.reinit_layers: {randint: [0, 3]}        both ends included

Trials carry flat parameters {dotted key: number, text or truth value}; a choice between lists travels as its JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from raygpt.config import Config
from raygpt.config.settings import config_with
from raygpt.errors import UserError

KINDS = ("choice", "grid", "uniform", "loguniform", "randint")
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Dimension:
    """One setting to search. `options` of a choice or grid; `low` and `high`, both included, of the others."""

    key: str
    kind: str
    options: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0

    @property
    def is_numeric(self) -> bool:
        return self.kind in ("uniform", "loguniform", "randint")

    def sample(self, random: np.random.Generator) -> Value:
        """A value drawn as the kind says."""
        if self.kind == "uniform":
            return float(random.uniform(self.low, self.high))
        if self.kind == "loguniform":
            return float(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        if self.kind == "randint":
            return int(random.integers(int(self.low), int(self.high) + 1))
        return self.options[int(random.integers(len(self.options)))]

    def clip(self, value: Any) -> Any:
        """The nearest allowed value: PBT's factors lead out of the range."""
        if not self.is_numeric:
            return value
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind == "randint" else float(value)

    def describe(self) -> str:
        if not self.is_numeric:
            return f"one of {', '.join(str(option) for option in self.options)}"
        return f"{self.low:g} to {self.high:g}{' (log)' if self.kind == 'loguniform' else ''}"


class Space:
    """All dimensions of a sweep, in the config's order."""

    def __init__(self, dimensions: list[Dimension]) -> None:
        self.dimensions = {dimension.key: dimension for dimension in dimensions}

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination of options, the last key running fastest."""
        options = [dimension.options for dimension in self.dimensions.values()]
        for values in product(*options):
            yield dict(zip(self.dimensions, values))

    def sample(self, random: np.random.Generator) -> dict[str, Value]:
        return {key: dimension.sample(random) for key, dimension in self.dimensions.items()}

    def clip(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters with every number back in its range; others are left alone."""
        return {
            key: self.dimensions[key].clip(value) if key in self.dimensions else value for key, value in params.items()
        }

    def largest(self, key: str, otherwise: float) -> float:
        """The largest value a setting may take; `otherwise` where it is not searched."""
        item = self.dimensions.get(key)
        if item is None:
            return otherwise
        return item.high if item.is_numeric else max(float(option) for option in item.options if option is not None)

    def apply(self, config: Config, params: Mapping[str, Any]) -> Config:
        """The config of one trial. Raises UserError for values the settings do not allow."""
        return config_with(config, decode(params), "tune.space")


def decode(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a trial's parameters: lists and mappings back from their JSON, numpy numbers as Python's."""
    out: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, str) and value[:1] in "[{":
            value = json.loads(value)
        elif isinstance(value, np.generic):
            value = value.item()
        out[key] = value
    return out


def encode_value(value: Any) -> Value:
    """An option as parameters carry it."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def read_space(config: Config) -> tuple[Space, list[str]]:
    """(the space, everything wrong with it): keys, kinds, empty ranges, and values the settings do not allow."""
    dimensions, problems = [], []
    for key, spec in config.tune.space.items():
        try:
            dimension = _dimension(key, spec, grid=config.tune.search == "grid")
            problems += _bad_values(config, dimension)
            dimensions.append(dimension)
        except UserError as error:
            problems.append(str(error))
    if not config.tune.space:
        problems.append(
            "tune.space is empty: name settings to search, such as optim.lr: {loguniform: [1.0e-5, 3.0e-4]}"
        )
    return Space(dimensions), problems


def _dimension(key: str, spec: Any, grid: bool) -> Dimension:
    where = f"tune.space: {key}"
    if key.split(".")[0] in ("tune", "run") or key in ("task.name", "task.train", "task.val", "task.test"):
        raise UserError(f"{where} cannot be searched: trials share it")
    if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        raise UserError(f"{where} must be one of {', '.join(KINDS)} with its values, as in {{choice: [1, 2]}}")
    ((kind, values),) = spec.items()
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {kind} has no values: write {{{kind}: [...]}}")
    if kind in ("choice", "grid"):
        options = tuple(encode_value(value) for value in values)
        if len(set(map(repr, options))) < len(options):
            raise UserError(f"{where}: {kind} names a value twice")
        return Dimension(key, kind, options)
    if grid:
        raise UserError(
            f"{where}: {kind} has no grid: list its values with grid, or set tune.search to random or optuna"
        )
    if len(values) != 2 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise UserError(f"{where}: {kind} takes two numbers, [low, high]")
    low, high = values
    if not low < high:
        raise UserError(f"{where}: {kind} from {low} to {high} is empty: the first number must be the smaller one")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{where}: loguniform must begin above 0, not at {low}")
    if kind == "randint" and not (float(low).is_integer() and float(high).is_integer()):
        raise UserError(f"{where}: randint takes whole numbers, not {low} and {high}")
    return Dimension(key, kind, (), low, high)


def _bad_values(config: Config, dimension: Dimension) -> list[str]:
    """Values of a dimension that the settings do not take; for a range its two ends."""
    if dimension.kind == "randint":
        values: list[Any] = [int(dimension.low), int(dimension.high)]
    elif dimension.is_numeric:
        # an end may be excluded by the setting (dropout < 1) and then is never drawn: try points just inside
        inside = 1e-6 * (dimension.high - dimension.low)
        values = [dimension.low + inside, dimension.high - inside]
    else:
        values = list(dimension.options)
    found: list[str] = []
    for value in values:
        try:
            config_with(config, decode({dimension.key: value}), "tune.space")
        except UserError as error:
            found += [line for line in str(error).splitlines() if line not in found]
    return found
