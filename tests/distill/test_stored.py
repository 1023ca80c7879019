"""States beside the tokens: written once, by anyone, the same bytes; read back for any row, rank and worker count."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.shards import load_manifest
from raygpt.data.stream import Batch, Source, batches, mapped_blocks
from raygpt.distill.objective import Blend, Distillation
from raygpt.distill.stored import StoredStates, check_states, is_stored, read_states_manifest, verify
from raygpt.distill.storing import StatesPlan, finish, finished_parts, write_part
from raygpt.distill.teacher_states import OnlineTeacher
from raygpt.distill.transport import Transport
from raygpt.errors import UserError
from tests.distill.small import SEQ_LEN, VOCAB, model, rows

TOKENS, CPU = 501, torch.device("cpu")


@pytest.fixture
def tokens(make_shards: Callable[..., str]) -> str:
    return make_shards(rows(0, TOKENS)[:, 0].numpy(), shard_tokens=100)


def planned(tokens: str, folder: Path, kind: str = "hidden", **changes: object) -> tuple[StatesPlan, OnlineTeacher]:
    teacher = model(1, 24)
    transport = Transport(kind, 24, VOCAB, 1.0 if kind == "hidden" else 2.0, top_k=5, samples=6)  # type: ignore[arg-type]
    layout = load_manifest(tokens).layout(tokens)
    plan = StatesPlan(layout, str(folder), "somewhere", "digest", transport, SEQ_LEN, 7, part_bytes=2500)
    return replace(plan, **changes), OnlineTeacher(teacher, transport, torch.float32, CPU)  # type: ignore[arg-type]


def written(plan: StatesPlan, teacher: OnlineTeacher, backwards: bool = False) -> str:
    reader = TokenReader(plan.layout)
    numbers = range(plan.parts)
    shards = {part: write_part(plan, part, teacher, reader) for part in (reversed(numbers) if backwards else numbers)}
    finish(plan, shards, teacher)
    return plan.folder


def test_a_state_is_what_the_teacher_makes_of_at_least_half_a_window(tokens: str, tmp_path: Path) -> None:
    plan, teacher = planned(tokens, tmp_path / "states")
    manifest = read_states_manifest(written(plan, teacher))
    assert plan.parts > 5 and manifest.tokens == TOKENS
    assert manifest.least_context == SEQ_LEN // 2 + 1 and manifest.context == SEQ_LEN
    stream = torch.from_numpy(TokenReader(tokens).read(0, TOKENS).astype(np.int64))
    records = np.concatenate([np.fromfile(tmp_path / "states" / p.name, plan.transport.record) for p in manifest.parts])
    for token in (0, 1, 3, 4, 5, 7, 8, 100, 256, 499, 500):
        begin = max(0, token // plan.block * plan.block + plan.block - SEQ_LEN)
        assert token < plan.block or token - begin + 1 >= manifest.least_context
        with torch.no_grad():
            want = teacher.model.hidden(stream[None, begin : token + 1])[0, -1]
        torch.testing.assert_close(
            torch.from_numpy(records["hidden"][token].astype(np.float32)), want, rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled"])
def test_whoever_writes_a_part_its_bytes_are_the_same(tokens: str, tmp_path: Path, kind: str) -> None:
    plan, teacher = planned(tokens, tmp_path / "a", kind)
    one = verify(written(plan, teacher))
    torch.manual_seed(99)
    other = verify(written(*planned(tokens, tmp_path / "b", kind), backwards=True))
    assert one.parts == other.parts and one.output_sha256 == other.output_sha256
    sizes = {"hidden": 2 * 24, "topk": 4 * 5 + 2, "sampled": 4 * 6}
    assert one.bytes_per_token == sizes[kind]
    assert sum((tmp_path / "a" / part.name).stat().st_size for part in one.parts) == TOKENS * sizes[kind]


def test_gpt2_xl_takes_3200_bytes_a_token_where_its_logits_would_take_100514() -> None:
    kinds = ("hidden", "topk", "sampled")
    assert [Transport(kind, 1600, 50257).bytes_per_token for kind in kinds] == [3200, 258, 48]  # type: ignore[arg-type]
    assert Transport("topk", 1, 100_000).record["ids"].base == np.dtype("<u4")


@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled"])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_rank_reads_the_states_of_its_own_rows(tokens: str, tmp_path: Path, kind: str, workers: int) -> None:
    plan, teacher = planned(tokens, tmp_path / "states", kind)
    folder = written(plan, teacher)
    order = Order(plan.layout.fingerprint, 3, SEQ_LEN - 1, 5, TOKENS)
    stream = np.concatenate(
        [np.fromfile(path, plan.transport.record) for path in sorted((tmp_path / "states").glob("*.bin"))]
    )
    tokens_stream = TokenReader(tokens).read(0, TOKENS)
    steps = order.steps_per_epoch + 2  # into the second epoch
    for rank in range(workers):
        source = Source(plan.layout, order, rank, workers)
        states = StoredStates(folder, order, rank, workers)
        for batch in batches(source, mapped_blocks(source, 2, steps), 2, steps):
            got = states(batch)
            epoch, inside = order.position(batch.step)
            starts = order.starts(epoch, order.rows(epoch, inside, source.lanes))
            for index, start in enumerate(starts):
                assert np.array_equal(batch.tokens[index], tokens_stream[start : start + SEQ_LEN])
                for name, values in got.items():
                    assert np.array_equal(values[index], stream[name][start : start + SEQ_LEN - 1].astype(values.dtype))
                    assert values.dtype == (np.int64 if name == "ids" else np.float16)


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_student_learns_the_same_from_stored_states_as_from_the_teacher_beside_it(
    tokens: str, tmp_path: Path, kind: str
) -> None:
    """In a row that begins where the stream does, so that both have seen the same tokens."""
    plan, teacher = planned(tokens, tmp_path / "states", kind)
    stored = StoredStates(written(plan, teacher), Order(plan.layout.fingerprint, 0, 4, 1, TOKENS), 0, 1)
    output = stored.output_matrix(torch.float32, CPU)
    batch = {"rows": torch.from_numpy(TokenReader(tokens).read(0, 5).astype(np.int64)[None])}
    records = np.fromfile(tmp_path / "states" / "part-00000.bin", plan.transport.record)[None, :4]
    more = {name: torch.from_numpy(values) for name, values in plan.transport.unpack(records).items()}
    student, seen = model(5), []
    for objective, given in (
        (Distillation(Blend(plan.transport), output=output, stored=stored), batch | more),
        (Distillation(Blend(plan.transport), output=teacher.output, teacher=teacher), batch),
    ):
        total, _ = objective(student, given)
        seen.append(float(total.detach()))
    assert seen[0] == pytest.approx(seen[1], rel=5e-3)


def test_a_rerun_goes_on_with_what_is_missing_and_refuses_what_is_not_its_own(tokens: str, tmp_path: Path) -> None:
    plan, teacher = planned(tokens, tmp_path / "states")
    reader = TokenReader(tokens)
    for part in (0, 2):
        write_part(plan, part, teacher, reader)
    assert sorted(finished_parts(plan)) == [0, 2] and not is_stored(plan.folder)
    with pytest.raises(UserError, match=r"distill.store=.* holds states of another teacher.* name another folder"):
        finished_parts(replace(plan, teacher_digest="another"))
    with pytest.raises(UserError, match=r"holds no states.json: .* go on with distill.store"):
        read_states_manifest(plan.folder)
    written(plan, teacher)
    assert is_stored(plan.folder)
    # a part that was cut or deleted since is written again
    (tmp_path / "states" / "part-00001.bin").unlink()
    data = (tmp_path / "states" / "part-00000.bin").read_bytes()
    (tmp_path / "states" / "part-00000.bin").write_bytes(data[:-1])
    assert 0 not in finished_parts(plan) and 1 not in finished_parts(plan) and 2 in finished_parts(plan)


def test_other_states_of_the_same_tokens_are_other_files_to_the_cache(tokens: str, tmp_path: Path) -> None:
    """By temperature alone: keyed by less, a second student was given the first one's numbers from the disk."""
    keys = set()
    for temperature in (1.0, 2.0):
        plan, teacher = planned(tokens, tmp_path / f"t{temperature}", "topk")
        transport = replace(plan.transport, temperature=temperature)
        teacher = OnlineTeacher(model(1, 24), transport, torch.float32, CPU)
        folder = written(replace(plan, transport=transport), teacher)
        order = Order("f", 1, SEQ_LEN, 2, TOKENS)
        keys.add(StoredStates(folder, order, 0, 1)._reader.layout.fingerprint)
    assert len(keys) == 2


