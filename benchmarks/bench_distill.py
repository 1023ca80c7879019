"""Sequence-level distillation with a real teacher: does its text help a small student more than as much real text?

    python tests/teacher_model.py                                fetches SmolLM2-135M-Instruct once, 93 MB
    python benchmarks/bench_distill.py --home runs/bench_distill          every stage, about two and a half hours
    python benchmarks/bench_distill.py --home … --stage generate          one: text, student, generate, arms, compare
    python benchmarks/bench_distill.py --home runs/try --small            the same at a size that takes minutes

A stage whose result lies in --home is not done again, and what a kill left is gone on with. With --endpoint=URL a
teacher that is served already writes the text, in place of one that is started for it.

text:     documents of ../shared/data/pretrain_text on three sides, by a hash of each: 80 % to pretrain on, 16 % of real
          text to train the student further on, 4 % held out; and the prompts
student:  a tokenizer of 8,192 and a GPT of 1.9 million parameters, one pass over the first side (40 minutes of a core)
generate: the teacher's answers: instructions as they are, documents of the first side rewritten
arms:     the student trained further, three seeds each: on the teacher's text, on half of each, on real text that holds
          as many tokens; the same number of steps and tokens for all
compare:  base, arms and teacher on held-out teacher text and on held-out real text; distill.json and the card here

Prompts come from the side that the student was pretrained on, so that nothing that is held out was shown to anybody.
Figures are bits per byte. For every arm: each seed's with its interval over documents, and the mean over the seeds
with an interval of Student's t, also of the difference to the student that began and to the arm of real text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance
from tests.teacher_model import fetch

DATA = ROOT.parent / "shared" / "data"
TEXTS = ("openwebtext_1k", "openstax_ccby", "tinystories_sample")
TEMPLATES = ("tutorial", "faq")
STAGES = ("text", "student", "generate", "arms", "compare")
ARMS = ("synthetic", "mixed", "real")
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, by degrees of freedom


@dataclass(frozen=True)
class Size:
    """How much of everything. `rewritten` documents make a prompt each, `text_words` of them are shown."""

    documents: int | None
    instructions: int
    rewritten: int
    text_words: int
    max_new_tokens: int
    vocabulary: int
    pretrain_steps: int | None  # none: one pass
    epochs: int  # over the teacher's text
    seeds: tuple[int, ...]
    held_out: int  # documents per text
    val_fraction: float
    batch_tokens: int  # of training the student further


FULL = Size(None, 1_527, 1_200, 80, 96, 8_192, None, 4, (1, 2, 3), 400, 0.12, 4_096)
SMALL = Size(300, 12, 12, 60, 48, 512, 40, 2, (1, 2), 20, 0.34, 256)


@dataclass(frozen=True)
class Bench:
    home: Path
    size: Size
    endpoint: str | None
    results: Path

    def raygpt(self, *words: str) -> str:
        """What the command printed; it is shown as it comes. Ends the script where the command fails."""
        command = [sys.executable, "-m", "raygpt.cli", *words]
        print("$ raygpt", *words, flush=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "HF_HUB_OFFLINE": "1"}
        lines = []
        with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            raise SystemExit(f"raygpt {words[0]} ended with status {process.returncode}")
        return "".join(lines)

    # --- text -------------------------------------------------------------------------------------------------

    def text(self) -> None:
        """text/{pretrain,further,held_out}.jsonl and prompts.jsonl."""
        folder = self.home / "text"
        if (folder / "prompts.jsonl").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        sides: dict[str, list[str]] = {"pretrain": [], "further": [], "held_out": []}
        for text in documents(self.size.documents):
            sides[side_of(text)].append(text)
        for side, texts in sides.items():
            (folder / f"{side}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            print(f"{side}: {len(texts):,} documents, {sum(map(len, texts)):,} characters")
        prompts = [*self.instructions(), *self.rewritings(sides["pretrain"])]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        print(f"{len(prompts):,} prompts")

    def instructions(self) -> Iterator[dict[str, Any]]:
        """Rows of the instruction files, each once, as a conversation."""
        from raygpt.distill.templates import load_template

        template = load_template("instruction")
        seen = set()
        for number, row in enumerate(instruction_rows()):
            question = template.render(row)
            if question.messages in seen or len(seen) >= self.size.instructions:
                continue
            seen.add(question.messages)
            yield {"id": f"instruction-{number}", "messages": messages(question.messages)}

    def rewritings(self, texts: list[str]) -> Iterator[dict[str, Any]]:
        """Documents, evenly spaced, to be rewritten in one of the forms, in turn."""
        from raygpt.distill.templates import load_template

        templates = [load_template(name, text_words=self.size.text_words) for name in TEMPLATES]
        wanted = min(self.size.rewritten, len(texts))
        for number in range(wanted):
            template = templates[number % len(templates)]
            question = template.render({"text": texts[number * len(texts) // wanted]})
            yield {"id": f"{template.name}-{number}", "messages": messages(question.messages)}

    # --- student and teacher ----------------------------------------------------------------------------------

    def student(self) -> None:
        """shards/pretrain (with the tokenizer), shards/held_out, and the run runs/student."""
        shards, text = self.home / "shards", self.home / "text"
        train, val = shards / "pretrain", text / "held_out.jsonl"
        if not (train / "train" / "manifest.json").exists():
            tokenizer = f"--data.tokenizer=train:{self.size.vocabulary}"
            sources = [f"--prepare.sources={text / 'pretrain.jsonl'}", f"--prepare.val_sources={val}"]
            self.raygpt("prepare", *sources, f"--prepare.output={train}", tokenizer)
        steps = self.size.pretrain_steps
        length = ["--train.epochs=none", f"--train.max_steps={steps}"] if steps else []
        config = f"--config={ROOT / 'jobs/configs/small-base.yaml'}"
        run = [f"--run.storage={self.home / 'runs'}", "--run.name=student", f"--data.train={train}"]
        self.raygpt("pretrain", config, *run, *length, *NO_TRACKERS)

    def generate(self) -> None:
        """generation/: answers, shards with the student's tokenizer, card."""
        output, tokenizer = self.home / "generation", self.home / "shards" / "pretrain" / "train"
        teacher = [f"--teacher.model={fetch()}", "--teacher.engine=transformers", "--teacher.max_model_len=1024"]
        teacher += ["--teacher.max_sequences=8", "--teacher.cpus_per_replica=2"]
        if self.endpoint is not None:
            name = served_model(self.endpoint)
            teacher = ["--teacher.engine=endpoint", f"--teacher.endpoints={self.endpoint}", f"--teacher.model={name}"]
        size = self.size
        began, cpu = time.time(), ProcessorSeconds()
        printed = self.raygpt(
            "generate",
            *teacher,
            f"--generate.prompts={self.home / 'text' / 'prompts.jsonl'}",
            f"--generate.max_new_tokens={size.max_new_tokens}",
            f"--generate.val_fraction={size.val_fraction}",
            "--generate.concurrency=16",
            "--generate.min_characters=40",
            "--generate.skip_bad_rows=true",  # one prompt is longer than the teacher's context
            f"--generate.decontaminate={self.home / 'text' / 'held_out.jsonl'}",
            f"--generate.output={output}",
            f"--data.tokenizer={tokenizer}",
            f"--run.storage={self.home / 'runs'}",
            "--run.name=generation",
            "--track.wandb=off",
        )
        last = json.loads(printed.splitlines()[-1])
        if last["teacher_tokens"]:  # what a rerun reuses took no time
            (self.home / "generation.json").write_text(
                json.dumps({**last, "wall_seconds": time.time() - began, "cpu_seconds": cpu.stop()})
            )

    # --- arms -------------------------------------------------------------------------------------------------

    def arms(self) -> None:
        """runs/<arm>-<seed>: all of one length, in steps and tokens."""
        real = self.as_much_real_text()
        tokens = manifest(self.home / "generation" / "train")["tokens"]
        steps = max(1, self.size.epochs * tokens // self.size.batch_tokens)
        for seed in self.size.seeds:
            for arm in ARMS:
                data = real if arm == "real" else self.home / "generation"
                words = [f"--data.train={data}", f"--data.val={self.home / 'generation' / 'val'}"]
                if arm == "mixed":
                    words += [f"--distill.real={real / 'train'}", "--distill.real_fraction=0.5"]
                words += [f"--run.storage={self.home / 'runs'}", f"--run.name={arm}-{seed}", f"--run.seed={seed}"]
                words += [f"--train.global_batch_tokens={self.size.batch_tokens}"]
                words += [f"--model.init_from={self.home / 'runs' / 'student'}", f"--train.max_steps={steps}"]
                self.raygpt("finetune" if arm == "real" else "distill", *words, *FURTHER, *NO_TRACKERS)

    def as_much_real_text(self) -> Path:
        """Shards of the first documents of further.jsonl that hold as many tokens as the teacher's text."""
        from raygpt.data.tokenizer import load_tokenizer

        folder = self.home / "shards" / "further"
        if (folder / "train" / "manifest.json").exists():
            return folder
        home = self.home / "shards" / "pretrain" / "train"
        tokenizer, wanted = load_tokenizer(str(home)), manifest(self.home / "generation" / "train")["tokens"]
        kept, held = [], 0
        for line in (self.home / "text" / "further.jsonl").read_text().splitlines():
            if held >= wanted:
                break
            kept.append(line)
            held += len(tokenizer.encode(json.loads(line)["text"])) + 1
        if held < wanted:
            print(f"Only {held:,} tokens of real text for {wanted:,} of the teacher's: they are seen more often.")
        chosen = self.home / "text" / "as_much.jsonl"
        chosen.write_text("\n".join(kept) + "\n")
        words = [f"--prepare.sources={chosen}", f"--prepare.val_sources={self.home / 'text' / 'held_out.jsonl'}"]
        self.raygpt("prepare", *words, f"--prepare.output={folder}", f"--data.tokenizer={home}")
        return folder

    # --- comparison -------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """comparisons/<seed>/, and the results."""
        figures = {}
        for seed in self.size.seeds:
            target = self.home / "comparisons" / str(seed)
            if not (target / "arms.json").exists():
                runs = self.home / "runs"
                models = [str(runs / "student"), *(str(runs / f"{arm}-{seed}") for arm in ARMS)]
                # the teacher's own figures are the same for every seed
                models += [str(fetch())] if seed == self.size.seeds[0] else []
                words = [f"--compare.real={self.home / 'text' / 'held_out.jsonl'}", f"--compare.output={target}"]
                words += [f"--compare.synthetic={self.home / 'generation' / 'val'}", f"--run.seed={seed}"]
                words += [f"--compare.documents={self.size.held_out}", "--compare.samples=3"]
                self.raygpt("evaluate", "--compare", *models, *words)
            figures[seed] = json.loads((target / "arms.json").read_text())
        result = {
            **provenance("torch", "transformers", "ray"),
            "size": asdict(self.size),
            "generation": self.generation_figures(),
            "texts": figures[self.size.seeds[0]]["texts"],
            "seq_len": figures[self.size.seeds[0]]["seq_len"],
            "arms": summary(figures),
        }
        self.results.mkdir(parents=True, exist_ok=True)
        (self.results / "distill.json").write_text(json.dumps(result, indent=2) + "\n")
        shutil.copy(self.home / "generation" / "card.md", self.results / "distill_card.md")
        print(json.dumps(result["arms"], indent=2))

    def generation_figures(self) -> dict[str, Any]:
        quality = json.loads((self.home / "generation" / "quality.json").read_text())
        steps = [{key: step[key] for key in ("step", "removed", "kept")} for step in quality["steps"]]
        run = self.home / "generation.json"
        return {
            "run": json.loads(run.read_text()) if run.exists() else None,
            "steps": steps,
            **{key: quality[key] for key in ("answers", "documents", "tokens", "generation")},
        }


class ProcessorSeconds:
    """CPU seconds of all processes below this one, Ray's among them, looked at every second: on a machine that others
    use as well the hour on the clock says little."""

    def __init__(self) -> None:
        self._spent: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return sum(self._spent.values())

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            for process in psutil.Process().children(recursive=True):
                try:
                    times = process.cpu_times()
                    self._spent[process.pid, process.create_time()] = times.user + times.system
                except psutil.Error:
                    continue


NO_TRACKERS = ("--track.wandb=off", "--track.tensorboard=false")
FURTHER = (
    "--data.backend=mmap",
    "--data.tokenizer=base",
    "--scale.num_workers=1",
    "--scale.use_gpu=false",
    "--optim.lr=1e-3",
    "--optim.schedule=cosine",
    "--optim.warmup_fraction=0.05",
    "--optim.min_lr_ratio=0.1",
    "--train.precision=bf16",
    "--train.keep_checkpoints=1",
    "--train.save_best=false",
    "--eval.every=0",
)


def documents(most: int | None) -> Iterator[str]:
    """Texts of the files, evenly spaced where there are more than `most`."""
    import pyarrow.parquet as pq

    texts = [text for name in TEXTS for text in pq.read_table(DATA / "pretrain_text" / f"{name}.parquet")["text"]]
    step = 1 if most is None else max(1, len(texts) // most)
    for text in texts[::step]:
        yield str(text)


def side_of(text: str) -> str:
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % 100
    return "held_out" if place < 4 else "further" if place < 20 else "pretrain"


def instruction_rows() -> Iterator[dict[str, Any]]:
    folder = DATA / "instructions"
    for name in ("alpaca_seed_tasks.jsonl", "self_instruct_user_oriented.jsonl"):
        for line in (folder / name).read_text().splitlines():
            yield json.loads(line)
    yield from json.loads((folder / "rasbt_instruction_data.json").read_text())


def messages(pairs: Any) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def served_model(endpoint: str) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{endpoint}/models", timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def summary(figures: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """{arm: {text: figures over seeds}}; differences are paired: both models of one seed."""
    by_seed = {seed: {kind(arm["name"]): arm for arm in each["arms"]} for seed, each in figures.items()}
    first = next(iter(by_seed.values()))
    out: dict[str, Any] = {}
    for name, arm in first.items():
        facts = {key: arm[key] for key in ("parameters", "tokens", "own_tokens", "flops") if key in arm}
        for text in arm["texts"]:
            bits = {s: arms[name]["texts"][text]["bits_per_byte"] for s, arms in by_seed.items() if name in arms}
            found: dict[str, Any] = {"seeds": bits, "mean": statistics.mean(b["value"] for b in bits.values())}
            for other in ("student", "real"):
                if other == name or len(bits) < 2:
                    continue
                theirs = {s: by_seed[s][other]["texts"][text]["bits_per_byte"]["value"] for s in bits}
                found[f"less_{other}"] = t_interval([bits[s]["value"] - theirs[s] for s in bits])
            facts[text] = found
        out[name] = facts
    return out


def kind(name: str) -> str:
    """The arm without its seed."""
    return next((arm for arm in ARMS if name.startswith(f"{arm}-")), name)


def t_interval(values: list[float]) -> dict[str, float]:
    mean = statistics.mean(values)
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "bench_distill", help="where all of it is kept")
    parser.add_argument("--stage", choices=STAGES, help="this one alone; those before it have to be there")
    parser.add_argument("--small", action="store_true", help="minutes instead of hours; results stay in --home")
    parser.add_argument("--endpoint", help="a teacher that is served already, such as http://127.0.0.1:8000/v1")
    chosen = parser.parse_args()
    home = chosen.home.resolve()
    results = home / "results" if chosen.small else ROOT / "benchmarks"
    bench = Bench(home, SMALL if chosen.small else FULL, chosen.endpoint, results)
    for stage in STAGES if chosen.stage is None else (chosen.stage,):
        began = time.time()
        print(f"=== {stage}", flush=True)
        getattr(bench, stage)()
        print(f"=== {stage}: {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
