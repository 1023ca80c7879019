"""One model, one text, three perplexities: WikiText-2 by the protocols in use, each beside the tool that it is from.

    python benchmarks/bench_perplexity.py --pages 2

The model is SmolLM2-135M-Instruct, a 4-bit GGUF file read in fp32 (tests/teacher_model.py fetches it); the text is the
tokenised release, with <unk> for rare words, so that no figure compares with those of WikiText-2-raw. `--pages` takes
the first pages alone (the whole file is 62 of them and hours of one core); --context is a common one of both
protocols. lm-evaluation-harness runs on the same pages with the same BOS, and the loop of transformers' documentation
over the same tokens. Writes perplexity.json beside this script (--out).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for _folder in (str(ROOT), str(ROOT / "benchmarks")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

import numpy as np
import torch
from provenance import provenance

from raygpt.evaluate.foreign import load_foreign
from raygpt.scoring import wikitext
from raygpt.scoring.encoding import before_text
from raygpt.scoring.perplexity import Perplexity, measure
from raygpt.scoring.rolling import ModelRows, Windows
from tests import teacher_model
from tests.scoring.harness import harness

DATA = ROOT.parent / "shared" / "data" / "pretrain_text" / "wikitext2" / "test.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "perplexity.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = teacher_model.fetch()
    loaded = load_foreign(str(file))
    bos_id = before_text(loaded.tokenizer)
    bos = str(loaded.tokenizer.backend.id_to_token(bos_id))
    text, name = wikitext.read(options.data)
    rows = ModelRows(loaded.model, batch_tokens=2048)
    found: dict[str, Any] = {
        **provenance("torch", "transformers", "lm_eval"),
        "threads": options.threads,
        "load_average": round(os.getloadavg()[0], 1),
        "model": {"file": file.name, "weights": "4-bit (Q4_1), computed in fp32", "bos": bos},
        "pages": options.pages,
        "of_pages": len(wikitext.texts(text, name, "lm_eval").texts),
        "readings": {},
    }
    for reading, protocol, overlap in (
        ("lm_eval", "lm_eval", True),
        ("huggingface", "huggingface", True),
        ("huggingface_no_overlap", "huggingface", False),
    ):
        texts = wikitext.texts(text, name, protocol, options.pages)  # type: ignore[arg-type]
        windows = wikitext.windows(protocol, options.context, overlap=overlap)  # type: ignore[arg-type]
        before = bos_id if protocol == "lm_eval" else None
        start = time.process_time()
        result, _ = measure(rows, loaded.tokenizer, texts, windows, model=file.stem, protocol=protocol, bos_id=before)
        seconds = time.process_time() - start
        found["readings"][reading] = {**_figures(result), "cpu_seconds": round(seconds, 1)}
        print(f"{reading}: {json.dumps(found['readings'][reading])}", flush=True)
        if protocol == "huggingface":
            ids = loaded.tokenizer.encode(texts.texts[0])
            theirs = {"token_perplexity": _documented(loaded.model.net, ids, windows)}
            found["readings"][reading]["transformers_documentation"] = theirs
            off = abs(theirs["token_perplexity"] / result.token.perplexity - 1)
        else:
            theirs = _harness(texts.name, text, options, loaded, bos)
            found["readings"][reading]["lm_evaluation_harness"] = theirs
            assert result.word is not None and result.bits_per_byte is not None
            off = max(
                abs(theirs["word_perplexity"] / result.word.perplexity - 1),
                abs(theirs["bits_per_byte"] / result.bits_per_byte - 1),
            )
        found["readings"][reading]["relative_difference"] = float(f"{off:.1e}")
        print(f"  theirs: {theirs}, off by {off:.1e}", flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def _figures(result: Perplexity) -> dict[str, Any]:
    units = {f"{each.unit}s": each.units for each in (result.token, result.word, result.byte) if each is not None}
    values = {**result.perplexities, "bits_per_byte": result.bits_per_byte}
    kept = {name: each for name, each in result.record().items() if name not in ("token", "word", "byte", *values)}
    return {name: round(each, 4) for name, each in values.items() if each is not None} | kept | units


def _harness(name: str, text: str, options: argparse.Namespace, loaded: Any, bos: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "pages.jsonl"
        pages = list(wikitext.pages(text))[: options.pages]
        rows.write_text("".join(json.dumps({"page": page}) + "\n" for page in pages), encoding="utf-8")
        found = harness("wikitext/wikitext", rows, loaded.model.net, loaded.tokenizer, options.context, bos=bos)
    return {key: found[f"{key},none"] for key in ("word_perplexity", "byte_perplexity", "bits_per_byte")}


def _documented(net: Any, ids: np.ndarray, windows: Windows) -> float:
    """The loop of "Perplexity of fixed-length models", each window weighted by what it predicts."""
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), windows.stride):
        end = min(begin + windows.context, len(ids))
        targets = tokens[:, begin:end].clone()
        targets[:, : -(end - before)] = -100
        predicted = int((targets[:, 1:] != -100).sum())
        if predicted:
            with torch.no_grad():
                total += float(net(tokens[:, begin:end], labels=targets).loss) * predicted
        count, before = count + predicted, end
        if end == len(ids):
            break
    return math.exp(total / count)


if __name__ == "__main__":
    main()
