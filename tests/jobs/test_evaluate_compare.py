"""`raygpt evaluate --base … --tuned …`: small models really trained, on two kinds of text, and one page about them."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raygpt import storage
from raygpt.cli import main
from raygpt.config.settings import dump, load_config
from raygpt.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.huggingface import export_huggingface
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.storage import locate
from tests.jobs.conftest import write_shards

SUBJECTS = ["the farmer", "a sailor", "my sister", "the teacher", "an old man", "our neighbour"]
VERBS = ["sees", "finds", "likes", "carries", "forgets", "paints", "sells", "holds"]
THINGS = ["a boat", "the river", "some bread", "the house", "a horse", "the green hill", "two books", "a song"]
PHYSICS = (["the boson", "a gluon", "the tachyon", "every lepton"], ["decays into", "couples to", "scatters off"])


def sentences(kind: str, documents: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(documents):
        lines = []
        for _ in range(int(draw.integers(3, 9))):
            subject, verb, thing = draw.choice(SUBJECTS), draw.choice(VERBS), draw.choice(THINGS)
            if kind == "physics" and draw.random() < 0.7:
                subject, verb, thing = draw.choice(PHYSICS[0]), draw.choice(PHYSICS[1]), draw.choice(PHYSICS[0])
            lines.append(f"{subject} {verb} {thing}".capitalize() + ".")
        found.append(" ".join(lines))
    return found


def train(model: GPT, tokenizer: Tokenizer, texts: list[str], steps: int, lr: float) -> None:
    end = np.array([tokenizer.eot_id])
    stream = np.concatenate([part for text in texts for part in (end, tokenizer.encode(text))]).astype(np.int64)
    draw = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        starts = draw.integers(0, len(stream) - 49, 16)
        rows = torch.from_numpy(np.stack([stream[start : start + 49] for start in starts]))
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:].contiguous()).backward()
        optimizer.step()
    model.eval()


def save_run(root: Path, name: str, model: GPT, tokenizer: Tokenizer, data: Path, fingerprint: str) -> Path:
    options = {"run.name": name, "run.storage": str(root), "data.train": str(data), "train.max_steps": "1"}
    config = load_config("pretrain", None, options, {})
    state = RunState(
        step=150,
        fingerprint=fingerprint,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_name=tokenizer.name,
        eot_id=tokenizer.eot_id,
        model=model.config.to_dict(),
    )
    files: dict[str, bytes | TensorStream] = {
        "model.safetensors": TensorStream.of({name: p.detach() for name, p in model.named_parameters()}),
        "state.json": state.to_json().encode(),
        "config.yaml": dump(config).encode(),
        "tokenizer.json": tokenizer.to_json(),
    }
    saving.write(locate(root / name / "checkpoints" / checkpoint.folder_name(150)), files)
    return root / name


@dataclass
class Models:
    """Runs `root`/base (general text only) and `root`/tuned (then physics), their shards, and texts held out."""

    root: Path
    base: GPT
    tuned: GPT
    tokenizer: Tokenizer
    general: Path
    held_out: list[str]

    @property
    def words(self) -> list[str]:
        return [f"--run.storage={self.root}", "--compare.resamples=400", "--compare.samples=2", "--scale.use_gpu=false"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("compare")
    general, physics = sentences("general", 400, 1), sentences("physics", 400, 2)
    held_out = sentences("physics", 90, 3)
    tokenizer = train_tokenizer(iter(general), 400)
    for name, train_texts, val_texts in (("plain", general, general[:3]), ("physics", physics, held_out)):
        write_shards(root / name / "train", train_texts, tokenizer)
        write_shards(root / name / "val", val_texts, tokenizer)
    torch.manual_seed(0)
    base = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, seq_len=48, n_layer=2, n_head=2, n_embd=48))
    train(base, tokenizer, general, 150, 3e-3)
    tuned = copy.deepcopy(base)
    train(tuned, tokenizer, physics, 100, 1e-3)
    for name, model, data in (("base", base, "plain"), ("tuned", tuned, "physics")):
        fingerprint = json.loads((root / data / "train" / "manifest.json").read_text())["fingerprint"]
        save_run(root, name, model, tokenizer, root / data, fingerprint)
    (root / "general.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in sentences("general", 60, 4))
    )
    return Models(root, base, tuned, tokenizer, root / "general.jsonl", held_out)


@dataclass
class Result:
    short: dict[str, Any]
    figures: dict[str, Any]
    page: str
    printed: str
    folder: Path


def run(models: Models, capsys: pytest.CaptureFixture[str] | None, folder: Path, *words: str) -> Result:
    assert main(["evaluate", *models.words, f"--compare.output={folder}", *words]) == 0
    printed = capsys.readouterr().out if capsys else ""
    return Result(
        json.loads(printed.splitlines()[-1]) if printed else {},
        json.loads((folder / "comparison.json").read_text()),
        (folder / "comparison.html").read_text(),
        printed,
        folder,
    )


def perplexity_by_hand(model: GPT, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Each document after an end of text, in rows of 48, one after the other in float64."""
    nats, tokens = 0.0, 0
    for text in texts:
        stream = [tokenizer.eot_id, *tokenizer.encode(text).tolist()]
        for start in range(0, len(stream) - 1, 48):
            row = torch.tensor(stream[start : start + 49])
            with torch.no_grad():
                lines = model(row[None, :-1])[0].double().log_softmax(-1)
            nats -= sum(float(line[target]) for line, target in zip(lines, row[1:]))
            tokens += len(row) - 1
    return math.exp(nats / tokens)


