"""One run of `raygpt generate`: look at the teacher, read the prompts, ask, make documents, say what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raygpt import storage
from raygpt.distill.answers import Answer, Question, generation_name
from raygpt.distill.asking import Tally
from raygpt.distill.card import Facts, table
from raygpt.distill.client import Asking, Client, Stopped
from raygpt.distill.documents import make_documents
from raygpt.distill.endpoints import choose_model, look
from raygpt.distill.generation import ANSWERS, PARKED_FILE, Generation, write_parked
from raygpt.distill.limits import Spend, TokenPrice
from raygpt.distill.nodes import NodeAskers, other_nodes
from raygpt.distill.production import Production, described, find_teacher, open_generation
from raygpt.errors import UserError
from raygpt.run.frame import COMPLETE, FAILED, FINISHED, SPENT, STOPPED, Outcome, Run
from raygpt.run.lock import RunLock
from raygpt.run.stop import BUDGET
from raygpt.storage import Location
from raygpt.track.meter import Meter
from raygpt.track.progress import human_count, human_duration

# A mark is a digit or two; its question's version stands for the wording.
MARKS, MARK_TOKENS = "marks-1", 8


def produce(production: Production, run: Run, printed: dict[str, Any]) -> Outcome:
    """The work of the run; `printed` gets the figures of the last line."""
    with tempfile.TemporaryDirectory(prefix="raygpt-") as folder, _held(production.output, run):
        producing = _Producing(production, run, Path(folder))
        try:
            return producing.work(printed)
        finally:
            producing.dismiss()


class _OutOfMoney(Exception):
    """The limit ended the marking: a text without a mark is not a bad one."""


class _Producing:
    """One run: its teacher, its generation, what came of it."""

    def __init__(self, production: Production, run: Run, work: Path) -> None:
        self.production, self.run, self.folder = production, run, work
        self.teacher = find_teacher(production)
        self.generation = open_generation(production, self.teacher, work)
        self.price = production.price or TokenPrice()
        self.generations = [self.generation]  # and that of marks, when there is one
        self.tallies: list[Tally] = []
        self._teaching = contextlib.ExitStack()
        self._endpoints: tuple[tuple[str, ...], str] | None = None

    def endpoints(self) -> tuple[tuple[str, ...], str]:
        """(URLs, name of the model there). A teacher of one's own is started now, and runs until `dismiss`."""
        production = self.production
        if production.start_teacher is None:
            if self.teacher.problem:
                raise UserError(self.teacher.problem)
            return production.asking.endpoints, self.teacher.model
        if self._endpoints is None:
            url, gpus = self._teaching.enter_context(production.start_teacher(self.run.stop, self.run.say))
            self.generation.usage.gpus = gpus
            if self.run.stop.requested:
                raise Stopped
            served, _ = asyncio.run(look((url,), None))
            self._endpoints = (url,), choose_model(None, served)[0]
        return self._endpoints

    def dismiss(self) -> None:
        """Stop a teacher of one's own."""
        self._endpoints = None
        self._teaching.close()

    def work(self, printed: dict[str, Any]) -> Outcome:
        production, run, generation = self.production, self.run, self.generation
        counts = generation.settle()
        run.say(f"{described(counts)}.")
        _say_which(generation, production.output, run.say)
        if production.retry_parked and not counts.parked:
            run.say("Nothing is parked: nothing was asked.")
        out_of_money = False
        if counts.parked if production.retry_parked else counts.to_ask:
            with contextlib.suppress(Stopped):
                out_of_money = self.ask(generation, production.asking, production.retry_parked)
        if not self.needs_marks:
            self.dismiss()
        run.check_held()
        totals = generation.finish()
        write_parked(generation.parked(), production.output / PARKED_FILE)
        printed.update(self.figures(totals))
        spent = out_of_money or run.stop.reason == BUDGET
        if run.stop.requested and not spent:
            return Outcome(STOPPED, dict(printed), closing=_closing(printed, "go on"))
        if not totals["answered"]:
            reason = next((parked.reason for parked in generation.parked()), "nothing was asked")
            return Outcome(FAILED, dict(printed), closing=f"No prompt was answered ({reason}): see {PARKED_FILE}.")
        try:
            made = self.documents(totals)
        except Stopped:
            return Outcome(STOPPED, dict(printed), closing=_closing(printed, "go on"))
        except _OutOfMoney:
            printed.update(self.figures(totals))
            return Outcome(SPENT, dict(printed), closing=_closing(printed, "limit"), limit=production.limit)
        printed.update(self.figures(totals) | made)
        if spent:  # the documents are of what was paid for
            return Outcome(SPENT, dict(printed), closing=_closing(printed, "limit"), limit=production.limit)
        return Outcome(FINISHED if self.tallies else COMPLETE, dict(printed), closing=_closing(printed, "end"))

    @property
    def needs_marks(self) -> bool:
        return "score" in self.production.quality.filters

    def ask(self, generation: Generation, asking: Asking, retry_parked: bool = False) -> bool:
        """Ask what a generation lacks, under the limits of the run; whether the money ended it."""
        production, run = self.production, self.run
        urls, name = self.endpoints()
        # a teacher of one's own listens on the driver's loopback
        nodes = other_nodes() if production.start_teacher is None else []
        spent = sum(each.spent(self.price) for each in self.generations)
        asking = replace(asking, model=name, endpoints=urls)
        with _meter(run) as meter:
            tally, out_of_money = generation.ask(
                lambda: NodeAskers(asking, production.api_key, nodes) if nodes else Client(asking, production.api_key),
                Spend(self.price, production.max_cost_usd, spent),
                concurrency=asking.concurrency,
                retry_parked=retry_parked,
                stop=run.stop,
                show=partial(_show, meter, production, run),
            )
        self.tallies.append(tally)
        return out_of_money

    def documents(self, totals: dict[str, int]) -> dict[str, Any]:
        production, generation = self.production, self.generation
        figures = self.figures(totals)
        facts = Facts(
            teacher=self.teacher.model,
            template=production.template.version,
            sampling=generation.about["sampling"],
            generation=generation.name,
            prompts=figures["prompts"],
            parked=totals["parked"],
            prompt_tokens=totals["prompt_tokens"],
            answer_tokens=totals["answer_tokens"],
            seconds=generation.usage.seconds,
            gpus=generation.usage.gpus or None,
            cost_usd=figures["total_cost_usd"],
            command=production.command,
        )
        made = make_documents(
            generation.answers,
            production.output,
            tokenizer=production.tokenizer,
            options=production.quality,
            facts=facts,
            text_of=prompt_and_answer if production.with_prompt else answer_alone,
            scorer=self.marks if self.needs_marks else None,
            on_progress=self._look,
        )
        self.run.say(table(made))
        return {"documents": made["documents"], "document_tokens": made["tokens"]}

    def _look(self, *_: object) -> None:
        """While documents are made; those of a spent budget are made all the same."""
        if self.run.stop.requested and self.run.stop.reason != BUDGET:
            raise Stopped

    def marks(self, questions: Callable[[], Iterator[Question]]) -> Iterator[Answer]:
        """The teacher's marks of texts: a generation of its own, as little paid for twice as the answers."""
        asking = replace(self.production.asking, temperature=0.0, max_new_tokens=MARK_TOKENS, stop=())
        name = generation_name(self.teacher.model, asking.sampling, MARKS)
        about = {"generation": name, "model": self.teacher.model, "sampling": asking.sampling, "template": MARKS}
        work = self.folder / "marks"
        marks = Generation(name, questions, self.production.output, about, work, MARK_TOKENS)
        self.generations.append(marks)
        marks.add_all()
        marks.settle()
        again = self.production.retry_parked and marks.counts.parked > 0
        for retry_parked in [False] * bool(marks.counts.to_ask) + [True] * again:
            count = marks.counts.parked if retry_parked else marks.counts.to_ask
            self.run.say(f"{count:,} texts to mark.")
            out_of_money = self.ask(marks, asking, retry_parked)
            if out_of_money or self.run.stop.reason == BUDGET:
                raise _OutOfMoney
            if self.run.stop.requested:
                raise Stopped
        marks.finish()
        return marks.answers()

    def figures(self, totals: dict[str, int]) -> dict[str, Any]:
        """What the last line and summary.json say. Tokens, requests and cost_usd are of this call, total_cost_usd and
        total_teacher_tokens of all; teacher_tokens are what the teacher wrote, token_cost_usd what it was paid for by
        the token."""
        run, price, counts, tallies = self.run, self.production.price, self.generation.counts, self.tallies
        by_time, total_by_time = _usd_by_time(run), run.cost_usd()
        known = price is not None or total_by_time is not None
        total = sum(each.spent(self.price) for each in self.generations) + (total_by_time or 0.0)
        return {
            "prompts": counts.total,
            "answered": totals["answered"],
            "parked": totals["parked"],
            "documents": 0,
            "teacher_tokens": sum(each.answer_tokens + each.wasted_answer_tokens for each in tallies),
            "prompt_tokens": sum(each.prompt_tokens + each.wasted_prompt_tokens for each in tallies),
            "reused_answers": counts.answered,
            "cost_usd": round(sum(each.usd for each in tallies) + by_time, 6) if known else None,
            "total_cost_usd": round(total, 6) if known else None,
            "token_cost_usd": round(total - (total_by_time or 0.0), 6) if price is not None else None,
            "total_teacher_tokens": totals["answer_tokens"] + self.generation.usage.wasted_answer_tokens,
            "requests": sum(each.requests for each in tallies),
            "rows": counts.rows,
            "rows_left_out": counts.bad_rows,
            "repeated_prompts": counts.repeated,
            "generation": self.generation.name,
            "answers": self.generation.store.folder.uri,
        }


