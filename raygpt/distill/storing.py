"""Writing a teacher's states of a shard folder: parts of fixed size, each by itself, in any order, on any worker.

The stream is cut into blocks of half a window. A block's states come from one pass over it and the half window before
it; which blocks pass together follows from their numbers, so that a part has the same bytes whoever writes it. A part
counts when its marker is there, which names what it was written from: a rerun goes on with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from raygpt import storage
from raygpt.data.reader import TokenReader
from raygpt.data.shards import Layout, Shard
from raygpt.distill.stored import MANIFEST, OUTPUT, VERSION, StatesManifest
from raygpt.distill.teacher_states import OnlineTeacher
from raygpt.distill.transport import Transport
from raygpt.errors import UserError
from raygpt.storage import Location

PART_BYTES = 2**28  # held in memory by the worker that writes it
PASS_TOKENS = 8192  # of windows that go through the teacher together


@dataclass(frozen=True)
class StatesPlan:
    """What will be written: `layout`'s tokens as the teacher with that digest sees them in windows of `context`.
    Picklable."""

    layout: Layout
    folder: str
    teacher: str
    teacher_digest: str
    transport: Transport
    context: int
    seed: int
    part_bytes: int = PART_BYTES

    @property
    def block(self) -> int:
        """Tokens whose states one pass gives."""
        return max(1, self.context // 2)

    @property
    def part_tokens(self) -> int:
        return self.block * max(1, self.part_bytes // (self.block * self.transport.bytes_per_token))

    @property
    def parts(self) -> int:
        return -(-self.layout.tokens // self.part_tokens)

    def span(self, part: int) -> tuple[int, int]:
        """Tokens [start, stop) of a part."""
        return part * self.part_tokens, min((part + 1) * self.part_tokens, self.layout.tokens)

    def windows(self, part: int) -> Iterator[list[tuple[int, int, int]]]:
        """(first token read, first token kept, end) of the windows of each pass over a part."""
        start, stop = self.span(part)
        together: list[tuple[int, int, int]] = []
        shape = (0, 0)
        for first in range(start, stop, self.block):
            end = min(first + self.block, self.layout.tokens)
            begin = max(0, first + self.block - self.context)
            room = max(1, PASS_TOKENS // self.context)
            if together and (len(together) == room or shape != (first - begin, end - begin)):
                yield together
                together = []
            together.append((begin, first, end))
            shape = first - begin, end - begin
        if together:
            yield together

    @property
    def digest(self) -> str:
        """Tells what a part was written from."""
        facts = {"version": VERSION, "fingerprint": self.layout.fingerprint, "digest": self.teacher_digest}
        facts |= {"transport": asdict(self.transport), "context": self.context, "part_tokens": self.part_tokens}
        facts |= {"seed": self.seed if self.transport.kind == "sampled" else None}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def part_name(part: int) -> str:
    return f"part-{part:05d}.bin"


def begun(folder: Location) -> bool:
    """Whether parts of states lie there."""
    return any(entry.base_name.startswith("part-") for entry in storage.list_folder(folder))


def finished_parts(plan: StatesPlan) -> dict[int, Shard]:
    """Parts that are there, by number. UserError where the folder holds parts of something else."""
    folder = storage.locate(plan.folder)
    found: dict[int, Shard] = {}
    entries = storage.list_folder(folder)
    sizes = {entry.base_name: entry.size for entry in entries}
    for entry in entries:
        name = entry.base_name
        if not (name.startswith("part-") and name.endswith(".json")):
            continue
        marker = json.loads(storage.read_text(folder / name))
        if marker["plan"] != plan.digest:
            raise UserError(
                f"distill.store={plan.folder} holds states of another teacher, other tokens or other settings than "
                "these: name another folder, or delete this one."
            )
        shard = Shard(**marker["part"])
        if sizes.get(shard.name) == shard.tokens * plan.transport.bytes_per_token:  # else it is written again
            found[int(name[5:-5])] = shard
    return found


def write_part(plan: StatesPlan, part: int, teacher: OnlineTeacher, reader: TokenReader) -> Shard:
    """Compute a part's states, store them, then its marker. UserError for states that half precision cannot hold."""
    start, stop = plan.span(part)
    records = np.empty(stop - start, plan.transport.record)
    device = teacher.output.device
    for windows in plan.windows(part):
        read = np.stack([reader.read(begin, end) for begin, _, end in windows]).astype(np.int64)
        draw = torch.Generator(device).manual_seed(_seed(plan.seed, windows[0][1]))
        states = teacher.states(torch.from_numpy(read).to(device), draw)
        length = read.shape[1]
        packed = plan.transport.pack(states).reshape(len(windows), length)
        for (begin, first, end), row in zip(windows, packed):
            records[first - start : end - start] = row[first - begin :]
    if plan.transport.kind == "hidden" and not np.isfinite(records["hidden"]).all():
        raise UserError(
            f"distill.teacher={plan.teacher} has hidden states that half precision cannot hold: choose another "
            "distill.transport, or keep the teacher beside the student (leave distill.store out)."
        )
    data = records.tobytes()
    folder = storage.locate(plan.folder)
    storage.write_bytes(folder / part_name(part), data)
    shard = Shard(part_name(part), stop - start, hashlib.sha256(data).hexdigest())
    marker = {"plan": plan.digest, "part": asdict(shard)}
    storage.write_text(folder / f"{part_name(part)[:-4]}.json", json.dumps(marker) + "\n")
    return shard


def finish(plan: StatesPlan, parts: dict[int, Shard], teacher: OnlineTeacher | torch.Tensor) -> StatesManifest:
    """Write the output matrix and, last, the manifest."""
    folder: Location = storage.locate(plan.folder)
    digest = None
    if plan.transport.kind == "hidden":
        output = teacher.output if isinstance(teacher, OnlineTeacher) else teacher
        output = output.detach()[: plan.transport.vocab_size].float().cpu().contiguous()
        data = save_tensors({"output": output})
        storage.write_bytes(folder / OUTPUT, data)
        digest = hashlib.sha256(data).hexdigest()
    manifest = StatesManifest(
        version=VERSION,
        fingerprint=plan.layout.fingerprint,
        tokens=plan.layout.tokens,
        teacher=plan.teacher,
        teacher_digest=plan.teacher_digest,
        transport=plan.transport,
        context=plan.context,
        least_context=plan.context - plan.block + 1,
        bytes_per_token=plan.transport.bytes_per_token,
        parts=tuple(parts[number] for number in sorted(parts)),
        output_sha256=digest,
    )
    storage.write_text(folder / MANIFEST, manifest.to_json())
    return manifest


def _seed(seed: int, token: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {token}".encode()).digest()[:7], "little")


def teacher_digest(weights: Iterator[tuple[str, Any]]) -> str:
    """Tells whose weights these are."""
    from raygpt.parallel.lora import Recognised

    recognised = Recognised(weights)
    for _ in recognised:
        pass
    return recognised.digest
