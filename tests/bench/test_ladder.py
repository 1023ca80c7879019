"""The ladder on a bare machine: every rung is the same model, and the last one is the trainer's own step."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raygpt.bench.__main__ import main
from raygpt.bench.ladder import LadderSettings, measure_ladder, toy_config
from raygpt.bench.result import Row, from_json, read
from raygpt.bench.rungs import Setting, Unpadded, build, ladder, make_step
from raygpt.bench.scaling import scaling_rows, worker_counts
from raygpt.model import registry
from raygpt.model.gpt import GPTConfig
from raygpt.parallel.distributed import World
from raygpt.train.replica import Replica

CPU = torch.device("cpu")
ROWS = torch.randint(250, (2, 33), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ladder") / "new" / "ladder.json"
    assert main(["--toy", "--device=cpu", "--price_per_hour=3.6", f"--out={out}"]) == 0
    return out


def test_every_rung_computes_the_same_loss_on_the_same_rows(toy: Path) -> None:
    rows = {row.name: row for row in read(toy).rows}
    names = ("fp32", "tf32", "bf16", "compile", "flash attention", "padded vocabulary", "fused optimizer", "fused loss")
    assert tuple(rows) == names
    first = rows["fp32"].figures["first_loss"]
    measured = [row for row in rows.values() if row.tokens_per_second]
    assert len(measured) == 7 and all(row.figures["first_loss"] == pytest.approx(first, abs=3e-3) for row in measured)
    assert all(row.loss < row.figures["first_loss"] for row in measured)  # it really trains


def test_what_a_cpu_cannot_do_is_labelled_and_not_faked(toy: Path) -> None:
    tf32 = read(toy).row("tf32")
    assert tf32 is not None and tf32.tokens_per_second is None
    assert tf32.note == "not applicable: tf32 needs an NVIDIA GPU of compute capability 8.0 or newer"
    assert "| tf32 | – |" in toy.with_suffix(".md").read_text()


def test_figures_follow_from_the_measured_seconds(toy: Path) -> None:
    for row in read(toy).rows:
        if row.tokens_per_second is None or row.step_seconds is None:
            continue
        speed = row.tokens_per_second
        assert speed.median == pytest.approx(2 * 32 / row.step_seconds.median)
        assert speed.low == pytest.approx(2 * 32 / row.step_seconds.high) and speed.repeats == 2
        flops = speed.median * toy_config().flops_per_token()
        assert row.mfu is None  # no datasheet for a CPU
        assert row.mfu_of_matmul == pytest.approx(flops / row.figures["matmul_flops_per_second"])
        # 3.6 dollars an hour are a dollar in 1,000 seconds
        assert row.usd_per_billion_tokens == pytest.approx(1e9 / speed.median / 1000)


def test_each_rung_changes_one_thing() -> None:
    settings = [rung.setting for rung in ladder(toy_config(), CPU, "eager", 64) if not rung.why_not]
    for below, above in itertools.pairwise(settings):
        changed = [name for name in vars(below) if getattr(below, name) != getattr(above, name)]
        assert len(changed) == 1, (below, above)
    assert settings[0] == Setting()


def test_the_last_rung_is_the_trainers_own_step() -> None:
    config = toy_config()
    setting = replace(ladder(config, CPU, "eager", 64)[-1].setting, compile=False)
    step = make_step(build(config, setting, CPU), setting, 2, CPU)
    ours = [step(ROWS, 6e-4).loss.item() for _ in range(3)]
    theirs = Replica(
        build(config, setting, CPU),
        World.join(CPU),
        precision="bf16",
        micro_batch_size=2,
        local_rows=2,
        seq_len=32,
        lr=6e-4,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        grad_clip=1.0,
        loss_tokens=setting.loss_tokens,
    )
    assert [theirs.step(ROWS, 6e-4).loss.item() for _ in range(3)] == ours


def test_an_embedding_without_padding_has_a_row_per_token() -> None:
    shape = Unpadded(vocab_size=250, seq_len=32, n_layer=1, n_head=1, n_embd=8)
    model = registry.of(shape).build(shape, False)
    assert model.wte.weight.shape == (250, 8)  # type: ignore[union-attr]
    padded = GPTConfig(vocab_size=256, seq_len=32, n_layer=1, n_head=1, n_embd=8)
    (rung,) = [rung for rung in ladder(padded, CPU, "eager", 64) if rung.name == "padded vocabulary"]
    assert rung.why_not == "256 is a multiple of 128 already"


def test_what_no_time_is_left_for_says_so_and_the_rest_is_kept() -> None:
    kept: list[list[Row]] = []
    settings = LadderSettings(rows=2, repeats=1, steps=2, seconds=0.1, time_limit=0.0, backend="eager")
    rows = measure_ladder(toy_config(), CPU, settings, say=lambda text: None, keep=kept.append)
    assert rows[0].tokens_per_second is not None and kept[-1] == rows  # one is measured whatever the time
    assert {row.note for row in rows[2:]} == {"left out: the 0 s were over"}


def test_a_mistake_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--toy", "--flash"]) == 2
    assert "--flash is no option of the ladder" in capsys.readouterr().err
    assert main(["--toy", "--machine=p9.huge"]) == 2
    assert "no price is known of machine type p9.huge" in capsys.readouterr().err


def test_workers_take_turns_and_are_held_to_one_of_their_launcher() -> None:
    asked: list[tuple[str, int]] = []

    def launcher(name: str, speeds: dict[int, float]):
        def launch(workers: int, words) -> dict:
            asked.append((name, workers))
            return {
                "tokens_per_second": speeds[workers],
                "tokens_per_step": 64 * workers,
                "loss_last": 1.0,
                "peak_memory_bytes": 1,
                "mfu_of_measured_matmul": 0.5,
                "micro_batch_size": 2,
                "threads": 1,
                "grad_accum_steps": 1,
                "model": {"seq_len": 32},
                "parameters": 5,
                "world_size": workers,
            }

        return launch

    ways = {"torchrun": launcher("torchrun", {1: 100.0, 2: 150.0}), "Ray Train": launcher("ray", {1: 90.0, 2: 171.0})}
    rows = scaling_rows(ways, 2, [], 2, say=lambda text: None)
    assert asked == [("torchrun", 1), ("ray", 1), ("torchrun", 2), ("ray", 2)] + [
        ("ray", 2), ("torchrun", 2), ("ray", 1), ("torchrun", 1)
    ]  # fmt: skip
    figures = {row.name: row.figures for row in rows}
    assert figures["torchrun × 2"]["efficiency"] == pytest.approx(0.75)
    assert figures["Ray Train × 2"] == {"efficiency": pytest.approx(0.95), "over_first_launcher": pytest.approx(1.14)}
    assert worker_counts(1) == [1] and worker_counts(6) == [1, 2, 4, 6] and worker_counts(8) == [1, 2, 4, 8]


def test_a_step_is_a_row_of_the_same_schema(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    words = ["--case=step", "--toy", "--device=cpu", "--threads=1", f"--out={out}", "--grad_accum=2"]
    assert main(words) == 0
    (row,) = from_json(out.read_text(), "step").rows
    assert row.settings["rows"] == 4 and row.settings["world_size"] == 1 and row.memory_bytes
    facts = json.loads(out.read_text())["provenance"]
    assert facts["command"] == f"python -m raygpt.bench {' '.join(words)}" and facts["versions"]["torch"]
    assert facts["hardware"]["device"] == "CPU" and facts["date"].startswith("20")
