"""Workers on nodes with disks of their own are refused before the first step, in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raygpt.data.shards import load_manifest
from raygpt.errors import UserError
from raygpt.parallel.distributed import World
from raygpt.parallel.shared import check_shared
from raygpt.storage import Location, locate
from tests.train.thread_world import on_ranks


def run_folder(root: Path) -> Location:
    root.mkdir(parents=True)
    (root / "config.yaml").write_text("")
    return locate(root)


def refused(size: int, roots: Callable[[int], Location], shards: Callable[[int], dict]) -> set[str]:
    found = on_ranks(size, lambda world: check_shared(roots(world.rank), "config.yaml", shards(world.rank), world))
    assert all(each is None or isinstance(each, UserError) for each in found)
    return {str(each) for each in found}


def test_a_folder_that_all_ranks_see_passes_and_nothing_is_left_in_it(tmp_path: Path, make_shards: Callable) -> None:
    run, uri = run_folder(tmp_path / "run"), make_shards(3000)
    layout = load_manifest(uri).layout(uri)
    assert refused(3, lambda _: run, lambda _: {"data.train": layout}) == {"None"}
    check_shared(run, "config.yaml", {}, World(0, 1, None))  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_folder_on_each_node_is_refused_on_every_rank(tmp_path: Path) -> None:
    nodes = [run_folder(tmp_path / "node-0" / "r"), run_folder(tmp_path / "node-1" / "r")]
    said = refused(4, lambda rank: nodes[rank // 2], lambda _: {})
    assert len(said) == 1
    text = said.pop()
    assert text.startswith("run.storage=") and "worker 2 on host" in text and "s3:// URI" in text and "\n" not in text


def test_a_single_worker_away_from_the_driver_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.storage=.*driver"):
        check_shared(locate(tmp_path / "r"), "config.yaml", {}, World(0, 1, None))  # type: ignore[arg-type]


def test_shards_must_be_the_same_everywhere_and_copies_will_do(tmp_path: Path, make_shards: Callable) -> None:
    run = run_folder(tmp_path / "r")
    first, other = make_shards(3000), make_shards(4000)
    shutil.copytree(first, tmp_path / "copy")
    layout, copy = load_manifest(first).layout(first), load_manifest(first).layout(str(tmp_path / "copy"))
    assert refused(2, lambda _: run, lambda rank: {"data.train": (layout, copy)[rank]}) == {"None"}
    wrong = load_manifest(first).layout(other)  # as if this node had prepared other text there
    (said,) = refused(2, lambda _: run, lambda rank: {"data.train": (layout, wrong)[rank]})
    assert said.startswith("data.train=") and "worker 1" in said and "other tokens" in said
    gone = load_manifest(first).layout(str(tmp_path / "none"))
    (said,) = refused(2, lambda _: run, lambda rank: {"data.val": (layout, gone)[rank]})
    assert said.startswith("data.val=") and "does not find it" in said
