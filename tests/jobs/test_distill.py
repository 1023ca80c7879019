"""`raygpt distill` on text that a teacher wrote: a mixture with real text, whoever shares the work and wherever it is
taken up again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from raygpt.cli import main
from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.data.request import PrepareOptions
from raygpt.data.shards import ShardWriter
from raygpt.data.sources import real_options
from raygpt.data.tokenizer import train_tokenizer
from raygpt.errors import UserError
from raygpt.jobs.distill import real_text
from raygpt.train.resolve import Resolved, resolve
from tests.jobs.conftest import FinishedRun
from tests.train.gloo_pool import GlooPool
from tests.train.running import OPTIONS, POOLED, Screen, forget_after, letters, records, sequence

STEPS = 24  # of 32 rows of 16 tokens: 768 rows, 307 of them real; an epoch of the real text has 192


def settings(storage: Path, synthetic: str, real: str, **changes: str) -> Config:
    options = {**OPTIONS, "data.train": synthetic, "data.val": real, "run.storage": str(storage)}
    options |= {"distill.real": real, "distill.real_fraction": "0.7", "distill.real_fraction_end": "0.1"}
    options |= {key.replace("__", "."): value for key, value in (POOLED | changes).items()}
    return load_config("distill", None, options, {})


def resolved(config: Config) -> Resolved:
    return resolve(config, real_text(config))


def train(config: Config, pool: GlooPool) -> str:
    screen = Screen()
    pool.run_training(config, resolved(config), "raygpt distill …", screen)
    return screen.getvalue()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Shard folders of synthetic and of real text, both of bytes."""
    home = tmp_path_factory.mktemp("corpora")
    return letters(home / "synthetic", 6_000), letters(home / "real", 3_500)


