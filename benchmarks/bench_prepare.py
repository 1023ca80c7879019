"""How fast `prepare` is beside the tokenizer alone, in one run on the same cores.

    python benchmarks/bench_prepare.py --sources ../shared/data/pretrain_text --tokenizer ../shared/data/gpt2_bpe

raw      the `tokenizers` library in one process, encode_batch_fast with a thread per core, over texts that are
         already in memory; ids are left inside the library's own objects. Measured before and after; the better counts.
prepare  reading, splitting, tokenising, hashing and writing shards with Ray; Ray's own start is not counted.

Prints one JSON object; `ratio` is prepare's tokens/s over raw's (required: at least 0.8).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

BATCH = 256


def raw_tokens_per_second(tokenizer_folder: str, texts: list[str], cores: int) -> float:
    """tokens/s of encode_batch_fast over all texts, in batches of BATCH, on `cores` threads."""
    # the library reads both when its thread pool starts
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(cores)
    from raygpt.data.tokenizer import load_tokenizer

    backend = load_tokenizer(tokenizer_folder).backend
    # long and short texts side by side, so that no batch waits for one book
    texts = sorted(texts, key=len, reverse=True)
    tokens = 0
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        encodings = backend.encode_batch_fast(texts[first : first + BATCH], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in encodings)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=["../shared/data/pretrain_text"])
    parser.add_argument("--tokenizer", default="../shared/data/gpt2_bpe")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    arguments.sources = [
        str(Path(source).resolve()) if Path(source).exists() else source for source in arguments.sources
    ]

    import ray

    from raygpt.data.corpus import expand_sources, read_documents
    from raygpt.data.prepare import PrepareOptions, prepare

    texts = [text for unit in expand_sources(arguments.sources) for text in read_documents(unit)]
    before = raw_tokens_per_second(arguments.tokenizer, texts, arguments.cores)
    ray.init(num_cpus=arguments.cores, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        # a first small preparation starts Ray's worker processes: a part of Ray's start
        small = PrepareOptions(
            arguments.sources, f"{folder}/small", arguments.tokenizer, max_documents=20, val_split="tail"
        )
        prepare(small)
        result = prepare(PrepareOptions(arguments.sources, f"{folder}/out", arguments.tokenizer))
    ray.shutdown()
    raw = max(before, raw_tokens_per_second(arguments.tokenizer, texts, arguments.cores))
    report = {
        "benchmark": "prepare",
        "ratio": round(result.tokens_per_second / raw, 3),
        "prepare_tokens_per_second": round(result.tokens_per_second),
        "raw_tokens_per_second": round(raw),
        "tokens": result.tokens,
        "documents": result.documents,
        "text_bytes": result.bytes,
        "prepare_seconds": round(result.seconds, 2),
        "cores": arguments.cores,
        "cpu": cpu_name(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ray", "tokenizers", "pyarrow", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *(os.path.relpath(a) if os.path.isabs(a) else a for a in sys.argv)]),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
