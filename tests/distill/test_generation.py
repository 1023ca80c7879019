"""Every prompt is asked for exactly once, whatever ends the asking; what comes out is the same as if nothing had."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raygpt.distill import client as client_module
from raygpt.distill.answers import Question
from raygpt.distill.asking import Ahead, Tally
from raygpt.distill.client import Asking, Client
from raygpt.distill.generation import Generation, scan_prompts, write_parked
from raygpt.distill.limits import Spend, TokenPrice
from raygpt.distill.prompts import Prompts, open_prompts, questions
from raygpt.distill.templates import load_template
from raygpt.errors import UserError
from raygpt.run.stop import StopToken
from raygpt.storage import locate
from tests.distill.endpoint import Endpoint, Orders, answer_to

PRICE = TokenPrice(0.0, 1e6)  # a dollar a token


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "backoff", lambda attempt: 0.01)


def prompt_file(path: Path, numbers: range) -> str:
    path.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in numbers))
    return str(path)


def test_as_many_are_asked_at_a_time_as_was_wished() -> None:
    async def alive() -> int:
        ahead = Ahead(iter([(str(n), Question(str(n))) for n in range(5_000)]))
        taken = 0

        async def work() -> None:
            nonlocal taken
            if await ahead.take() is not None:
                taken += 1

        await asyncio.gather(*(work() for _ in range(1_500)))
        return taken

    assert asyncio.run(alive()) == 1_500


class Run:
    """`raygpt generate` without the command line: a folder that several calls go on with."""

    def __init__(self, folder: Path, *files: str, name: str = "g") -> None:
        self.folder, self.files, self.name, self.calls = folder, files, name, 0

    def open(self) -> Generation:
        self.calls += 1
        work = self.folder / f"work-{self.calls}"
        prompts = open_prompts(self.files, Prompts((), load_template("prompt"), self.name, max_new_tokens=64))
        about = {"model": "teacher"}
        out = locate(str(self.folder / "out"))
        generation = Generation(self.name, lambda: questions(prompts), out, about, work / "q", 64)
        scan_prompts(prompts, generation, work / "ids")
        generation.settle()
        return generation

    def ask(
        self, url: str, *, limit: float | None = None, retries: int = 6, **more: Any
    ) -> tuple[Generation, Tally, bool]:
        generation = self.open()
        asking = Asking("teacher", (url,), 64, 0.0, 1.0, concurrency=8, retries=retries, timeout_seconds=5.0)
        spend = Spend(PRICE, limit, generation.spent(PRICE))
        tally, out_of_money = generation.ask(lambda: Client(asking, None), spend, concurrency=8, **more)
        generation.finish()
        return generation, tally, out_of_money


def texts(generation: Generation) -> dict[str, str]:
    return {str(answer.question.prompt): answer.text for answer in generation.answers()}


def right(numbers: range) -> dict[str, str]:
    return {f"prompt {n}": answer_to(f"prompt {n}") for n in numbers}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out/answers/g").glob("*.parquet"))}


def test_each_prompt_is_answered_once_through_faults_of_every_kind(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", range(300))
    faults = ("500", "429", "503", "garbage", "drop", "fields", "model")
    with Endpoint(Orders(faults=faults, share=0.2, retry_after="0.01")) as endpoint:
        generation, tally, _ = Run(tmp_path / "a", file).ask(endpoint.url)
        assert set(endpoint.teacher.answered.values()) == {1} and len(endpoint.teacher.answered) == 300
        assert sum(endpoint.teacher.faulted.values()) > 40
    assert texts(generation) == right(range(300))
    assert (tally.answered, tally.parked, tally.answer_tokens) == (300, 0, 3600)
    with Endpoint() as calm:
        Run(tmp_path / "b", file).ask(calm.url)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_stops_anywhere_cost_nothing_and_leave_the_same_files(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", range(200))
    run = Run(tmp_path / "a", file)
    with Endpoint(Orders(slow=0.01)) as endpoint:
        for share in (50, 100, 150):
            stop = StopToken()
            generation, _, _ = run.ask(endpoint.url, stop=stop, show=_stop_at(endpoint, share, stop))
            assert share <= generation.store.totals()["answered"] < 200
        generation, tally, _ = run.ask(endpoint.url)
        assert tally.answered <= 50
        assert set(endpoint.teacher.answered.values()) == {1} and endpoint.teacher.tokens == 200 * 12
    assert texts(generation) == right(range(200))
    with Endpoint() as calm:
        Run(tmp_path / "b", file).ask(calm.url)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_stop_after_the_asking_reaches_everybody_who_listens(tmp_path: Path) -> None:
    """The listener of a loop that is over raised, and those after it were never told."""
    stop, told = StopToken(), []
    with Endpoint() as endpoint:
        Run(tmp_path, prompt_file(tmp_path / "p.jsonl", range(5))).ask(endpoint.url, stop=stop)
    stop.listen(lambda: told.append(True))
    stop.request()
    assert told == [True]


def _stop_at(endpoint: Endpoint, answered: int, stop: StopToken) -> Callable[[Tally], None]:
    def watch() -> None:
        while len(endpoint.teacher.answered) < answered:
            threading.Event().wait(0.002)
        stop.request()

    threading.Thread(target=watch, daemon=True).start()
    return lambda tally: None


def test_a_file_that_grew_asks_for_what_is_new_and_other_settings_for_all(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", prompt_file(tmp_path / "p.jsonl", range(20)))
    with Endpoint() as endpoint:
        run.ask(endpoint.url)
        prompt_file(tmp_path / "p.jsonl", range(5, 30))
        generation, tally, _ = run.ask(endpoint.url)
        assert tally.answered == 10 and generation.counts.answered == 15
        assert texts(generation) == right(range(5, 30))  # of the prompts as they stand
        generation, tally, _ = Run(tmp_path / "r", *run.files, name="other").ask(endpoint.url)
        assert tally.answered == 25
    assert sorted(path.name for path in (tmp_path / "r/out/answers").iterdir()) == ["g", "other"]


def test_parked_prompts_stay_parked_until_they_are_retried_alone(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", range(40))
    run = Run(tmp_path / "r", file)
    with Endpoint(Orders(faults=("garbage",), share=0.3, most_faults=99)) as endpoint:
        generation, tally, _ = run.ask(endpoint.url, retries=0)
        parked = list(generation.parked())
        assert 5 <= tally.parked == len(parked) and tally.answered == 40 - len(parked)
        write_parked(parked, generation.store.folder / "parked.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "r/out/answers/g/parked.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in lines} == {parked.question.prompt for parked in parked}
    assert all(line["reason"] == "no answer in 1 tries, at last: the answer is not JSON" for line in lines)
    prompt_file(tmp_path / "p.jsonl", range(45))
    with Endpoint() as endpoint:
        assert run.ask(endpoint.url)[1].answered == 5  # the new ones, not the parked
        generation, tally, _ = run.ask(endpoint.url, retry_parked=True)
        assert tally.answered == len(parked) == endpoint.teacher.requests - 5
    assert texts(generation) == right(range(45)) and not list(generation.parked())


def test_a_limit_in_dollars_is_kept_over_all_calls(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", prompt_file(tmp_path / "p.jsonl", range(40)))
    with Endpoint() as endpoint:  # 12 dollars an answer, 64 at most as far as anybody knows before
        _, tally, out_of_money = run.ask(endpoint.url, limit=200.0)
        assert out_of_money and 136 < tally.usd <= 200
        _, again, out_of_money = run.ask(endpoint.url, limit=200.0)
        assert out_of_money and again.answered == 0
        generation, rest, out_of_money = run.ask(endpoint.url, limit=600.0)
        assert not out_of_money and tally.answered + rest.answered == 40
    assert generation.spent(PRICE) == 480


def test_a_teacher_that_refuses_everything_ends_the_run_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raygpt.distill.asking.HOPELESS", 10)
    run = Run(tmp_path / "r", prompt_file(tmp_path / "p.jsonl", range(500)))
    with Endpoint(Orders(refuse_words=1)) as endpoint:
        with pytest.raises(UserError, match=r"refused the first 10 prompts \(400: maximum context length is 1"):
            run.ask(endpoint.url)
        assert endpoint.teacher.requests < 50


def test_what_reading_raises_comes_after_what_was_read() -> None:
    def items() -> Iterator[tuple[str, Question]]:
        for n in range(700):
            yield str(n), Question(f"p{n}")
        raise UserError("p.jsonl, line 701 is not JSON")

    async def read() -> int:
        ahead, seen = Ahead(items()), 0
        with pytest.raises(UserError, match="line 701"):
            while await ahead.take() is not None:
                seen += 1
        return seen

    assert asyncio.run(read()) >= 512