def answer_alone(answer: Answer) -> str:
    return answer.text


def prompt_and_answer(answer: Answer) -> str:
    """A prompt that the teacher went on with, or a question with its answer below it."""
    if answer.question.prompt is not None:
        return answer.question.prompt + answer.text
    asked = "\n\n".join(content for role, content in answer.question.messages if role != "system")
    return f"{asked}\n\n{answer.text}"


def _closing(figures: dict[str, Any], how: str) -> str:
    done = f"{figures['answered']:,} of {figures['prompts']:,} prompts answered"
    parked = f", {figures['parked']:,} parked (parked.jsonl; ask them again with --generate.retry_parked=true)"
    done += parked if figures["parked"] else ""
    if how == "go on":
        return f"with {done}; answers are kept."
    if how == "limit":
        return f"with {done}; {figures['documents']:,} documents. Raise the limit to go on."
    return f"{done}; {figures['documents']:,} documents."


@contextlib.contextmanager
def _meter(run: Run) -> Iterator[Meter]:
    meter = Meter("generate", run.stream)
    try:
        yield meter
    finally:
        meter.close()


def _usd_by_time(run: Run) -> float:
    """What the machines have cost since this start of the run, 0 without a price."""
    return run.bill.attempt_usd() or 0.0


def _show(meter: Meter, production: Production, run: Run, tally: Tally) -> None:
    """`generate ####....  50% | 1,200 answered | 3 parked | 1.2k tok/s | $0.12 | $1.10/1M tokens | eta 4m10s`."""
    price = production.price
    usd = tally.usd + _usd_by_time(run)
    figures = [f"{tally.answered:,} answered", f"{human_count(tally.speed[1])} tok/s"]
    if tally.parked:
        figures.insert(1, f"{tally.parked:,} parked")
    if price is not None or run.cost_usd() is not None:
        figures.append(f"${usd:.2f}")
        if tally.answer_tokens:
            figures.append(f"${usd / tally.answer_tokens * 1e6:.2f}/1M tokens")
    if (left := tally.seconds_left) is not None:
        figures.append(f"eta {human_duration(left)}")
    meter.show(tally.done, tally.to_ask, *figures)


def _say_which(generation: Generation, output: Location, say: Callable[[str], None]) -> None:
    """Tell this generation apart from those that are kept beside it."""
    name = generation.name
    others = [entry.base_name for entry in storage.list_folder(output / ANSWERS) if entry.base_name != name]
    others = [other for other in others if storage.exists(output / ANSWERS / other / "generation.json")]
    kept = f"; {len(others)} of other settings ({', '.join(others[:3])}) kept beside it" if others else ""
    say(f"Generation {name}: {generation.about['model']}, template {generation.about['template']}{kept}.")


@contextlib.contextmanager
def _held(output: Location, run: Run) -> Iterator[None]:
    """An output may be another run's as well, whatever the folder of its own: one at a time."""
    lock = RunLock(output / ANSWERS, on_lost=lambda: run.stop.request("displaced"))
    lock.acquire()
    try:
        yield
    finally:
        lock.release("finished")
