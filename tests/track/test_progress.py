from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from raygpt.track.progress import Progress, format_bar, format_line, human_count, human_duration
from raygpt.track.record import make_record

FULL = make_record(
    step=400,
    tokens=209_715_200,
    train_loss=4.182,
    val_loss=4.2149,
    lr=5.9e-4,
    grad_norm=0.8,
    tokens_per_second=182_044.0,
    mfu=0.512,
    step_seconds=2.88,
    data_wait_seconds=0.00576,
    eta_seconds=3840,
    cost_usd=3.119,
)
LINE = "step 400/3000 13% | loss 4.1820 | val 4.21 | lr 5.9e-4 | 182k tok/s | mfu 51% | data 0.2% | eta 1h04m | $3.12"


def test_the_line_is_the_one_of_the_design() -> None:
    assert format_line(FULL, 3000) == LINE


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"step": 0, "val_loss": 10.98}, "step 0/3000 0% | val 10.98"),
        ({"step": 1, "train_loss": 10.9821, "lr": 0.0}, "step 1/3000 0% | loss 10.9821 | lr 0"),
        ({"step": 2999, "train_loss": 3.2}, "step 2999/3000 99% | loss 3.2000"),
        ({"step": 3000, "lr": 1e-3, "tokens_per_second": 950.4}, "step 3000/3000 100% | lr 1.0e-3 | 950 tok/s"),
        ({"step": 5, "train_loss": float("nan")}, "step 5/3000 0% | loss nan"),
        ({"step": 5, "data_wait_seconds": 0.1, "eta_seconds": 0.0}, "step 5/3000 0% | eta 0s"),
    ],
)
def test_figures_that_are_not_known_are_left_out(record: dict, line: str) -> None:
    assert format_line(record, 3000) == line


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (3.2, "3.20"), (950, "950"), (999.4, "999"), (999.6, "1.00k"), (1840, "1.84k"), (9996, "10.0k"),
        (18_400, "18.4k"), (182_044, "182k"), (999_499, "999k"), (999_600, "1.00M"), (1_240_000, "1.24M"),
        (12_400_000, "12.4M"), (124_439_808, "124M"), (10e9, "10.0B"), (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_human_count(number: float, text: str) -> None:
    assert human_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.4, "0s"), (42, "42s"), (59.7, "1m00s"), (200, "3m20s"), (3599.6, "1h00m"), (3840, "1h04m"),
        (86_340, "23h59m"), (86_395, "1d00h"), (183_600, "2d03h"), (-1, "0s"), (float("nan"), "?"),
    ],
)  # fmt: skip
def test_human_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_a_job_log_gets_plain_lines() -> None:
    stream = io.StringIO()
    progress = Progress(3000, stream)
    progress.update(FULL)
    progress.note("saved checkpoint-000400")
    progress.close()
    assert stream.getvalue() == LINE + "\nsaved checkpoint-000400\n"


def test_the_bar_is_redrawn_in_place_and_evaluations_stay_above_it() -> None:
    stream = io.StringIO()
    progress = Progress(10, stream, live=True)
    progress.update({"step": 1, "train_loss": 5.0})
    progress.update({"step": 2, "val_loss": 4.5})
    progress.note("saved")
    progress.update({"step": 3, "train_loss": 4.0})
    progress.close()
    assert screen(stream.getvalue()) == [
        "step 2/10 20% | val 4.50",
        "saved",
        "######.............. step 3/10 30% | loss 4.0000 | val 4.50",
        "",
    ]


@pytest.mark.parametrize("columns", [10, 30, 40, 60, 80, 120, 200])
def test_the_bar_never_wraps(columns: int) -> None:
    assert len(format_bar(FULL, 3000, columns)) <= columns


def test_a_narrow_terminal_keeps_step_loss_and_eta() -> None:
    assert format_bar(FULL, 3000, 70) == "##.................. step 400/3000 13% | loss 4.1820 | eta 1h04m"
    assert format_bar(FULL, 3000, 48) == "step 400/3000 13% | loss 4.1820 | eta 1h04m"
    assert format_bar(FULL, 3000, 36) == "step 400/3000 13% | loss 4.1820"


def test_the_wide_bar_has_every_figure() -> None:
    assert format_bar(FULL, 3000, 200) == f"##.................. {LINE}"


def test_a_closed_pipe_does_not_stop_training() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Progress(10, Closed()).update({"step": 1})


def test_a_real_terminal_gets_the_bar_at_its_width() -> None:
    main, child = pty.openpty()
    code = (
        "import fcntl, termios, struct, sys; fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 60, 0, 0));"
        "from raygpt.track.progress import Progress; p = Progress(10);"
        "p.update({'step': 5, 'train_loss': 2.0, 'lr': 1e-3, 'tokens_per_second': 1e5, 'eta_seconds': 9}); p.close()"
    )
    environ = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-c", code], stdout=child, env=environ, check=True, timeout=60)
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:
        pass  # end of a pseudo-terminal
    os.close(main)
    line = screen(shown.decode())[0]
    assert line == "██████████░░░░░░░░░░ step 5/10 50% | loss 2.0000 | eta 9s"
    assert len(line) < 60


def screen(text: str) -> list[str]:
    """What a terminal shows after `text`: carriage return and erase-line understood."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part.removeprefix("\x1b[K") if part.startswith("\x1b[K") else part + shown[len(part) :]
        lines.append(shown)
    return lines
