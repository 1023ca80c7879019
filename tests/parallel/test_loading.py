"""What a node's ranks load is read once on that node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raygpt.errors import UserError
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.distributed import World
from raygpt.parallel.loading import once_per_node
from raygpt.parallel.pieces import TensorFile
from raygpt.storage import locate


def load(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    world, node, reads = World.join(torch.device("cpu")), f"node {rank // 2}", []
    read = TensorFile.read

    def counted(self: TensorFile, key: str, *place: int) -> torch.Tensor:
        reads.append(key)
        return read(self, key, *place)

    TensorFile.read = counted  # type: ignore[method-assign]
    where = locate(folder) / "step_00000001"
    got = dict(once_per_node(world, lambda: checkpoint.open_tensors(where).items(), node))

    def broken() -> list:
        raise UserError("not there")

    with pytest.raises(UserError, match="not there"):
        list(once_per_node(world, broken, node))
    torch.save({"got": got, "reads": reads}, f"{folder}/{rank}.pt")


def test_every_rank_has_every_tensor_and_one_of_each_node_read_it(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    saving.write(locate(tmp_path / "step_00000001"), {"model.safetensors": TensorStream.of(weights)})
    mp.spawn(load, (str(tmp_path),), nprocs=4)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    assert [result["reads"] for result in results] == [["a.weight", "b.weight"], [], ["a.weight", "b.weight"], []]
    for result in results:
        assert all(torch.equal(result["got"][name], value) for name, value in weights.items())
