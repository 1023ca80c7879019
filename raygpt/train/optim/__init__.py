"""PURE. Optimizers by name. A module of this package that registers one needs no mention anywhere else."""

from __future__ import annotations

import importlib
import pkgutil

from raygpt.train.optim.groups import decay_groups
from raygpt.train.optim.registry import OPTIMIZERS, check_name, make_optimizer, names, register

__all__ = ["OPTIMIZERS", "check_name", "decay_groups", "make_optimizer", "names", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