@pytest.fixture(scope="module")
def unbroken(corpora: tuple[str, str], gloo: GlooPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """A run of one worker from end to end, and what it printed."""
    config = settings(tmp_path_factory.mktemp("run"), *corpora, scale__num_workers="1", train__keep_checkpoints="9")
    return config, train(config, gloo)


def test_a_run_trains_on_the_rows_that_the_mixture_names(unbroken: tuple[Config, str], corpora) -> None:
    """Digests of the batches against tokens read with numpy: rows of the plan, a digest as DESIGN §5 has it."""
    config, printed = unbroken
    job = resolved(config)
    files = [sorted(Path(uri).glob("*.bin")) for uri in corpora]
    whole = np.concatenate([np.fromfile(path, "<u2") for part in files for path in part])
    seen = sequence(records(config), "batch_digest")
    assert sorted(seen) == list(range(1, STEPS + 1))
    for step in range(STEPS):
        starts = job.plan.order.chunk_starts(job.plan.order.chunk(step, 1))[0]
        rows = [whole[start : start + 17].astype("<i8").tobytes() for start in starts]
        digests = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
        assert seen[step + 1] == hashlib.sha256(digests).hexdigest()[:32]
    assert "Mixed with" in printed and "share of a batch 0.7 to 0.1 at step 23, 1.60 epochs of it" in printed


def test_a_run_goes_on_from_its_middle_on_another_number_of_workers(
    unbroken: tuple[Config, str], corpora, gloo: GlooPool, tmp_path: Path
) -> None:
    shutil.copytree(unbroken[0].run.storage, tmp_path / "copy")
    forget_after(tmp_path / "copy" / "r", 10)
    again = settings(tmp_path / "copy", *corpora, scale__num_workers="3")
    assert "Going on from step 10" in train(again, gloo)
    mine, want = records(again), records(unbroken[0])
    assert sequence(mine, "batch_digest") == sequence(want, "batch_digest")
    assert sequence(mine, "epoch") == sequence(want, "epoch")
    assert max(sequence(want, "epoch").values()) == 1  # type: ignore[type-var]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"train__max_steps": "30"}, "share of real text 0.7 to 0.1 at step 29 instead of .*at step 23.*set it back"),
        ({"distill__real_fraction": "0.5"}, "distill.real_fraction is 0.5 but run .* was started with 0.7"),
        ({"distill__real": "others"}, "distill.real [0-9a-f]{12} instead of distill.real [0-9a-f]{12}"),
        ({"data__train": "others"}, r"another one than it began with \(data.train [0-9a-f]{12} instead of"),
    ],
)
def test_another_mixture_is_not_resumed(
    unbroken: tuple[Config, str], corpora, tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    others = letters(tmp_path / "others", 5_000)
    storage = Path(unbroken[0].run.storage)
    named = {key: others if value == "others" else value for key, value in changes.items()}
    with pytest.raises(UserError, match=sentence):
        resolved(settings(storage, *corpora, **named))
    allowed = {key: value for key, value in named.items() if key in ("train__max_steps", "data__train")}
    if allowed:
        resolved(settings(storage, *corpora, data__ignore_fingerprint="true", **allowed))


def test_a_constant_share_may_train_longer(corpora, tmp_path: Path) -> None:
    """A line is another line when the run is longer; a share that stays is the same plan."""
    plans = {
        (end, steps): resolved(
            settings(tmp_path, *corpora, distill__real_fraction_end=end, train__max_steps=steps)
        ).plan.order.fingerprint
        for end in ("none", "0.1")
        for steps in ("24", "99")
    }
    assert plans["none", "24"] == plans["none", "99"]
    assert plans["0.1", "24"] != plans["0.1", "99"]


def test_epochs_are_passes_over_the_synthetic_text(corpora, tmp_path: Path) -> None:
    length = {"train__max_steps": "none", "train__epochs": "3"}
    job = resolved(settings(tmp_path, *corpora, **length))
    assert job.plan.order.epochs(job.plan.total_steps) == pytest.approx(3, abs=0.5 / 11)  # 11 steps in a pass


def test_other_tokenizers_and_too_little_text_are_refused(corpora, tmp_path: Path) -> None:
    other = train_tokenizer(["some text to learn from " * 20], 260)
    writer = ShardWriter(str(tmp_path / "other"), "uint16", 999)
    writer.append(other.encode_batch(["some text to learn from " * 99])[0])
    writer.finish(other.info, other.to_json(), 1, 960, ["memory"])
    with pytest.raises(UserError, match="distill.real=.*other was made with tokenizer .* data.train=.* with bytes"):
        resolved(settings(tmp_path, corpora[0], corpora[1], distill__real=str(tmp_path / "other")))
    with pytest.raises(UserError, match="distill.real=.* holds 400 tokens but one batch has 512"):
        resolved(settings(tmp_path, *corpora, distill__real=letters(tmp_path / "short", 400)))


def test_raw_real_text_is_prepared_whole_with_the_synthetic_texts_tokenizer(corpora, tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("Ground control to Major Tom.")
    options = real_options(str(tmp_path / "real.txt"), corpora[0], PrepareOptions([], str(tmp_path), "gpt2"))
    assert options.load_tokenizer().name == "bytes" and options.sides == ("train",)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="distill.real"):
        real_options(str(tmp_path / "none.txt"), corpora[0], PrepareOptions([], str(tmp_path), "gpt2"))


def test_a_dry_run_says_what_is_there(corpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "real.txt").write_text("Ground control to Major Tom.")
    words = ["distill", f"--data.train={corpora[0]}", f"--data.val={corpora[1]}", f"--run.storage={tmp_path}"]
    words += ["--model.preset=nano", "--model.seq_len=16", "--train.max_steps=9", "--train.global_batch_tokens=512"]
    words += ["--distill.real_fraction=0.5", "--dry_run"]
    assert main([*words, f"--distill.real={corpora[1]}"]) == 0
    assert "9 steps of 512 tokens" in capsys.readouterr().out
    assert main([*words, f"--distill.real={tmp_path / 'real.txt'}"]) == 0
    assert "real.txt is not prepared yet" in capsys.readouterr().out
    assert main([*words, f"--distill.real={tmp_path / 'none.txt'}"]) == 2
    assert "distill.real" in capsys.readouterr().err
    assert main(words) == 2
    assert "distill.real: is not set" in capsys.readouterr().err.replace("distill.real is", "distill.real: is")


def test_a_teacher_without_its_mode_is_no_plain_training(
    corpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", f"--data.train={corpora[0]}", f"--data.val={corpora[1]}", f"--run.storage={tmp_path}"]
    assert main([*words, "--train.max_steps=9", "--distill.teacher=runs/large", "--dry_run"]) == 2
    assert "distill.teacher" in (said := capsys.readouterr().err) and "distill.mode=logits" in said


def test_states_are_not_written_over_a_training_run(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished.folder / "summary.json").read_bytes() if (finished.folder / "summary.json").exists() else None
    words = ["distill", "--distill.mode=logits", f"--distill.teacher={finished.folder}", *finished.options]
    words += [f"--data.train={finished.root / 'train'}", f"--distill.store={tmp_path / 'states'}"]
    assert main(words) == 2
    assert "is a training run: give the writing of distill.store another run.name" in capsys.readouterr().err
    assert before is None or (finished.folder / "summary.json").read_bytes() == before


def test_a_teacher_that_is_not_there_is_named_before_raw_text_is_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("some text\n" * 50)
    text, runs = f"--data.train={tmp_path / 'text.txt'}", f"--run.storage={tmp_path / 'runs'}"
    words = ["distill", "--distill.mode=logits", "--train.max_steps=9", text, runs]
    assert main([*words, f"--distill.teacher={tmp_path / 'nobody'}"]) == 2
    printed = capsys.readouterr()
    assert "distill.teacher" in printed.err and "nobody is not a folder" in printed.err and "repar" not in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]
