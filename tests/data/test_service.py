"""The reader of a node: exact after its own death, at rest when nobody reads, never taken for hanging."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.service import Group, Pace, round_steps, served_blocks, service_of, start_service
from raygpt.data.stream import Batch, Source, batches, mapped_blocks
from raygpt.errors import UserError
from tests.data.test_stream import write_shards

STEPS = 3000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    tokens = np.random.default_rng(0).integers(0, 60_000, 200_011).astype("<u2")
    layout = TokenReader(write_shards(tmp_path_factory.mktemp("shards"), tokens)).layout
    return Source(layout, Order(layout.fingerprint, 3, 8, 12, layout.tokens), 0, 1)


def served(source: Source, world: int = 1, first: int = 0) -> tuple[Any, list[Iterator[Batch]]]:
    group = Group(uuid.uuid4().hex, tuple(range(world)), STEPS)
    service = start_service(f"test-{group.name}", world)
    ranks = [Source(source.layout, source.order, rank, world) for rank in range(world)]
    streams = [batches(each, served_blocks(service, group, each, first), first, STEPS) for each in ranks]
    return service, streams


def expected(source: Source, first: int, last: int) -> list[np.ndarray]:
    return [batch.tokens for batch in batches(source, mapped_blocks(source, first, last), first, last)]


def pid_of(service: Any) -> int:
    return ray.get(service.__ray_call__.remote(lambda _: __import__("os").getpid()))


def test_a_killed_service_is_replaced_and_no_row_is_lost_or_repeated(ray_cluster: object, source: Source) -> None:
    service, ranks = served(source, world=2)
    got = []
    for step in range(400):
        if step in (3, 150):  # in a small block at the start, and in a large one later
            psutil.Process(pid_of(service)).kill()
        # the second rank lags behind by up to a block, as ranks may
        got.append(np.concatenate([next(rank).tokens for rank in ranks]))
    assert np.array_equal(got, expected(source, 0, 400))


def test_a_rank_that_is_behind_the_first_to_ask_gets_its_own_step(ray_cluster: object, source: Source) -> None:
    """After a restart of the service one rank may hold a block that another has yet to ask for."""
    group = Group(uuid.uuid4().hex, (0, 1), STEPS)
    service = start_service(f"test-{group.name}", 2)
    ahead = service.take.remote(group, Source(source.layout, source.order, 0, 2), 96)
    assert ray.wait([ahead], timeout=60)[0]
    asked = service.take.remote(group, Source(source.layout, source.order, 0, 2), 96)
    step = 70
    while step < 100:  # the other trains on, on what the first still holds
        first, chunk, _ = ray.get(
            service.take.remote(group, Source(source.layout, source.order, 1, 2), step), timeout=60
        )
        assert first <= step < first + chunk.steps
        step = first + chunk.steps
    first, chunk, _ = ray.get(asked, timeout=60)
    assert first <= 96 < first + chunk.steps


def test_a_paused_trainer_leaves_the_machine_at_rest(ray_cluster: object, source: Source) -> None:
    """Under 2 % of a core, where a waiting executor of Ray Data took a whole one."""
    service, [stream] = served(source)
    for _ in range(40):
        next(stream)
    process = psutil.Process(pid_of(service))
    time.sleep(1)  # what is read ahead is read
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(3)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    assert used < 0.02 * (time.monotonic() - began) + 0.02  # the clock of a process ticks every 0.01 s
    assert next(stream).step == 40


def test_no_guard_of_ray_data_ends_a_trainer_that_takes_blocks_seldom(ray_cluster: object, source: Source) -> None:
    group = Group(uuid.uuid4().hex, (0,), STEPS)
    environment = {"env_vars": {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "8"}}  # a process for a task takes 3 s
    service = start_service(f"test-{group.name}", 1, runtime_env=environment)
    stream = batches(source, served_blocks(service, group, source, 0), 0, STEPS)
    got = [next(stream).tokens for _ in range(21)]
    time.sleep(9.5)
    got += [next(stream).tokens for _ in range(100)]
    assert np.array_equal(got, expected(source, 0, 121))


def test_workers_started_anew_take_over_the_service(ray_cluster: object, source: Source) -> None:
    service, [stream] = served(source)
    next(stream)
    group = Group(uuid.uuid4().hex, (0,), 130)
    again = batches(source, served_blocks(service, group, source, 77), 77, 130)
    assert np.array_equal([batch.tokens for batch in again], expected(source, 77, 130))


def test_a_late_call_of_workers_that_are_gone_disturbs_no_others(ray_cluster: object, source: Source) -> None:
    before, group = (Group(uuid.uuid4().hex, (0,), 130) for _ in range(2))
    service = start_service(f"test-{before.name}", 1)
    next(batches(source, served_blocks(service, before, source, 0), 0, 130))
    again = batches(source, served_blocks(service, group, source, 77), 77, 130)
    first = next(again).tokens
    with pytest.raises(RuntimeError, match="started anew"):
        ray.get(service.take.remote(before, source, 60))
    assert np.array_equal([first, *(batch.tokens for batch in again)], expected(source, 77, 130))


def test_workers_find_the_driver_s_service_or_start_one_that_no_later_group_finds(ray_cluster: object) -> None:
    name = f"test-{uuid.uuid4().hex}"
    first, second = Group("a", (0,), 5), Group("b", (0,), 5)
    own, others = service_of(name, first), service_of(name, second)
    assert own._actor_id == service_of(name, first)._actor_id != others._actor_id
    drivers = start_service(name, 1)
    assert service_of(name, first)._actor_id == drivers._actor_id == service_of(name, second)._actor_id


def test_shards_that_vanish_end_the_stream_with_their_name(ray_cluster: object, tmp_path: Path) -> None:
    layout = TokenReader(write_shards(tmp_path, np.zeros(40_000, "<u2"))).layout
    own = Source(layout, Order(layout.fingerprint, 3, 8, 12, layout.tokens), 0, 1)
    (tmp_path / "shard-00001.bin").unlink()
    _, [stream] = served(own)
    with pytest.raises((UserError, OSError), match="shard-00001.bin"):
        list(stream)


def test_the_manifest_is_not_read_again_by_the_readers(ray_cluster: object, source: Source, tmp_path: Path) -> None:
    layout = TokenReader(write_shards(tmp_path, np.arange(40_000).astype("<u2"))).layout
    own = Source(layout, Order(layout.fingerprint, 3, 8, 12, layout.tokens), 0, 1)
    (tmp_path / "manifest.json").unlink()
    _, [stream] = served(own)
    assert np.array_equal([next(stream).tokens for _ in range(30)], expected(own, 0, 30))


def test_a_round_is_about_a_minute_whatever_a_step_takes() -> None:
    assert round_steps(4, None, 10**6) == 4
    sizes = [4]
    for _ in range(5):
        sizes.append(round_steps(sizes[-1], 21.0, 10**6))
    assert sizes == [4, 32, 256, 1024, 1024, 1024]  # 49 s at 21 steps/s
    assert round_steps(1024, 1 / 145, 10**6) == 1  # GPT-2 Large on one V100: 145 s a step
    assert round_steps(1024, 100.0, 48) == 32  # bounded by memory


def test_pace_is_that_of_the_block_used_up_between_two_requests() -> None:
    pace = Pace()
    pace.asked(0, 100.0)
    pace.asked(4, 101.0)  # the first block came
    assert pace.steps_per_second is None
    pace.asked(36, 103.0)  # the second came: the first one's 4 steps took 2 s
    assert pace.steps_per_second == 2.0
    pace.asked(292, 119.0)
    assert pace.steps_per_second == 2.0  # 32 steps in 16 s
