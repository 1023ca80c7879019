from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes

from raygpt.track.plots import make_plots
from raygpt.track.record import make_record

NAMES = ["loss", "learning_rate", "tokens_per_second", "grad_norm", "data_wait"]


def run(steps: int, every: int = 1) -> list[dict]:
    return [
        make_record(
            step=step,
            train_loss=2 + 9 * math.exp(-step / 20),
            val_loss=2.1 if step % (10 * every) == 0 else None,
            lr=1e-3,
            grad_norm=1.0,
            tokens_per_second=1e4,
            step_seconds=0.1,
            data_wait_seconds=0.0002,
        )
        for step in range(every, steps + 1, every)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What is drawn: the arguments of every plot, line and text."""
    calls: dict[str, list] = {"plot": [], "axhline": [], "axvline": [], "annotate": []}
    for name, seen in calls.items():
        real = getattr(Axes, name)

        def spy(self: Axes, *args: object, real=real, seen=seen, **options: object) -> object:
            seen.append(args)
            return real(self, *args, **options)

        monkeypatch.setattr(Axes, name, spy)
    return calls


def test_every_plot_is_a_picture_with_something_in_it(tmp_path: Path) -> None:
    paths = make_plots(run(500), tmp_path / "plots")
    assert [path.stem for path in paths] == NAMES
    for path in paths:
        pixels = image.imread(path)
        assert pixels.shape[1] >= 700
        colours = np.ptp(pixels[..., :3], axis=-1) > 0.3  # axes, grid and text are grey
        assert colours.mean() > 0.001


def test_training_and_validation_are_drawn_at_their_own_steps(tmp_path: Path, drawn: dict[str, list]) -> None:
    make_plots(run(30), tmp_path)
    assert list(drawn["plot"][0][0]) == list(range(1, 31))
    assert drawn["plot"][1] == ([10, 20, 30], [2.1, 2.1, 2.1])


def test_yardsticks_and_restarts_are_marked(tmp_path: Path, drawn: dict[str, list]) -> None:
    rows = run(30)
    rows[11]["restarts"] = 1
    rows[22]["restarts"] = 2
    make_plots(rows, tmp_path, {"bigram entropy": 2.5, "broken": math.nan})
    assert drawn["axhline"] == [(2.5,)]
    assert {at for (at,) in drawn["axvline"]} == {12, 23}
    texts = [args[0] for args in drawn["annotate"]]
    assert "bigram entropy 2.500" in texts
    assert "2 restarts" in texts


def test_a_cut_scale_says_so(tmp_path: Path, drawn: dict[str, list]) -> None:
    make_plots(run(1000), tmp_path)
    assert any("is above the scale" in args[0] for args in drawn["annotate"])


def test_an_empty_run_has_no_plots(tmp_path: Path) -> None:
    assert make_plots([], tmp_path) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "val_loss": 9.0}],
        run(1),
        run(2),
        [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": math.nan}, {"step": 3, "train_loss": math.inf}],
        [{"step": 1, "lr": 0.0, "tokens_per_second": 0.0, "step_seconds": 0.0, "data_wait_seconds": 0.0}],
    ],
)
def test_few_or_broken_points_are_drawn_without_complaint(tmp_path: Path, rows: list[dict]) -> None:
    assert make_plots(rows, tmp_path)


def test_plots_of_figures_that_were_never_finite_are_left_out(tmp_path: Path) -> None:
    assert make_plots([{"step": 1, "train_loss": math.nan, "lr": 0.1}], tmp_path) == [tmp_path / "learning_rate.png"]


def test_of_a_long_run_no_more_is_drawn_than_a_picture_shows(tmp_path: Path, drawn: dict[str, list]) -> None:
    """Smoothing takes the square of it: 100,000 records took 73 s of a core."""
    make_plots(run(5_000), tmp_path)
    lengths = [len(values) for arguments in drawn["plot"] for values in arguments if isinstance(values, list)]
    assert 1_000 < max(lengths) <= 2_000