def test_the_page_says_what_was_bought_and_what_it_cost(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base", "base", "--tuned", "tuned", f"--compare.general={models.general}"]
    assert main(["evaluate", *models.words, *words]) == 0
    printed = capsys.readouterr().out
    folder = models.root / "tuned" / "comparison"
    short, figures = json.loads(printed.splitlines()[-1]), json.loads((folder / "comparison.json").read_text())
    page = (folder / "comparison.html").read_text()
    assert short["page"] == str(folder / "comparison.html")

    domain, general = figures["domain"], figures["general"]
    for which, model in (("base", models.base), ("tuned", models.tuned)):
        expected = perplexity_by_hand(model, models.tokenizer, models.held_out)
        assert domain[f"{which}_perplexity"]["value"] == pytest.approx(expected, rel=1e-4)
    assert domain["documents"] == 90 and general["documents"] == 60
    assert domain["perplexity_ratio"]["high"] < 0.7 and domain["significant"]
    assert general["perplexity_ratio"]["low"] > 1.02 and general["significant"], "forgetting is measured"
    assert domain["perplexity_ratio"]["value"] == pytest.approx(
        domain["tuned_perplexity"]["value"] / domain["base_perplexity"]["value"]
    )
    nats = math.log(domain["base_perplexity"]["value"]) * domain["tokens"]
    assert domain["base_bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / domain["bytes"])
    assert domain["bytes"] == sum(len(text.encode()) for text in models.held_out)

    terms = figures["terms"]
    assert {"boson", "gluon", "tachyon", "lepton", "decays", "couples", "scatters"} >= {
        row["term"].lower() for row in terms["each"]
    }
    assert len(terms["each"]) >= 5 and terms["log_probability_change"]["low"] > 1
    assert terms["tuned_median_rank"] < terms["base_median_rank"]

    assert figures["memorisation"]["training_tokens"] > 5000
    assert set(short["longest_overlap"]) == {"base", "tuned", "held_out"}
    assert len(figures["samples"]) == 2 and figures["notes"] == {}
    for line in figures["headlines"]:
        assert line in printed
    assert "On domain text perplexity fell from" in printed and "This is what was forgotten." in printed
    assert page.count("data:image/png;base64,") == 3 and "http" not in page.split("</style>")[1]
    assert all((folder / "plots" / f"{name}.png").stat().st_size > 5000 for name in ("losses", "differences", "terms"))
    assert figures["tuned"]["step"] == 150 and f"step {150}" in page
    assert figures["tuned"]["training_fingerprint"] in page and domain["fingerprint"] in page


def test_a_folder_a_checkpoint_and_a_hugging_face_model_compare_alike(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = export_huggingface(
        models.base, tmp_path / "hf", tokenizer_json=models.tokenizer.to_json(), eot_id=models.tokenizer.eot_id
    )
    step = models.root / "tuned" / "checkpoints" / "step_00000150"
    quick = ["--compare.documents=20", "--compare.samples=0"]
    one = run(models, capsys, tmp_path / "one", "--base=base", "--tuned=tuned", *quick)
    two = run(models, capsys, tmp_path / "two", f"--base={exported}", f"--tuned={step}", *quick)
    assert two.figures["same_tokenizer"] and one.figures["domain"] == two.figures["domain"]
    assert one.figures["terms"] == two.figures["terms"]
    assert one.figures["domain"]["documents"] == 20 and one.figures["domain"]["documents_in_all"] == 90
    assert "general text was not measured" in one.page.lower() and "--compare.general" in one.page
    assert "memorisation" not in one.figures and "general" in one.figures["notes"]
    again = run(models, capsys, tmp_path / "one", "--base=base", "--tuned=tuned", *quick)
    assert again.figures["domain"] == one.figures["domain"] and again.short == one.short


def test_models_of_different_tokenizers_compare_by_bits_per_byte(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    tokenizer = load_tokenizer("bytes")
    other = GPT(GPTConfig(vocab_size=257, seq_len=64, n_layer=1, n_head=2, n_embd=32))
    export_huggingface(other, tmp_path / "hf", tokenizer_json=tokenizer.to_json(), eot_id=256)
    words = [f"--base={tmp_path / 'hf'}", "--tuned=tuned", "--compare.documents=30", "--compare.sample_tokens=20"]
    found = run(models, capsys, tmp_path / "out", *words)
    domain = found.figures["domain"]
    assert not found.figures["same_tokenizer"] and "base_perplexity" not in domain
    assert domain["base_bits_per_byte"]["value"] == pytest.approx(8.0, abs=0.2), "it knows nothing of bytes yet"
    assert domain["bits_per_byte_difference"]["high"] < -5 and domain["significant"]
    assert "different tokenizers" in found.page and "bits per byte" in found.printed
    assert found.figures["terms"]["each"] and "perplexity, base" not in found.page


def test_terms_of_a_file_are_probed_and_absent_ones_listed(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("boson\nscatters off\nCOVID-19\n")
    words = ["--base=base", "--tuned=tuned", f"--compare.terms={terms}", "--compare.samples=0"]
    found = run(models, capsys, tmp_path / "out", *words).figures["terms"]
    assert not found["mined"] and found["absent"] == ["COVID-19"]
    each = {row["term"]: row for row in found["each"]}
    assert set(each) == {"boson", "scatters off"}
    row = each["boson"]
    assert row["tuned_log_probability"] > row["base_log_probability"] + 1
    # by hand: every occurrence, from the document's beginning or the last 48 tokens before it
    total, number = 0.0, 0
    for text in models.held_out:
        for at in range(len(text)):
            if text[at:].lower().startswith("boson"):
                before, through = text[:at].rstrip(" "), text[: at + 5]
                stream = [models.tokenizer.eot_id, *models.tokenizer.encode(through).tolist()]
                first = 1 + len(models.tokenizer.encode(before))
                with torch.no_grad():
                    inputs = torch.tensor(stream[max(0, len(stream) - 49) : -1])
                    lines = models.tuned(inputs[None])[0].double().log_softmax(-1)
                wanted = stream[first:]
                total += sum(float(line[token]) for line, token in zip(lines[-len(wanted) :], wanted))
                number += 1
    assert number > 50, "so it was thinned"
    assert row["occurrences"] == 50 and row["tuned_log_probability"] == pytest.approx(total / number, abs=0.3)


def test_training_shards_that_are_away_are_said_to_be(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(models.root / "tuned", tmp_path / "runs" / "tuned")
    config = tmp_path / "runs" / "tuned" / "checkpoints" / "step_00000150" / "config.yaml"
    config.write_text(config.read_text().replace(str(models.root / "physics"), str(moved)))
    manifest = config.with_name("index.json")
    facts = json.loads(manifest.read_text())
    import hashlib

    facts["files"]["config.yaml"] = {
        "bytes": config.stat().st_size,
        "sha256": hashlib.sha256(config.read_bytes()).hexdigest(),
    }
    manifest.write_text(json.dumps(facts))
    tuned = f"--tuned={tmp_path / 'runs' / 'tuned'}"
    words = ["--base=base", tuned, "--compare.documents=20", "--compare.sample_tokens=10"]
    val = models.root / "physics" / "val"
    found = run(models, capsys, tmp_path / "out", *words, f"--compare.domain={val}")
    assert f"the training shards are not at {moved}" in found.figures["notes"]["memorisation"]
    assert "memorisation" not in found.figures and str(moved) in found.page
    assert main(["evaluate", *models.words, *words, f"--compare.output={tmp_path / 'no'}"]) == 2
    error = capsys.readouterr().err
    assert "compare.domain is not set and the tuned run's own validation data is gone" in error
    named = run(
        models, capsys, tmp_path / "out", *words, f"--compare.domain={val}", f"--data.train={models.root}/plain"
    )
    assert "not the shards the tuned model was last trained on" in named.figures["memorisation"]["note"]


def test_the_page_may_go_to_s3(models: Models, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base=base", "--tuned=tuned", "--compare.documents=10", "--compare.samples=0", "--compare.num_terms=2"]
    assert main(["evaluate", *models.words, *words, f"--compare.output={bucket}/page"]) == 0
    where = locate(f"{bucket}/page")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["page"] == f"{bucket}/page/comparison.html"
    assert "What did fine-tuning buy?" in storage.read_text(where / "comparison.html")
    assert json.loads(storage.read_text(where / "comparison.json"))["domain"]["documents"] == 10
    assert storage.is_file(where / "plots" / "losses.png")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--base=base"], "compare.tuned is not set but compare.base is: a comparison needs both"),
        (["--base=/no/model", "--tuned=tuned"], "compare.base: /no/model"),
        (["--base=base", "--tuned=other"], "compare.tuned: other"),
        (["--base=base", "--tuned=nothing"], "compare.tuned: {root}/nothing is a run without a usable checkpoint"),
        (["--base={root}/untold", "--tuned=tuned"], "compare.base: {root}/untold holds no tokenizer"),
        (["--base=base", "--tuned=tuned", "--compare.domain=/no/text"], "compare.domain=/no/text does not exist"),
        (["--base=base", "--tuned=tuned", "--compare.general=/no/text"], "compare.general=/no/text does not exist"),
        (["--base=base", "--tuned=tuned", "--compare.terms={root}/empty"], "compare.terms={root}/empty holds no term"),
        (["--base=base", "--tuned=tuned", "--compare.terms=/no/file"], "compare.terms=/no/file does not exist"),
        (["--base=base", "--tuned=tuned", "--data.seq_len=49"], "exceeds the models' common context of 48"),
        (["--base=base", "--tuned={root}/told"], "compare.output is not set, and compare.tuned lies in no run"),
        (["--base=base", "--tuned={root}/told", "--compare.output={root}/out"], "compare.domain is not set"),
    ],
)
def test_mistakes_are_one_sentence(
    models: Models, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    root = models.root
    (root / "nothing" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (root / "empty").write_text("\n")
    if not (root / "told").exists():
        export_huggingface(
            models.base, root / "told", tokenizer_json=models.tokenizer.to_json(), eot_id=models.tokenizer.eot_id
        )
        shutil.copytree(root / "told", root / "untold")
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (root / "untold" / name).unlink(missing_ok=True)
    assert main(["evaluate", *models.words, *(word.format(root=root) for word in words)]) == 2
    error = capsys.readouterr().err
    assert says.format(root=root) in error, error
    assert error.count("\n") == 1 and "Traceback" not in error
