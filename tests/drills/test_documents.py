"""Answers to documents by tasks of a cluster and on S3: the same bytes as by one process on a disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raygpt import storage
from raygpt.data.shards import verify
from raygpt.distill import examine
from raygpt.storage import locate
from tests.distill.stored import random_texts, stored
from tests.distill.test_documents import ALL, make, mixed, removed


def test_tasks_of_a_cluster_and_s3_give_the_same_bytes(
    ray_cluster: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "CHUNK_ANSWERS", 75)  # two tasks: a worker process takes seconds to start
    (tmp_path / "val.txt").write_text(random_texts(1)[0])
    options = replace(ALL, decontaminate=(str(tmp_path / "val.txt"),))
    made = make(stored(mixed()), bucket, options)
    again = make(stored(mixed(1)), bucket, options)  # beside the first, then instead of it
    assert removed(made)["contamination"] == 2 and again["documents"] == 100
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    here = make(stored(mixed(1)), tmp_path / "here", options)
    for side in ("train", "val"):
        assert verify(f"{bucket}/{side}").fingerprint == here[side]["fingerprint"]
        assert len(storage.list_folder(locate(f"{bucket}/{side}"))) == 3
    assert storage.read_bytes(locate(f"{bucket}/card.md")) == (tmp_path / "here/card.md").read_bytes()
