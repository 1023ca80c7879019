"""PBT and PB2 that keep a population in step, through kills too.

Tune's own let trials go ahead of each other when there are fewer slots than trials: whoever loses takes over a
checkpoint of a trial that lags behind and trains the same epochs again and again. Here nobody passes a multiple of the
interval before all have reached it, an epoch is trained once, and nothing is replaced after the last epoch, where there
is no training left to gain from it.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pb2 import PB2


class InStep:
    """Mixin before one of Tune's population schedulers; `longest` is the number of epochs of every trial."""

    _trial_state: dict[Any, Any]
    _next_perturbation_sync: float
    _perturbation_interval: float
    _time_attr: str

    def __init__(self, *args: Any, longest: int, **options: Any) -> None:
        super().__init__(*args, synch=True, **options)  # type: ignore[call-arg]
        self.longest = longest

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial of an earlier driver comes with its last result: the population goes on from its slowest member."""
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        state, result, every = self._trial_state[trial], trial.last_result or {}, self._perturbation_interval
        epoch = result.get(self._time_attr, 0)
        if epoch and not trial.is_finished():
            state.last_perturbation_time = epoch // every * every
            self._save_trial_state(state, epoch, result, trial)  # type: ignore[attr-defined]
        slowest = min((other.last_train_time for other in self._training().values()), default=0)
        self._next_perturbation_sync = (slowest // every + 1) * every

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result[self._time_attr] >= self.longest:
            return TrialScheduler.CONTINUE
        for other, state in self._trial_state.items():
            if other.is_finished():  # Tune counts a failed trial among those that are still to come
                state.last_train_time = self._next_perturbation_sync
        return super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)  # type: ignore[misc]
        self._release(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]
        self._release(trial)

    def _release(self, gone: Any) -> None:
        """Where only `gone` was waited for, let the others go on: no result will come that would wake them."""
        others = [state for trial, state in self._training().items() if trial is not gone]
        if others and all(state.last_train_time >= self._next_perturbation_sync for state in others):
            self._next_perturbation_sync += self._perturbation_interval

    def _training(self) -> dict[Any, Any]:
        return {trial: state for trial, state in self._trial_state.items() if not trial.is_finished()}


class PopulationInStep(InStep, PopulationBasedTraining):
    """Population-based training (Jaderberg et al., 2017), in step."""


class PB2InStep(InStep, PB2):
    """Population-based bandits (Parker-Holder et al., 2020), in step; after a kill its model begins anew."""
