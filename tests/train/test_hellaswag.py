"""HellaSwag during training: on all ranks alike, and the figure that `raygpt evaluate` gives of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raygpt.cli import main
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.distributed import World
from raygpt.scoring.hellaswag import PROTOCOLS, judge, questions, read_items
from raygpt.scoring.likelihood import ModelScorer
from raygpt.storage import locate
from raygpt.track.samples import read_samples
from raygpt.train.hellaswag import HellaswagAtHand
from raygpt.train.resolve import resolve
from tests.evaluate.hellaswag_items import write
from tests.train.gloo_pool import GlooPool
from tests.train.running import CUT_ALL, letters, run, settings


class OneOf(World):
    """A rank without the others: what it would have summed is kept."""

    def sum(self, *values: float) -> list[float]:
        return list(values)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ranks_together_answer_as_the_scorer_does_in_equally_many_passes(tmp_path: Path, protocol: str) -> None:
    items = read_items(write(tmp_path / "h.jsonl", 23))
    torch.manual_seed(5)
    model = GPT(GPTConfig(257, seq_len=20, n_layer=2, n_head=2, n_embd=32))  # contexts are cut
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    tokenizer = byte_tokenizer()
    scored = ModelScorer("m", model, tokenizer).ask(questions(items, protocol))  # type: ignore[arg-type]
    judged = [judge(item, protocol, each) for item, each in zip(items, scored)]  # type: ignore[arg-type]
    expected = [sum(each.correct for each in judged), sum(each.correct_norm for each in judged)]
    assert 0 < expected[1] < 23
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    for size in (1, 2, 3, 5):
        right, made = [0.0, 0.0], set()
        for rank in range(size):
            passes.clear()
            asked = HellaswagAtHand(items, protocol, tokenizer, 20, 400)  # type: ignore[arg-type]
            found = asked.ask(model, OneOf(rank, size, torch.device("cpu")))
            right = [total + 23 * share for total, share in zip(right, found.values())]
            made.add(len(passes))
        assert [round(total, 6) for total in right] == expected and len(made) == 1, size
    assert model.training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return letters(tmp_path_factory.mktemp("data"), 3000)


@pytest.mark.parametrize("strategy", ["ddp"])  # ZeRO: tests/drills/test_strategies.py
def test_training_logs_what_evaluate_says_of_its_checkpoint(
    gloo: GlooPool, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    path = write(tmp_path / "h.jsonl", 30)
    asked = {"eval__hellaswag": path, "eval__limit": "25", "eval__first": "true", "eval__every": "4"}
    asked["train__strategy"] = strategy
    asked |= {"eval__samples": "1", "sample__temperature": "0", "sample__max_new_tokens": "12"}
    if strategy == "zero3":
        asked["train__deepspeed"] = CUT_ALL
    logged = {}
    for workers in ("1", "2"):
        config = settings(
            data,
            tmp_path / workers,
            scale__num_workers=workers,
            train__max_steps="8",
            data__backend="mmap",
            train__micro_batch_size="16",
            model__dropout="0",
            **asked,
        )
        _, records, printed = run(config, pool=gloo)
        logged[workers] = {row["step"]: row["hellaswag_acc_norm"] for row in records if "hellaswag_acc" in row}
        assert "HellaSwag: 25 items of" in printed and "protocol build_nanogpt" in printed
        assert f"hellaswag {logged[workers][8]:.2%}" in printed
    assert logged["1"] == logged["2"] and list(logged["1"]) == [0, 4, 8]
    summary = json.loads((tmp_path / "2" / "r" / "summary.json").read_text())
    assert summary["hellaswag_acc_norm"] == logged["2"][8]
    words = [f"--run.storage={tmp_path / '2'}", "--run.name=r", f"--eval.hellaswag={path}", "--eval.limit=25"]
    assert main(["evaluate", *words, "--eval.protocols=build_nanogpt"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["hellaswag"]["build_nanogpt"]["acc_norm"] == logged["2"][8] and found["step"] == 8
    written = read_samples(locate(tmp_path / "2" / "r"))
    assert [one.step for one in written] == [0, 4, 8]
    assert (
        main(["sample", *words[:2], "--sample.temperature=0", "--sample.num_samples=1", "--sample.max_new_tokens=12"])
        == 0
    )
    assert capsys.readouterr().out.split("--- 1 of 1\n")[1] == written[-1].texts[0] + "\n"
    page = (tmp_path / "2" / "r" / "report.html").read_text()
    assert "What it wrote as it learned" in page and "<summary>step 4</summary>" in page


def test_items_that_cannot_be_asked_are_refused_before_training(data: str, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps({"ctx": "A man", "endings": ["runs.", "sits."], "label": 0}) + "\n")
    with pytest.raises(UserError, match="h.jsonl, line 1 has 2 endings"):
        resolve(settings(data, tmp_path, eval__hellaswag=str(path)))


def test_endings_longer_than_the_context_are_refused_before_training(data: str, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    endings = ["runs.", "sits.", "reads a long letter aloud.", "naps."]
    path.write_text(json.dumps({"ctx": "A man", "endings": endings, "label": 0}) + "\n")
    with pytest.raises(UserError, match=r"ending 2 of .*h.jsonl, line 1 has 27 tokens, and the model's context is 16"):
        resolve(settings(data, tmp_path, eval__hellaswag=str(path), model__seq_len="16"))
    resolve(settings(data, tmp_path, eval__hellaswag=str(path), model__seq_len="32"))
