"""`raygpt evaluate` with eval.tasks: a run, whose answers are the same however they were got, and asked for once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raygpt.cli import main
from raygpt.evaluate import task_workers
from raygpt.evaluate.answering import OpenModel
from raygpt.evaluate.tasks import HellaswagTask
from tests.conftest import save_byte_model
from tests.evaluate.hellaswag_items import write
from tests.jobs.conftest import FinishedRun, make_run

PROTOCOLS = ("build_nanogpt", "lm_eval", "lighteval")


@pytest.fixture
def tiny(tmp_path: Path) -> FinishedRun:
    return make_run(tmp_path / "runs")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("items") / "h.jsonl", 150)


def evaluate(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[dict[str, Any], str]:
    assert main(["evaluate", *words]) == status
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def test_an_evaluation_is_a_run_in_the_model_s_folder(
    tiny: FinishedRun, items: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny.options, "--tasks", "loss", "hellaswag", f"--eval.hellaswag={items}"]
    found, printed = evaluate(capsys, *words, "--track.price_per_hour=7200")
    folder = tiny.folder / "evaluation"
    by_item = [json.loads(line) for line in (folder / "hellaswag.jsonl").read_text().splitlines()]
    assert [(row["id"], row["protocol"]) for row in by_item[:4]] == [("0", name) for name in PROTOCOLS] + [
        ("1", "build_nanogpt")
    ]
    for name in PROTOCOLS:
        mine = [row for row in by_item if row["protocol"] == name]
        each = found["hellaswag"][name]
        assert each["acc_norm"] == sum(row["acc_norm"] for row in mine) / 150 and each["items"] == len(mine) == 150
    assert found["hellaswag"]["items"] == 150 and found["step"] == 30 and found["cost_usd"] > 0
    alone, _ = evaluate(capsys, *tiny.options)
    assert found["loss"] == alone["loss"] and found["bits_per_byte"] == alone["bits_per_byte"]
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["tasks"]["hellaswag"] == found["hellaswag"] and written["cost_usd"] == found["cost_usd"]
    assert written["model"]["tokenizer_sha256"] == tiny.tokenizer.sha256
    assert written["environment"]["devices"] == [{"device": "CPU", "precision": "fp32"}]
    assert {"config.yaml", "attempts.json", "summary.json"} <= {path.name for path in folder.iterdir()}
    line = next(line for line in printed.splitlines() if "hellaswag  lm_eval" in line)
    assert line.split()[2:5] == ["150", "0", "none"] and "±" in line and "characters of the ending" in line
    assert "GPT-2 124M" in printed and "karpathy/build-nanogpt" in printed  # published, by the same protocols


def test_batches_and_shares_of_workers_change_no_answer(tiny: FinishedRun, items: str) -> None:
    """What 1, 2 and 4 workers do is answer other parts each, in another order, in batches of other items."""
    from raygpt.evaluate.answering import find_source

    task = HellaswagTask(items)
    asked = task.read()
    answers = {}
    for tokens, workers in ((1, 1), (64 * 30, 1), (None, 2), (None, 4)):
        source = find_source(str(tiny.folder), batch_tokens=tokens)
        records = [None] * len(asked)
        for rank in range(workers):
            crew = task_workers.Answering(source, [task])
            for start in reversed(range(rank * 16, len(asked), workers * 16)):
                part = task_workers.Pending("hellaswag", start, asked[start : start + 16])
                *_, found, facts = crew.answer(part)
                records[start : start + 16] = [found[at : at + 3] for at in range(0, len(found), 3)]  # type: ignore[assignment]
            assert facts["name"] == "tiny"
        answers[tokens, workers] = records
    first, *others = answers.values()
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            for one, two in zip(mine, theirs, strict=True):  # type: ignore[arg-type]
                assert {**one, "logprobs": 0} == {**two, "logprobs": 0}
                assert one["logprobs"] == pytest.approx(two["logprobs"], rel=1e-5)


def test_a_rerun_asks_what_is_missing_and_another_model_or_setting_everything(
    tiny: FinishedRun, items: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    broken = [2]

    class Dying(OpenModel):
        @property
        def scorer(self) -> Any:  # type: ignore[override]
            inner = super().scorer

            class Counting:
                bos = inner.bos

                def ask(self, questions: Any) -> Any:
                    if broken[0] == 0:
                        raise MemoryError("killed")
                    broken[0] -= 1
                    asked.update(question.id for question in questions)
                    return inner.ask(questions)

            return Counting()

    monkeypatch.setattr(task_workers, "OpenModel", Dying)
    words = [*tiny.options, "--tasks=hellaswag", f"--eval.hellaswag={items}", "--eval.protocols=lm_eval"]
    with pytest.raises(MemoryError):
        main(["evaluate", *words])
    assert sorted(map(int, asked)) == list(range(32))  # two parts, of 2 items and 30: the first says how long they take
    broken[0] = 100
    found, printed = evaluate(capsys, *words)
    assert "150 items, 32 of them answered before" in printed
    assert set(asked.values()) == {1} and len(asked) == 150
    again, printed = evaluate(capsys, *words)
    assert again["hellaswag"] == found["hellaswag"] and set(asked.values()) == {1}
    folder = tiny.folder / "evaluation"
    outcomes = [each["outcome"] for each in json.loads((folder / "attempts.json").read_text())]
    assert outcomes == ["failed", "finished", "complete"]
    evaluate(capsys, *words, "--eval.limit=10")  # other items: told apart
    assert asked["0"] == 2 and asked["70"] == 1
    export = str(tiny.root / "other")  # another model in the same folder: as well
    save_byte_model(Path(export), seq_len=64, n_layer=1, n_head=1, n_embd=8)
    other, _ = evaluate(capsys, f"--model.init_from={export}", *words[2:], f"--eval.output={folder}")
    assert asked["70"] == 2 and other["hellaswag"] != found["hellaswag"]
    assert len(list((folder / "parts").iterdir())) == 3


def test_a_stop_keeps_what_is_done(
    tiny: FinishedRun, items: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    answer = task_workers.Answering.answer

    def stopping(self: Any, pending: Any) -> Any:
        if pending.start == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(self, pending)

    monkeypatch.setattr(task_workers.Answering, "answer", stopping)
    words = [*tiny.options, "--tasks=hellaswag", f"--eval.hellaswag={items}"]
    told, printed = evaluate(capsys, *words, status=130)
    assert told["outcome"] == "stopped" and "Stopped after 32 of 150 items; their answers are kept in" in printed
    assert f"To go on: raygpt evaluate {tiny.options[0]}" in printed
    assert not (tiny.folder / "evaluation" / "evaluation.json").exists()
    monkeypatch.undo()
    _, printed = evaluate(capsys, *words)
    assert "150 items, 32 of them answered before" in printed


def test_workers_of_ray_answer_as_one_process(
    ray_cluster: str, tiny: FinishedRun, items: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny.options, "--tasks=hellaswag", f"--eval.hellaswag={items}"]
    alone, _ = evaluate(capsys, *words)
    output = tiny.root / "two"
    two, printed = evaluate(capsys, *words, "--scale.num_workers=2", f"--eval.output={output}")
    assert "Ray cluster" in printed and two["hellaswag"] == alone["hellaswag"]
    rows = [json.loads(line) for line in (output / "hellaswag.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (tiny.folder / "evaluation/hellaswag.jsonl").read_text().splitlines()]
    assert [{**row, "logprobs": 0} for row in rows] == [{**row, "logprobs": 0} for row in expected]


def test_models_side_by_side_are_paired_and_measured_once(
    tiny: FinishedRun, items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = pytest.importorskip("scipy.stats")
    other = save_byte_model(tmp_path / "other", seq_len=64, n_layer=2, n_head=2, n_embd=16)
    asked = ["--tasks=hellaswag", f"--eval.hellaswag={items}", f"--run.storage={tiny.root}"]
    evaluate(capsys, f"--model.init_from={other}", *asked)
    assert (tiny.root / "evaluation-other" / "evaluation.json").exists()
    found, printed = evaluate(capsys, *asked, "--compare", str(tiny.folder), other)
    assert "150 items\n" in printed and "150 items, 150 of them answered before" in printed
    rows = {
        name: [json.loads(line) for line in (folder / "hellaswag.jsonl").read_text().splitlines()]
        for name, folder in (("tiny", tiny.folder / "evaluation"), ("other", tiny.root / "evaluation-other"))
    }
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("tiny", "other")] * 6
    for pair in found["pairs"]:
        protocol, metric = pair["metric"].split()
        mine, theirs = ([row[metric] for row in rows[n] if row["protocol"] == protocol] for n in ("tiny", "other"))
        discordant = [b - a for a, b in zip(mine, theirs) if a != b]
        assert pair["only_second"] == discordant.count(1) and pair["only_first"] == discordant.count(-1)
        assert pair["p"] == pytest.approx(stats.binomtest(discordant.count(1), len(discordant), 0.5).pvalue)
        assert pair["difference"]["value"] == pytest.approx(sum(theirs) / 150 - sum(mine) / 150)
    assert "other - tiny" in printed and "McNemar p=" in printed and "GPT-2 124M" in printed
    assert found["compare"]["other"]["hellaswag"]["lm_eval"]["items"] == 150
    assert (tiny.root / "comparison" / "tasks.md").read_text().count("McNemar") == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks=hellaswags"], "eval.tasks (--eval.tasks) is 'hellaswags': must be list of loss | wikitext"),
        (["--tasks=hellaswag", "--eval.hellaswag={bad}"], "line 1 has 3 endings"),
        (["--tasks=wikitext"], "eval.wikitext is not set"),
        (["--tasks=classification"], "task.test is not set"),
        (["--eval.endpoint=http://127.0.0.1:9/v1"], "is set but no task"),
        (["--eval.endpoint=http://127.0.0.1:9/v1", "--tasks=loss"], "has loss, which needs the weights"),
        (["--eval.model=x"], "has no meaning without eval.endpoint"),
        (["--tasks=hellaswag", "--base=a", "--tuned=b"], "name both models with compare.models"),
        (["--tasks=hellaswag", "--run.resume=must", "--eval.hellaswag={items}"], "has no evaluation"),
    ],
)
def test_bad_input_is_one_sentence(
    finished: FinishedRun, items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"ctx": "A man", "endings": ["a", "b", "c"], "label": 1}) + "\n")
    given = [word.format(bad=bad, items=items) for word in words]
    assert main(["evaluate", *finished.options, *given, f"--eval.output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.count("\n") <= 2
