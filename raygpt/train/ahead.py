"""PURE. The next batch, fetched and on its way to the device while the current one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from raygpt.hardware import to_device

if TYPE_CHECKING:
    import numpy as np

    from raygpt.data.stream import Batch

Beside = Callable[["Batch"], "dict[str, np.ndarray]"]


class Ahead:
    """Batches of an iterator with what a step takes of them on `device`: "rows" (local_rows, seq_len + 1) int64, and
    what `beside` has for these rows, if anything does.

    A step on a GPU is queued, not done, when its call returns: `fetch` then costs nothing unless the data is late, and
    whoever waits for the device afterwards finds the next rows there. What fetching raises is raised by `take`, when
    the step before has been counted and maybe saved.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, beside: Beside | None = None) -> None:
        self._batches = batches
        self._device = device
        self._beside = beside
        self._next: tuple[Batch, dict[str, torch.Tensor]] | None = None
        self._error: Exception | None = None

    def fetch(self) -> None:
        """Have the next batch ready. Does nothing where it is."""
        if self._next is not None or self._error is not None:
            return
        try:
            batch = next(self._batches)
            more = self._beside(batch) if self._beside is not None else {}
            arrays = {"rows": batch.tokens, **more}
            self._next = batch, {name: to_device(values, self._device) for name, values in arrays.items()}
        except Exception as error:
            self._error = error

    def take(self) -> tuple[Batch, dict[str, torch.Tensor]]:
        """The next batch and what a step takes of it. Raises what the iterator raised, StopIteration at its end."""
        self.fetch()
        if self._error is not None:
            raise self._error
        assert self._next is not None
        taken, self._next = self._next, None
        return taken
