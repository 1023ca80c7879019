"""`raygpt prepare` killed with SIGKILL, its Ray cluster too, goes on to the shards of an unbroken preparation."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from raygpt.data.shards import verify
from tests.drills.program import Program, raygpt


@pytest.mark.timeout(600)
def test_a_killed_preparation_goes_on(ray_cluster: str, tmp_path: Path, shared_data: Path) -> None:
    text = (shared_data / "shakespeare/input.txt").read_text()
    with open(tmp_path / "in.jsonl", "w") as file:
        for number in range(12):
            for at in range(0, len(text), 20_000):
                file.write(json.dumps({"text": f"{number} {text[at : at + 20_000]}"}) + "\n")

    def words(output: str) -> list[str]:
        words = [f"--prepare.sources={tmp_path / 'in.jsonl'}", f"--prepare.output={tmp_path / output}"]
        return ["prepare", *words, "--data.tokenizer=bytes", "--prepare.shard_tokens=300000"]

    broken = Program(*words("out"))
    deadline = time.monotonic() + 200
    while not list((tmp_path / "out/.prepare").glob("segment-*")):
        assert time.monotonic() < deadline, broken.output
        time.sleep(0.02)
    broken.kill()
    assert not (tmp_path / "out/train/manifest.json").exists()
    for output in ("out", "whole"):
        raygpt(*words(output))
    for side in ("train", "val"):
        left, right = verify(tmp_path / "out" / side), verify(tmp_path / "whole" / side)
        assert left == right
    assert len(left.shards) == 1 and len(verify(tmp_path / "out/train").shards) > 40
