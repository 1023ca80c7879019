"""`raygpt generate` as a command: its last line, its folder, and bad input named before a single question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raygpt.cli import main
from raygpt.data.shards import load_manifest
from raygpt.distill import client as client_module
from raygpt.distill.score import score_question
from tests.distill.endpoint import Endpoint, Orders, answer_to


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "backoff", lambda attempt: 0.01)


def words(folder: Path, endpoint: Endpoint, *more: str) -> list[str]:
    return [
        "generate",
        f"--run.storage={folder}",
        "--run.name=g",
        "--teacher.engine=endpoint",
        f"--teacher.endpoints={endpoint.url}",
        f"--generate.prompts={folder}/p.jsonl",
        "--data.tokenizer=bytes",
        "--generate.filters=[]",
        *more,
    ]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def generate(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int = 0) -> tuple[dict[str, Any], str]:
    """(the last line, everything that was printed)."""
    assert main(arguments) == status
    out, error = capsys.readouterr()
    return json.loads(out.splitlines()[-1]) if status != 2 else {}, out + error


ROWS = [{"id": n, "prompt": f"prompt {n}"} for n in range(60)]


def test_prompts_become_shards_and_a_second_call_pays_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [*ROWS, {"id": "again", "prompt": "prompt 3"}])
    orders = Orders(faults=("500", "garbage", "429"), share=0.2, retry_after="0.01", answer_words=30)
    priced = "--teacher.usd_per_million_output=1000000"
    with Endpoint(orders) as endpoint:
        said, printed = generate(capsys, words(tmp_path, endpoint, priced))
        assert endpoint.teacher.tokens == 60 * 30 == said["teacher_tokens"] == said["cost_usd"]
        # nothing else is asked, and nothing of it changes
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "g/train").iterdir()}
        again, _ = generate(capsys, words(tmp_path, endpoint, priced))
        assert endpoint.teacher.tokens == 60 * 30
        assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "g/train").iterdir()}
        other, printed_other = generate(capsys, words(tmp_path, endpoint, "--generate.temperature=0"))
    wanted = {"prompts": 60, "answered": 60, "parked": 0, "documents": 60, "repeated_prompts": 1, "reused_answers": 0}
    assert {name: said[name] for name in wanted} == wanted
    assert "61 rows, 60 prompts (1 more of them repeat one): 0 answered, 0 parked, 60 to ask." in printed
    assert (again["answered"], again["reused_answers"], again["teacher_tokens"], again["cost_usd"]) == (60, 60, 0, 0)
    assert again["total_cost_usd"] == 1800 and again["requests"] == 0 and again["documents"] == 60
    # other settings are another generation, beside the first
    assert other["generation"] != said["generation"] and other["teacher_tokens"] == 1800
    assert f"1 of other settings ({said['generation']}) kept beside it" in printed_other
    folder = tmp_path / "g"
    assert load_manifest(str(folder / "train")).documents + load_manifest(str(folder / "val")).documents == 60
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*/shard-*.bin"))).decode("utf-16-le", "replace")
    assert answer_to("prompt 7", None, 30) in text
    assert {"answers", "card.md", "quality.json", "config.yaml", "summary.json", "attempts.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "parked.jsonl").exists()


def test_the_teachers_marks_are_asked_for_once_and_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, ROWS)
    good = [n for n in range(60) if int(answer_to(score_question(answer_to(f"prompt {n}")).messages[0][1])) >= 3]
    with Endpoint() as endpoint:
        arguments = words(tmp_path, endpoint, "--generate.filters=[score]", "--generate.temperature=0")
        said, printed = generate(capsys, arguments)
        assert endpoint.teacher.requests == 120 and "60 texts to mark." in printed
        assert (said["answered"], said["documents"]) == (60, len(good)) and 20 < len(good) < 50
        assert said["requests"] == 120 and said["teacher_tokens"] == endpoint.teacher.tokens == 60 * 12 + 60
        again, _ = generate(capsys, arguments)
        assert endpoint.teacher.requests == 120 and again["documents"] == len(good)


def test_money_that_ends_while_texts_are_marked_makes_no_poorer_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ROWS)
    with Endpoint() as endpoint:
        more = ["--generate.filters=[score]", "--generate.temperature=0", "--generate.max_new_tokens=24"]
        more.append("--teacher.usd_per_million_output=1e6")
        arguments = words(tmp_path, endpoint, *more)
        said, printed = generate(capsys, [*arguments, "--generate.max_cost_usd=750"])  # 720 of them for the answers
        assert said["answered"] == 60 and said["documents"] == 0
        assert "generate.max_cost_usd is reached: stopped" in printed and not (tmp_path / "g/train").exists()
        whole, _ = generate(capsys, [*arguments, "--generate.max_cost_usd=5000"])
        assert whole["documents"] > 20 and endpoint.teacher.requests == 120


def test_what_was_parked_is_told_and_retried_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*ROWS[:20], {"prompt": "far too long " * 5}])
    with Endpoint(Orders(refuse_words=10)) as endpoint:
        said, printed = generate(capsys, words(tmp_path, endpoint))
        assert (said["answered"], said["parked"]) == (20, 1)
        assert "1 parked (parked.jsonl; ask them again with --generate.retry_parked=true)" in printed
        line = json.loads((tmp_path / "g/parked.jsonl").read_text())
        assert line["reason"].startswith("400: maximum context") and line["prompt"].startswith("far too long")
        endpoint.teacher.orders.refuse_words = None
        said, _ = generate(capsys, words(tmp_path, endpoint, "--generate.retry_parked=true"))
        assert (said["answered"], said["parked"], said["requests"]) == (21, 0, 1)
    assert not (tmp_path / "g/parked.jsonl").exists()


def test_no_answer_at_all_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, ROWS[:3])
    with Endpoint(Orders(refuse_words=1)) as endpoint:
        said, printed = generate(capsys, words(tmp_path, endpoint), status=1)
    assert said["parked"] == 3 and "No prompt was answered (400: maximum context length is 1" in printed


def test_a_limit_in_dollars_ends_the_run_with_what_was_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ROWS)
    limits = ["--teacher.usd_per_million_output=1000000", "--generate.max_new_tokens=20", "--generate.max_cost_usd=300"]
    with Endpoint() as endpoint:
        said, printed = generate(capsys, words(tmp_path, endpoint, *limits))
        assert 280 < said["cost_usd"] == endpoint.teacher.tokens <= 300
    assert said["documents"] == said["answered"] < 60
    assert "generate.max_cost_usd is reached: stopped with" in printed and "To go on: raygpt generate" in printed


def test_a_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ROWS[:5])
    monkeypatch.setenv("TEACHER_KEY", "sk-abcdef-4711")
    with Endpoint(Orders(api_key="sk-abcdef-4711")) as endpoint:
        _, printed = generate(capsys, words(tmp_path, endpoint, "--teacher.api_key_env=TEACHER_KEY"))
    assert "4711" not in printed
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"4711" not in path.read_bytes(), path


def test_a_dry_run_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, ROWS)
    with Endpoint() as endpoint:
        assert main(words(tmp_path, endpoint, "--dry_run")) == 0
        assert endpoint.teacher.requests == 0
    assert "60 prompts: 0 answered, 0 parked, 60 to ask" in capsys.readouterr().out
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("rows", "orders", "more", "said"),
    [
        ([{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}], Orders(), [], "line 1 and .*line 2 have one id, 1"),
        ([{"prompt": "a"}, {"prompt": ""}], Orders(), [], "p.jsonl, line 2 has an empty 'prompt'"),
        (ROWS, Orders(), ["--generate.template=faq"], r"line 1 has no 'text' \(it has 'id', 'prompt'\)"),
        ([{"prompt": "w " * 90}], Orders(max_model_len=100), ["--generate.max_new_tokens=50"], "beyond the teacher's"),
        (
            ROWS,
            Orders(max_model_len=100),
            ["--generate.max_new_tokens=100"],
            "no room for a prompt in .* 100 tokens",
        ),
        (ROWS, Orders(), ["--teacher.model=llama"], r"teacher.model=llama: .*does not have it \(it has teacher\)"),
        (ROWS, Orders(api_key="k"), [], "wants a key .HTTP 401."),
        (ROWS, Orders(), ["--generate.max_cost_usd=1"], "generate.max_cost_usd .*needs a price to count with"),
        (ROWS, Orders(), ["--teacher.api_key_env=NO_SUCH_KEY"], "names NO_SUCH_KEY, which is not set"),
        (ROWS, Orders(), ["--generate.template=nothing"], "generate.template=nothing is neither a template"),
        (ROWS, Orders(), ["--teacher.engine=transformers", "--teacher.model=x"], "teacher.endpoints .*has no meaning"),
        (ROWS, Orders(), ["--data.tokenizer=train:500"], "data.tokenizer=train:500 is no tokenizer for generated text"),
        (ROWS, Orders(), ["--generate.options={style: []}"], "generate.options .*has an empty list for style"),
        (ROWS, Orders(), ["--generate.language=xx", "--generate.filters=[language]"], "generate.language=xx"),
        (ROWS, Orders(), ["--generate.decontaminate=[nowhere.jsonl]"], "nowhere.jsonl"),
        (ROWS, Orders(), ["--run.resume=must"], "run.resume=must but .* has no answers"),
    ],
)
def test_bad_input_is_named_before_anything_is_asked(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    orders: Orders,
    more: list[str],
    said: str,
) -> None:
    write(tmp_path, rows)
    with Endpoint(orders) as endpoint:
        _, printed = generate(capsys, words(tmp_path, endpoint, *more), status=2)
        assert endpoint.teacher.requests == 0
    import re

    assert re.search(said, printed.replace("\n", " ")), printed
    assert "Traceback" not in printed


def test_an_endpoint_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, ROWS)
    with Endpoint() as gone:
        pass
    _, printed = generate(capsys, words(tmp_path, gone), status=2)
    assert "teacher.endpoints: http://127.0.0.1:" in printed and "does not answer" in printed
