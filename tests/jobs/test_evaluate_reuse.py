"""Answers that are kept are taken for the model, text and settings that they are of, and for no others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raygpt.cli import main
from raygpt.config.settings import load_config
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.evaluate import task_workers
from raygpt.evaluate.answering import ModelSource, find_source
from raygpt.evaluate.classification_task import find_classifier
from raygpt.evaluate.task_parts import Parts
from raygpt.evaluate.tasks import HellaswagTask
from raygpt.jobs.evaluate_tasks import chosen_sources
from raygpt.storage import locate
from tests.conftest import save_byte_model
from tests.evaluate.hellaswag_items import write
from tests.jobs.conftest import make_run, write_shards
from tests.jobs.test_evaluate_texts import save_tiny_classifier
from tests.scoring.scripted_endpoint import Script, scripted


class Shifted(Script):
    """A server whose model changes: every other token costs `shift` nats more."""

    shift = 0.0

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        status, found = super().answer(body)
        if status == 200 and self.logprobs:
            values = found["choices"][0]["logprobs"]["token_logprobs"]
            values[2::2] = [value - self.shift for value in values[2::2]]
        return status, found


def evaluate(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    assert main(["evaluate", *words]) == status
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_another_model_behind_a_url_is_asked_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Shifted()
    with scripted(script) as url:
        words = [f"--eval.endpoint={url}", f"--eval.hellaswag={write(tmp_path / 'h.jsonl', 6)}"]
        words += [f"--run.storage={tmp_path}", "--eval.protocols=lm_eval"]

        def requests(*more: str) -> int:
            before = len(script.asked)
            evaluate(capsys, *words, *more)
            return len(script.asked) - before

        first = requests()
        script.shift = 0.001  # what a server's own figures differ by
        again = requests()
        assert again < 12 < first
        script.shift = 0.5
        assert requests() == first
        assert requests("--data.seq_len=60") == first
        tokenizer = save_byte_model(tmp_path / "m", seq_len=16, n_layer=1, n_head=1, n_embd=8)
        assert requests(f"--data.tokenizer={tokenizer}") > first / 2
    (folder,) = tmp_path.glob("evaluation-*")
    assert json.loads((folder / "evaluation.json").read_text())["model"]["uri"] == f"bigram at {url}"


def test_an_endpoint_without_log_probabilities_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = write(tmp_path / "h.jsonl", 2)
    with scripted(Script(logprobs=False)) as url:
        words = [f"--eval.endpoint={url}", f"--eval.hellaswag={items}", f"--run.storage={tmp_path / 'runs'}"]
        assert main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    assert "gives no log-probabilities of a prompt" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key=hunter2", "ftp://me:hunter2@host/v1"]
)
def test_a_key_in_a_url_is_refused_and_not_repeated(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"--eval.endpoint={url}", "--tasks=hellaswag", f"--run.storage={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "eval.api_key_env" in error and "hunter2" not in error and not list(tmp_path.iterdir())


def test_a_served_model_s_tokenizer_is_what_was_set() -> None:
    options = {"eval.endpoint": "http://127.0.0.1:9/v1", "eval.tasks": "[wikitext]", "eval.wikitext": "x"}
    for set_too, wanted in (({}, None), ({"data.tokenizer": "gpt2"}, "gpt2")):
        ((source, _),) = chosen_sources(load_config("evaluate", None, options | set_too, {}))
        assert source.tokenizer == wanted


def test_a_loss_is_that_of_the_text_that_lies_there_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = make_run(tmp_path / "runs")
    text = tmp_path / "text"
    text.mkdir()
    found = []
    for words, change in (
        ([f"--data.val={text}"], lambda told: (text / "a.txt").write_text(told)),
        ([], lambda told: write_shards(tiny.root / "data" / "val", [told], tiny.tokenizer)),  # what the run held out
    ):
        for told in ("one text of some words", "and another, which is longer than that"):
            change(told)
            found.append(evaluate(capsys, *tiny.options, "--tasks=loss", *words)["loss"])
            assert found[-1] == evaluate(capsys, *tiny.options, *words)["loss"]
    assert len(set(found)) == 4


def test_another_run_s_classifier_answers_for_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, test = save_byte_model(tmp_path / "b", seq_len=64, n_layer=1, n_head=1, n_embd=8), tmp_path / "test.csv"
    for name in ("m1", "m2"):
        (tmp_path / name).mkdir()
        save_tiny_classifier(tmp_path / name / "export", test)
    words = [f"--model.init_from={base}", f"--run.storage={tmp_path}", f"--task.test={test}"]
    words += ["--tasks", "hellaswag", "classification", f"--eval.hellaswag={write(tmp_path / 'h.jsonl', 3)}"]
    for name in ("m1", "m2"):
        found = evaluate(capsys, *words, f"--run.name={name}")["classification"]
        assert found["model"] == str(tmp_path / name / "export")
    place, before = find_classifier([str(tmp_path / "none"), str(tmp_path / "m1")])
    (Path(place) / "tokenizer.json").write_bytes(byte_tokenizer().to_json() + b"\n")
    assert find_classifier([place])[1] != before


def test_a_second_command_keeps_the_first_s_figures_of_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_run(tmp_path / "runs")
    passages = tmp_path / "l.jsonl"
    passages.write_text("".join(json.dumps({"text": f"one two three {word}"}) + "\n" for word in ("four", "five")))
    items, folder = write(tmp_path / "h.jsonl", 4), tiny.folder / "evaluation"
    evaluate(capsys, *tiny.options, "--tasks=hellaswag", f"--eval.hellaswag={items}")
    before = json.loads((folder / "evaluation.json").read_text())
    told = evaluate(capsys, *tiny.options, "--tasks=lambada", f"--eval.lambada={passages}")
    both = json.loads((folder / "evaluation.json").read_text())
    assert "hellaswag" not in told and both["tasks"]["hellaswag"] == before["tasks"]["hellaswag"]
    assert both["tasks"]["lambada"] == told["lambada"]
    evaluate(capsys, *tiny.options, "--tasks=lambada", f"--eval.lambada={passages}")  # nothing is asked
    again = json.loads((folder / "evaluation.json").read_text())
    assert again["environment"]["seconds"] == both["environment"]["seconds"] > before["environment"]["seconds"] > 0
    other = save_byte_model(tmp_path / "other", seq_len=64, n_layer=1, n_head=1, n_embd=8)
    words = [f"--model.init_from={other}", f"--eval.output={folder}", "--tasks=lambada", f"--eval.lambada={passages}"]
    evaluate(capsys, *words)
    assert list(json.loads((folder / "evaluation.json").read_text())["tasks"]) == ["lambada"]
    assert not (folder / "hellaswag.jsonl").exists() and (folder / "lambada.jsonl").exists()


def test_what_decides_an_answer_is_in_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(save_byte_model(tmp_path / "m", seq_len=16, n_layer=1, n_head=1, n_embd=8))
    tokenizer = tmp_path / "t"
    tokenizer.mkdir()
    seen = [find_source(str(model)).fingerprint()]
    for folder, name in (
        (model, "chat_template.jinja"),
        (model, "tokenizer.model"),
        (model, "added_tokens.json"),
        (model, "special_tokens_map.json"),
        (tokenizer, "tokenizer.json"),
    ):
        (folder / name).write_text("{}")
        seen.append(find_source(str(model), tokenizer=str(tokenizer)).fingerprint())
    (tokenizer / "tokenizer.json").write_text("{ }")
    seen.append(find_source(str(model), tokenizer=str(tokenizer)).fingerprint())
    assert len(set(seen)) == 7
    auto, fp32 = find_source(str(model)), find_source(str(model), precision="fp32")
    assert auto.fingerprint() == fp32.fingerprint()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert auto.computes_in() == "bf16" and fp32.computes_in() == "fp32"
    assert auto.fingerprint() != fp32.fingerprint() == find_source(str(model), use_gpu=False).fingerprint()


def test_a_model_and_an_endpoint_side_by_side_say_what_they_computed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, items = save_byte_model(tmp_path / "m", seq_len=64, n_layer=1, n_head=1, n_embd=8), tmp_path / "h.jsonl"
    words = ["--compare", model, f"--eval.hellaswag={write(items, 6)}", f"--run.storage={tmp_path}"]
    with scripted(Script()) as url:
        assert main(["evaluate", *words, f"--eval.endpoint={url}", "--eval.protocols=lm_eval"]) == 0
    printed = capsys.readouterr().out
    assert "McNemar" in printed and "ocabularies" not in printed
    assert "Not measured alike, which may be a part of a small difference: m on CPU, fp32; " in printed
    assert "on unknown to raygpt" in printed


def test_a_folder_in_a_job_s_upload_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    model = save_byte_model(tmp_path / "m", seq_len=64, n_layer=1, n_head=1, n_embd=8)
    items = write(tmp_path / "h.jsonl", 2)
    words = [f"--model.init_from={model}", f"--eval.hellaswag={items}"]
    assert main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    assert "lies in the job's upload, which Ray deletes: set eval.output to" in error
    assert not list(upload.iterdir())
    evaluate(capsys, *words, f"--eval.output={tmp_path / 'kept'}")


def test_parts_are_what_takes_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = HellaswagTask(write(tmp_path / "h.jsonl", 70))
    items, sizes, clock = task.read(), [], [0.0]
    parts = Parts(locate(tmp_path), task, "model", items)

    class Slow(task_workers.Answering):
        def answer(self, pending: task_workers.Pending) -> task_workers.Answer:
            clock[0] += 2.5 * len(pending.items)
            sizes.append(len(pending.items))
            stop = pending.start + len(pending.items)
            return pending.task, pending.start, stop, [{"id": item.id} for item in pending.items], {}

    monkeypatch.setattr(task_workers, "Answering", Slow)
    monkeypatch.setattr(task_workers, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in range(2):  # the second goes on where the first was stopped
        parts.look()
        pending = [task_workers.Pending("hellaswag", one.start, items[one.start : one.stop]) for one in parts.missing()]
        answers = task_workers.answers(ModelSource("m", "m"), [task], pending, task_workers.Workers())
        for name, start, stop, records, facts in answers:
            assert name == "hellaswag"
            parts.write(range(start, stop), records, facts, 1.0)
            if parts.answered == 10:
                break
    assert max(sizes) == 4 and parts.answered == 70 and not parts.missing()
    records, _, seconds = parts.read()
    assert [record["id"] for record in records] == [item.id for item in items] and seconds == len(sizes)
