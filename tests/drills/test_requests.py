"""What the ranks of a node ask of S3 together."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.service import Group, served_blocks, start_service
from raygpt.data.stream import Source, batches
from tests.data.test_cache import Relay, relay  # noqa: F401
from tests.data.test_service import expected
from tests.data.test_stream import write_shards


def test_more_ranks_of_a_node_cost_s3_no_more_requests(
    ray_cluster: object,
    relay: Relay,  # noqa: F811
    bucket: str,
    tmp_path: Path,
) -> None:
    """A constant per node: nobody lists, nobody reads the manifest, each piece of a small corpus is fetched once."""
    tokens = np.random.default_rng(0).integers(0, 60_000, 40_000).astype("<u2")
    layout = TokenReader(write_shards(f"{bucket}/train", tokens)).layout
    plan = Order(layout.fingerprint, 3, 8, 12, layout.tokens)
    seen = {}
    for world in (1, 4):
        environment = {"AWS_ENDPOINT_URL": relay.endpoint, "XDG_CACHE_HOME": str(tmp_path / str(world))}
        relay.taken()
        group = Group(uuid.uuid4().hex, tuple(range(world)), 60)
        service = start_service(f"test-{group.name}", world, runtime_env={"env_vars": environment})
        ranks = [Source(layout, plan, rank, world, 10**8) for rank in range(world)]
        streams = [batches(each, served_blocks(service, group, each, 0), 0, 60) for each in ranks]
        got = [np.concatenate([next(stream).tokens for stream in streams]) for _ in range(60)]
        seen[world] = relay.taken()
        assert np.array_equal(got, expected(Source(layout, plan, 0, 1), 0, 60))
    for requests in seen.values():
        assert not [target for _, target in requests if "manifest.json" in target or "list-type" in target]
        assert {method for method, _ in requests} == {"GET", "HEAD"}
    gets = {world: sum(method == "GET" for method, _ in requests) for world, requests in seen.items()}
    # two processes of read tasks may meet at a piece, or one ask again
    assert gets[1] <= 2 * len(layout.names) + 2 and abs(gets[4] - gets[1]) <= len(layout.names), gets
    heads = {world: sum(method == "HEAD" for method, _ in requests) for world, requests in seen.items()}
    assert heads[4] <= heads[1] + len(layout.names), heads  # by processes of read tasks, not by ranks
