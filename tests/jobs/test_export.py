"""`raygpt export` and `raygpt report`: what leaves a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from raygpt import storage
from raygpt.cli import main
from raygpt.model.card import model_card
from raygpt.model.generate import generate
from raygpt.model.gpt import GPTConfig
from raygpt.storage import locate
from tests.jobs.conftest import FinishedRun, make_run


def test_the_pipeline_of_transformers_loads_it_and_writes_the_same_text(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *finished.options]) == 0
    folder = finished.folder / "export"
    assert f'pipeline("text-generation", model="{folder}")' in capsys.readouterr().out
    from transformers import pipeline

    prompt = "It was"
    written = pipeline("text-generation", model=str(folder))(prompt, max_new_tokens=9, do_sample=False)
    ids = generate(finished.model, torch.tensor([list(prompt.encode())]), 9, temperature=0, eot_id=256)[0].tolist()
    assert written[0]["generated_text"] == finished.tokenizer.decode(ids)


def test_many_files_of_half_precision_load_the_same(finished: FinishedRun, tmp_path: Path) -> None:
    from transformers import pipeline

    prompt, texts = "It was", []
    for shard_gb in (1, 2e-5):
        folder = tmp_path / str(shard_gb)
        options = [f"--export.output={folder}", "--export.dtype=bfloat16", f"--export.shard_gb={shard_gb}"]
        assert main(["export", *finished.options, *options]) == 0
        assert (len(list(folder.glob("model*.safetensors"))) > 2) == (shard_gb < 1)
        write = pipeline("text-generation", model=str(folder))
        assert write.model.dtype == torch.bfloat16
        texts.append(write(prompt, max_new_tokens=9, do_sample=False)[0]["generated_text"])
    assert texts[0] == texts[1] and texts[0].startswith(prompt)


def test_the_card_says_what_the_model_is_and_where_it_comes_from(finished: FinishedRun) -> None:
    assert main(["export", *finished.options]) == 0
    card = (finished.folder / "export" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n") and "# tiny\n" in card
    assert 'pipeline("text-generation"' in card
    for row in (
        f"| parameters | {finished.model.config.num_parameters():,} |",
        "| context | 16 tokens |",
        "| vocabulary | 257 (bytes) |",
        "| steps | 30 |",
        "| tokens | 960 |",
        "| batch | 32 tokens |",
        "| optimizer | adamw, lr 0.0006, cosine, weight decay 0.1 |",
        f"| fingerprint | `{finished.train.fingerprint}` |",
        f"| training tokens | {finished.train.tokens:,} |",
        "| sources | books.txt |",
        "| validation loss (nats per token) | 5.2500 |",
        f"| validation perplexity | {math.exp(5.25):.4f} |",
        "| best validation loss | 5.1250 at step 20 |",
        "| cost | $1.50 |",
        "| training loss (nats per token) | 5.0000 |",
    ):
        assert row in card, row


def test_the_card_of_a_fine_tuned_model_names_its_base() -> None:
    card = model_card("m", GPTConfig(vocab_size=300), tokenizer="bytes", base="openai-community/gpt2-xl")
    assert "\nbase_model: openai-community/gpt2-xl\n" in card and "fine-tuned from `openai-community/gpt2-xl`" in card
    card = model_card("m", GPTConfig(vocab_size=300), tokenizer="bytes", base="/home/me/runs/first")
    assert "base_model" not in card and "fine-tuned from `/home/me/runs/first`" in card


def test_a_card_holds_only_what_is_known() -> None:
    card = model_card("m", GPTConfig(vocab_size=300, bias=False), tokenizer="a|b", results={"loss": None})
    assert "## Results" not in card and "## Training" not in card and "None" not in card
    assert "| vocabulary | 300 (a\\|b) |" in card and "zeros" in card


def test_a_summary_of_other_steps_is_not_quoted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.folder / "summary.json").write_text(json.dumps({"steps": 60, "train_loss": 1.25}))
    assert main(["export", *run.options]) == 0
    card = (run.folder / "export" / "README.md").read_text()
    assert "1.2500" not in card and "| validation loss (nats per token) | 5.2500 |" in card


def test_a_run_on_s3_is_exported_beside_it_and_loads_from_there(
    finished: FinishedRun, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((finished.folder / "checkpoints").rglob("*")):
        if path.is_file():
            storage.write_bytes(locate(f"{bucket}/tiny") / str(path.relative_to(finished.folder)), path.read_bytes())
    assert main(["export", f"--run.storage={bucket}", "--run.name=tiny"]) == 0
    assert storage.exists(locate(f"{bucket}/tiny/export/config.json"))
    # again, over the first one
    assert main(["export", f"--run.storage={bucket}", "--run.name=tiny"]) == 0
    capsys.readouterr()
    val = f"--data.val={finished.root / 'data'}"
    losses = []
    for uri in (f"{bucket}/tiny/export", f"{bucket}/tiny/checkpoints/step_00000030", str(finished.folder)):
        assert main(["evaluate", f"--model.init_from={uri}", val]) == 0
        losses.append(json.loads(capsys.readouterr().out.splitlines()[-1])["loss"])
    assert losses[0] == losses[1] == losses[2]
    storage.write_bytes(locate(f"{bucket}/other/file"), b"x")
    assert main(["export", f"--run.storage={bucket}", "--run.name=tiny", f"--export.output={bucket}/other"]) == 2
    assert "holds something that is no exported model" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["export", *finished.options, f"--export.output={tmp_path}"]) == 2
    assert "is not an exported model: choose another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_outside_a_run_needs_a_folder(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *finished.options, f"--export.output={tmp_path / 'hf'}"]) == 0
    assert main(["export", f"--model.init_from={tmp_path / 'hf'}"]) == 2
    assert "export.output is not set" in capsys.readouterr().err


def test_a_report_is_drawn_again(finished: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *finished.options]) == 0
    page = finished.folder / "report.html"
    assert capsys.readouterr().out == f"Report: {page}\n"
    assert "tiny" in page.read_text() and (finished.folder / "plots" / "loss.png").exists()


def test_there_is_no_report_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", f"--run.storage={tmp_path}", "--run.name=none"]) == 2
    assert "holds no run" in capsys.readouterr().err
