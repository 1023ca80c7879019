"""Texts that a model wrote while it trained, kept over a restart."""

from __future__ import annotations

from pathlib import Path

from raygpt.storage import locate
from raygpt.track.samples import SAMPLES, SampleLog, Written, read_samples


def test_a_run_that_goes_on_drops_what_was_written_after_its_checkpoint(tmp_path: Path) -> None:
    run = locate(tmp_path)
    log = SampleLog(run, 0)
    for step in (10, 20, 30):
        log.append(step, [f"text {step}\nover two lines", "ünd"])
    with open(tmp_path / SAMPLES, "a") as file:
        file.write('{"step": 40, "te')  # a kill
    assert [one.step for one in read_samples(run)] == [10, 20, 30]
    again = SampleLog(run, 20)
    again.append(30, ["another"])
    assert read_samples(run)[1:] == [
        Written(20, ("text 20\nover two lines", "ünd")),
        Written(30, ("another",)),
    ]
    SampleLog(run, 0).append(10, [""])
    assert read_samples(run) == [Written(10, ("",))]
