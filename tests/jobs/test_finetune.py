"""`raygpt finetune` from the command line: defaults of its own, the plan at the start, what it says at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygpt.capacity.from_config import check_fit
from raygpt.cli import main, parse
from raygpt.config.checks import problems
from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.jobs import find_jobs
from raygpt.train.resolve import resolve
from tests.conftest import save_byte_model
from tests.train.running import letters

BASE = str(Path(main.__code__.co_filename).parent / "jobs" / "finetune.yaml")
SMALL = [
    "--model.preset=nano",
    "--model.n_layer=1",
    "--model.n_embd=32",
    "--model.seq_len=16",
    "--train.global_batch_tokens=128",
    "--train.max_steps=4",
    "--eval.every=2",
    "--track.wandb=off",
    "--track.tensorboard=false",
]


@pytest.fixture(scope="module")
def base(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hugging Face folder of a byte model of one layer, random weights."""
    return save_byte_model(tmp_path_factory.mktemp("base") / "hf", seq_len=16, n_layer=1, n_head=4, n_embd=32)


def test_the_jobs_defaults_lie_below_the_file_and_the_command_line(tmp_path: Path) -> None:
    plain = load_config("finetune", None, {"data.train": "x", "model.init_from": "gpt2"}, {}, base=BASE)
    assert (plain.train.epochs, plain.data.tokenizer, plain.eval.first) == (3, "base", True)
    mine = tmp_path / "mine.yaml"
    mine.write_text("train: {max_steps: 7}\noptim: {warmup_steps: 2}\nmodel: {init_from: gpt2}\ndata: {train: x}\n")
    config = load_config("finetune", str(mine), {"optim.lr": "1"}, {}, base=BASE)
    # the length and the warm-up have one form each: the user's
    assert (config.train.max_steps, config.train.epochs, config.optim.lr) == (7, None, 1.0)
    assert (config.optim.warmup_steps, config.optim.warmup_fraction) == (2, None)
    with pytest.raises(UserError, match="set exactly one of"):
        load_config("finetune", str(mine), {"train.epochs": "1"}, {}, base=BASE)


def test_a_base_is_asked_for() -> None:
    config = load_config("pretrain", None, {"data.train": "x", "train.max_steps": "1"}, {})
    assert (
        "model.init_from",
        "is not set: name the model to fine-tune (a run, a Hugging Face folder or id)",
    ) in problems(config, find_jobs()["finetune"])


def test_short_options_take_a_value_or_stand_alone() -> None:
    aliases = {"from_txt": "prepare.sources"}
    assert parse(["--from-txt", "old.txt"], ("from_txt",), aliases)[1:] == (
        {"prepare.sources": "old.txt"},
        {"from_txt"},
    )
    assert parse(["--from-txt=old.txt"], ("from_txt",), aliases)[1:] == ({"prepare.sources": "old.txt"}, {"from_txt"})
    assert parse(["--from-txt", "--a.b=1"], ("from_txt",), aliases)[1:] == ({"a.b": "1"}, {"from_txt"})


def test_a_csv_is_fine_tuned_on_and_every_row_is_accounted_for(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f'{n},"line one of {n}\nsaid ""quoted"", and more"\r\r\n' for n in range(60))
    (tmp_path / "papers.csv").write_text("id,abstract\r\r\n" + rows + '60,"  "\r\r\n', newline="")
    words = ["--data.text_column=abstract", "--prepare.val_fraction=0.2", f"--run.storage={tmp_path}", "--run.name=p"]
    small = [word for word in SMALL if not word.startswith("--model")]
    status = main(["finetune", f"--data.train={tmp_path / 'papers.csv'}", f"--model.init_from={base}", *words, *small])
    output = capsys.readouterr().out
    assert status == 0, output
    record = json.loads(next((tmp_path / "prepared").glob("*/prepare.json")).read_text())
    assert (record["documents"], record["empty_documents"]) == (60, 1)
    assert f"raygpt evaluate --base={base} --tuned={tmp_path / 'p'}" in output
    assert f"raygpt export --model.init_from={tmp_path / 'p'}" in output
    assert "Plan: " in output and "GiB per host" in output
    steps = [json.loads(line) for line in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["step"] == 0 and "val_loss" in steps[0]


def test_what_does_not_fit_is_refused_before_it_starts(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = letters(tmp_path / "shards")
    words = [f"--data.train={shards}", f"--data.val={shards}", f"--run.storage={tmp_path}", "--plan.host_memory_gb=0.2"]
    assert main(["pretrain", *words, *SMALL, "--run.name=no"]) == 2
    error = capsys.readouterr().err
    assert "plan.check=warn" in error and "0.2" in error and not (tmp_path / "no" / "checkpoints").exists()
    options = dict(word.removeprefix("--").split("=") for word in [*words, *SMALL, "--plan.check=warn"])
    config = load_config("pretrain", None, options, {})
    job = resolve(config)
    report = check_fit(config, job.model, job.run)
    assert report is not None and report.refusal and "Warning: " in capsys.readouterr().out


def test_a_base_with_another_tokenizer_is_refused(base: str, tmp_path: Path, make_shards, capsys) -> None:
    from raygpt.data.shards import ShardWriter
    from raygpt.data.tokenizer import train_tokenizer

    other = train_tokenizer(["some text to learn from " * 20], 260)
    writer = ShardWriter(str(tmp_path / "other"), "uint16", 999)
    writer.append(other.encode_batch(["some text to learn from " * 40])[0])
    writer.finish(other.info, other.to_json(), 1, 960, ["memory"])
    folder = str(tmp_path / "other")
    small = [word for word in SMALL if not word.startswith("--model")]
    words = [f"--data.train={folder}", f"--data.val={folder}", f"--run.storage={tmp_path}", f"--model.init_from={base}"]
    assert main(["finetune", *words, *small]) == 2
    assert "was made with tokenizer" in capsys.readouterr().err


def test_deepspeeds_settings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--model.init_from=gpt2-xl", "--data.train=x", "--data.seq_len=1024", "--train.strategy=zero3"]
    more = ["--train.micro_batch_size=4", "--train.deepspeed={zero_optimization: {reduce_bucket_size: 9}}"]
    assert main([*words, *more, "--print_deepspeed"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["gradient_accumulation_steps"] == 4 and shown["zero_optimization"]["reduce_bucket_size"] == 9
    assert main([*words[:-1], "--print_deepspeed"]) == 2
    assert "uses no DeepSpeed" in capsys.readouterr().err