def test_states_that_are_cut_changed_or_of_something_else_are_refused_by_name(tokens: str, tmp_path: Path) -> None:
    plan, teacher = planned(tokens, tmp_path / "states", "topk")
    folder = written(plan, teacher)
    manifest, train = read_states_manifest(folder), load_manifest(tokens)
    check_states(folder, manifest, train, plan.transport, VOCAB, tokens)
    for wanted, vocab, says in [
        (replace(plan.transport, kind="hidden"), VOCAB, "distill.transport=hidden but the states .* with topk: set"),
        (replace(plan.transport, temperature=1.0), VOCAB, "distill.temperature=1.0 but .* with 2.0"),
        (replace(plan.transport, top_k=6), VOCAB, "distill.top_k=6 but .* with 5"),
        (plan.transport, VOCAB + 1, "37 outputs and the student has 38: set model.vocab_size=37"),
    ]:
        with pytest.raises(UserError, match=says):
            check_states(folder, manifest, train, wanted, vocab, tokens)
    with pytest.raises(UserError, match=r"states of other tokens \(.*\) than data.train="):
        check_states(folder, manifest, replace(train, fingerprint="0" * 64), plan.transport, VOCAB, tokens)
    part = tmp_path / "states" / "part-00001.bin"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + b"\0")
    with pytest.raises(UserError, match="part-00001.bin does not have the contents"):
        verify(folder)
    part.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"part-00001.bin has {len(data) - 1:,} bytes instead of {len(data):,}"):
        read_states_manifest(folder)
    facts = json.loads((tmp_path / "states/states.json").read_text())
    (tmp_path / "states/states.json").write_text(json.dumps({**facts, "version": 9}))
    with pytest.raises(UserError, match="format version 9, this raygpt reads version 1"):
        read_states_manifest(folder)


def test_states_come_from_s3_as_from_a_disk(bucket: str, tokens: str, tmp_path: Path) -> None:
    plan, teacher = planned(tokens, tmp_path / "states", "topk")
    order = Order(plan.layout.fingerprint, 3, SEQ_LEN - 1, 5, TOKENS)
    local = StoredStates(written(plan, teacher), order, 1, 2)
    remote = StoredStates(written(*planned(tokens, bucket + "/states", "topk")), order, 1, 2)  # type: ignore[arg-type]
    for step in (0, 1, 7):
        batch = Batch(step, 0, np.empty(0))
        ours, theirs = local(batch), remote(batch)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
