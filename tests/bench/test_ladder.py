"""The ladder on a bare machine: every rung is the same model, and the last one is the trainer's own step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raygpt.bench import __main__ as program
from raygpt.bench import rungs, step
from raygpt.bench.__main__ import main, worker_words
from raygpt.bench.ladder import LadderSettings, measure_ladder, toy_config
from raygpt.bench.result import Row, Spread, from_json, read
from raygpt.bench.rungs import Setting, Unpadded, build, ladder, make_step
from raygpt.bench.scaling import scaling_rows, worker_counts
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.gpt import GPTConfig
from raygpt.parallel.distributed import World
from raygpt.train.replica import Replica

CPU = torch.device("cpu")
MEASURED = {
    "tokens_per_second": 100.0,
    "tokens_per_step": 64,
    "loss_first": 2.0,
    "loss_last": 1.0,
    "peak_memory_bytes": 1,
    "mfu_of_measured_matmul": 0.5,
    "micro_batch_size": 2,
    "threads": 1,
    "grad_accum_steps": 1,
    "model": {"seq_len": 32},
    "parameters": 5,
    "world_size": 1,
}
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
    first = rows["fp32"].loss
    measured = [row for row in rows.values() if row.tokens_per_second]
    assert len(measured) == 7 and all(row.loss == pytest.approx(first, abs=3e-3) for row in measured)
    assert all(row.figures["last_loss"] < row.loss for row in measured)  # it really trains
    assert {row.figures["blocks_of_steps"] for row in measured} == {3}  # one number for all


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
    settings = LadderSettings(rows=2, repeats=1, steps=3, seconds=0.1, time_limit=0.0, backend="eager")
    rows = measure_ladder(toy_config(), CPU, settings, say=lambda text: None, keep=kept.append)
    assert rows[0].tokens_per_second is not None and kept[-1] == rows  # one is measured whatever the time
    assert {row.note for row in rows[2:]} == {"left out: the 0 s were over"}


def test_a_mistake_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--toy", "--flash"]) == 2
    assert "--flash is no option of the ladder" in capsys.readouterr().err
    assert main(["--toy", "--machine=p9.huge"]) == 2
    assert "no price is known of machine type p9.huge" in capsys.readouterr().err
    assert main(["--toy", "--device=banana"]) == 2
    assert "--device=banana is no device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--toy", "--device=cuda"]) == 2
    assert "--device=cuda needs a GPU that torch can see" in capsys.readouterr().err
    assert main(["--toy", "--case=step", "--time_limit=3"]) == 2
    assert "--time_limit is for the ladder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--toy", "--micro_batch=0"])
    assert "argument --micro_batch: 0 is less than 1" in capsys.readouterr().err


def test_more_workers_than_gpus_are_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options, _ = program.parse(["--workers=2"])
    with pytest.raises(UserError, match="--workers=2 needs a GPU each, and there are 1"):
        program._check_workers(options, torch.device("cuda", 0))


def test_no_option_of_the_step_is_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int, list[str]]] = []

    def launch(workers: int, words: Sequence[str]) -> dict:
        asked.append((workers, list(words)))
        return {**MEASURED, "world_size": workers}

    monkeypatch.setattr(program, "under_torchrun", launch)
    words = ["--case=step", "--preset=nano", "--device=cpu", "--workers=2", "--repeats=1", "--seconds=2.5", "--no-bias"]
    assert main([*words, "--precision=bf16", f"--out={tmp_path / 's.json'}"]) == 0
    assert [workers for workers, _ in asked] == [1, 2]
    options = step.parse(asked[1][1])
    assert (options.seconds, options.precision, options.bias, options.preset) == (2.5, "bf16", False, "nano")
    assert [row.name for row in read(tmp_path / "s.json").rows] == ["torchrun × 1", "torchrun × 2"]


def test_workers_take_turns_and_are_held_to_one_of_their_launcher() -> None:
    asked: list[tuple[str, int]] = []

    def launcher(name: str, speeds: dict[int, float]):
        def launch(workers: int, words) -> dict:
            asked.append((name, workers))
            return {
                **MEASURED,
                "tokens_per_second": speeds[workers],
                "tokens_per_step": 64 * workers,
                "world_size": workers,
            }

        return launch

    ways = {"torchrun": launcher("torchrun", {1: 100.0, 2: 150.0}), "Ray Train": launcher("ray", {1: 90.0, 2: 171.0})}
    kept: list[list[Row]] = []
    rows = scaling_rows(ways, 2, [], 2, say=lambda text: None, keep=kept.append)
    assert [len(each) for each in kept] == [1, 2, 3, 4, 4, 4, 4, 4] and kept[-1] == rows  # after every measurement
    assert asked == [("torchrun", 1), ("ray", 1), ("torchrun", 2), ("ray", 2)] + [
        ("ray", 2), ("torchrun", 2), ("ray", 1), ("torchrun", 1)
    ]  # fmt: skip
    figures = {row.name: row.figures for row in rows}
    assert figures["torchrun × 2"]["efficiency"] == pytest.approx(0.75)
    assert figures["Ray Train × 2"]["efficiency"] == pytest.approx(0.95)
    assert figures["Ray Train × 2"]["over_first_launcher"] == pytest.approx(1.14)
    assert worker_counts(1) == [1] and worker_counts(6) == [1, 2, 4, 6] and worker_counts(8) == [1, 2, 4, 8]


def test_what_fails_is_a_row_with_its_reason_and_costs_no_other_row() -> None:
    asked: list[int] = []

    def broken(workers: int, words: Sequence[str]) -> dict:
        asked.append(workers)
        if workers == 2:
            raise RuntimeError("no route to host\nand more of it")
        return MEASURED

    first, second = scaling_rows({"torchrun": broken}, 2, [], 3, say=lambda text: None)
    assert first.tokens_per_second is not None and first.tokens_per_second.repeats == 3
    assert second.tokens_per_second is None and second.note == "failed: no route to host and more of it"
    assert asked == [1, 2, 1, 1]  # what has failed is not tried again


def test_the_kernel_order_of_the_trainer_is_set_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    prefer = rungs.prefer_attention
    monkeypatch.setattr(rungs, "prefer_attention", lambda device: (done.append("order"), prefer(device)))
    monkeypatch.setattr(rungs, "compile_for_training", lambda *_, **__: done.append("compiled"))
    for setting in (Setting(compile=True), Setting(compile=True, attention="sdpa")):
        make_step(build(toy_config(), setting, CPU), setting, 2, CPU)
        done.append("ready")
    assert done == ["compiled", "ready", "order", "compiled", "ready"]


def test_the_workers_step_is_of_the_same_model_and_settings() -> None:
    config = replace(toy_config(), bias=False, tie_weights=False)
    words = worker_words(
        config, LadderSettings(), CPU, 2, precision="bf16", compile=True, activation_checkpointing=True
    )
    options = step.parse(words)
    assert step.config_of(options) == config
    assert (options.precision, options.compile, options.activation_checkpointing) == ("bf16", True, True)
    cuda = torch.device("cuda")
    assert step.parse(worker_words(config, LadderSettings(), cuda, 1)).compile
    assert not step.parse(worker_words(config, LadderSettings(), cuda, 1, compile=False)).compile


def test_ctrl_c_keeps_what_was_measured_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, keep: Callable[[list[Row]], object], **__: object) -> list[Row]:
        keep([Row("fp32", {}, Spread.of([1.0]))])
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "measure_ladder", interrupted)
    out = tmp_path / "ladder.json"
    assert main(["--toy", "--device=cpu", f"--out={out}"]) == 130
    assert f"Stopped: {out} has what was measured." in capsys.readouterr().err
    assert read(out).provenance["stopped"] and read(out).rows[0].name == "fp32"
    assert "Stopped before it was through: 2 repeats were planned" in out.with_suffix(".md").read_text()


def test_a_step_is_a_row_of_the_same_schema(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    words = ["--case=step", "--toy", "--device=cpu", "--threads=1", f"--out={out}", "--grad_accum=2"]
    assert main(words) == 0
    (row,) = from_json(out.read_text(), "step").rows
    assert row.settings["rows"] == 4 and row.settings["world_size"] == 1 and row.memory_bytes
    facts = json.loads(out.read_text())["provenance"]
    assert facts["command"] == f"python -m raygpt.bench {' '.join(words)}" and facts["versions"]["torch"]
    assert facts["hardware"]["device"] == "CPU" and facts["date"].startswith("20")
