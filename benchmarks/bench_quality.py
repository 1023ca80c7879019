"""How fast answers become documents, step by step, and how much of real text each step keeps.

    python benchmarks/bench_quality.py --data ../shared/data --out benchmarks/quality.json

steps     one step alone over texts in memory, one core: documents/s and MB/s. Web pages are 5 KB long, stories 0.8 KB.
kept      share of all web pages, textbook sections and stories that pass each filter: what a filter costs good text.
chance    share of them that share n words in a row with HellaSwag or MRPC, for several n.
whole     make_documents over the same texts with all steps: in this process, and with a task per core of Ray.
memory    bytes per document of what stays in memory for near duplicates, beside datasketch's own index, and the
          seconds that a million documents take there.

Real texts stand in for answers. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.provenance import provenance
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.distill.answers import Answer, Question
from raygpt.distill.card import Facts
from raygpt.distill.decontaminate import Forbidden, read_forbidden
from raygpt.distill.dedup import NearDuplicates, band_hashes, banding, exact_hash
from raygpt.distill.documents import QualityOptions, make_documents
from raygpt.distill.filters import Rules, objection
from raygpt.distill.language import other_language
from raygpt.distill.refusal import refusal
from raygpt.distill.repetition import repetition
from raygpt.distill.words import shingles, worded
from raygpt.storage import locate

SETS = {"web pages": "openwebtext_1k", "textbook sections": "openstax_ccby", "stories": "tinystories_sample"}
N_WORDS = (8, 10, 13)
CHUNK = 400


def seconds(work: Callable[[Any], object], items: Iterable[Any]) -> float:
    began = time.perf_counter()
    for item in items:
        work(item)
    return time.perf_counter() - began


def steps(texts: list[str], forbidden: Forbidden, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    counted = [worded(text) for text in texts]
    plan = banding(0.8)
    parts = [counted[at : at + CHUNK] for at in range(0, len(counted), CHUNK)]
    batches = [texts[at : at + 256] for at in range(0, len(texts), 256)]
    took = {
        "words": seconds(worded, texts),
        "repetition": seconds(lambda pair: repetition(*pair), zip(texts, counted)),
        "language": seconds(lambda text: other_language(text, "en"), texts),
        "refusal": seconds(refusal, texts),
        "contamination": seconds(forbidden.matches, parts),
        "exact duplicates": seconds(exact_hash, texts),
        "near duplicates": seconds(lambda one: band_hashes(shingles(one.numbers), plan), counted),
        "tokens": seconds(tokenizer.encode_flat, batches),
    }
    size = sum(len(text.encode()) for text in texts)
    took["all"] = sum(took.values())
    return {
        name: {"documents_per_second": round(len(texts) / one), "mb_per_second": round(size / one / 1e6, 1)}
        for name, one in took.items()
    }


def kept(texts: list[str]) -> dict[str, float]:
    """Share that passes each filter by itself, and all."""
    found = {}
    for names in (("length",), ("repetition",), ("language",), ("refusal",), QualityOptions().filters):
        rules = Rules(names)
        passed = sum(objection(text, lambda text=text: worded(text), rules) is None for text in texts)
        found[names[0] if len(names) == 1 else "all"] = round(passed / len(texts), 4)
    return found


def chance(sets: dict[str, list[str]], files: list[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for words in N_WORDS:
        forbidden = read_forbidden(files, words)
        found[f"n = {words}"] = {}
        for name, texts in sets.items():
            hits = 0
            for at in range(0, len(texts), CHUNK):
                hits += sum(map(bool, forbidden.matches([worded(text) for text in texts[at : at + CHUNK]])))
            found[f"n = {words}"][name] = round(hits / len(texts), 5)
    return found


def whole(texts: list[str], files: list[str], tokenizer: Tokenizer) -> float:
    """Documents/s of the whole making."""

    def answers() -> Iterator[Answer]:
        for number, text in enumerate(texts):
            question = Question(f"prompt {number}")
            yield Answer(f"{number:032x}", question, text, "stop", 10, 100)

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options = QualityOptions(decontaminate=tuple(files))
        made = make_documents(
            answers, locate(folder), tokenizer=tokenizer, options=options, facts=Facts("real text", "none")
        )
        took = time.perf_counter() - began
    print({step["step"]: step["removed"] for step in made["steps"]}, f"{took:.1f} s", file=sys.stderr)
    return round(len(texts) / took)


def memory(documents: int = 1_000_000, indexed: int = 20_000) -> dict[str, Any]:
    """Random bands with one document in twenty a copy of another; datasketch's index holds its own MinHashes."""
    from datasketch import MinHash, MinHashLSH

    plan = banding(0.8)
    random = np.random.default_rng(0)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    bands = random.integers(0, 2**63, (documents, plan.bands), np.uint64)
    bands[random.integers(0, documents, documents // 20)] = bands[random.integers(0, documents, documents // 20)]
    keys = random.permutation(documents).astype("S32")
    held = process.memory_info().rss - before
    began = time.perf_counter()
    near = NearDuplicates(bands, keys, 0.8)
    pairs = near.find(bands.__getitem__)
    took = time.perf_counter() - began
    del bands, near
    gc.collect()
    before = process.memory_info().rss
    index = MinHashLSH(params=(plan.bands, plan.rows), num_perm=128)
    sketch = MinHash(128, hashfunc=int)
    for number in range(indexed):
        one = sketch.copy()
        one.hashvalues = random.integers(0, 2**32, 128, np.uint32)
        index.insert(number, one)
    return {
        "bytes_per_document": round(held / documents),
        "seconds_per_million": round(took, 1),
        "removed_per_million": len(pairs),
        "datasketch_index_bytes_per_document": round((process.memory_info().rss - before) / indexed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    sets = {
        name: pq.read_table(arguments.data / f"pretrain_text/{file}.parquet")["text"].to_pylist()
        for name, file in SETS.items()
    }
    files = [str(arguments.data / "hellaswag/hellaswag_val_5000.jsonl.gz")]
    files.append(str(arguments.data / "mrpc/glue/validation.tsv"))
    tokenizer = load_tokenizer(str(arguments.data / "gpt2_bpe"))
    remembered = memory()
    forbidden = read_forbidden(files, 8)
    alone = {name: steps(sets[name], forbidden, tokenizer) for name in ("web pages", "stories")}
    shares = {name: kept(texts) for name, texts in sets.items()}
    by_chance = chance(sets, files)
    everything = [text for texts in sets.values() for text in texts]
    here = whole(everything, files, tokenizer)

    import ray

    cores = os.cpu_count() or 1
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    whole(everything[:500], files, tokenizer)  # starts Ray's worker processes
    spread = whole(everything, files, tokenizer)
    ray.shutdown()
    report = {
        "benchmark": "quality",
        **provenance("numpy", "datasketch", "py3langid", "ray"),
        "load_average": round(os.getloadavg()[0], 2),
        "documents": {name: len(texts) for name, texts in sets.items()},
        "forbidden_words": forbidden.total_tokens,
        "steps": alone,
        "kept": shares,
        "chance": by_chance,
        "whole_documents_per_second": {"this process": here, f"Ray, {cores} cores": spread},
        "memory": remembered,
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
