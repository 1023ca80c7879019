"""Write MRPC's training sentences as documents, for adapting a base model to them before it is fine-tuned.

    python jobs/data/mrpc_sentences.py ../shared/data/mrpc/glue/train.jsonl .cache/mrpc

Every pair comes as two documents one after the other, and once more the other way round: in rows of text, which keep
documents in their order, the second sentence can be foretold from the first, and a model that learns to look back for
it has learned what telling paraphrases takes. The last 100 pairs go to val.jsonl. Labels are not used. Gururangan et
al., 2020, "Don't Stop Pretraining" (task-adaptive pretraining).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HELD_OUT = 100


def main(source: str, target: str) -> None:
    """Write `target`/train.jsonl and `target`/val.jsonl from GLUE's train.jsonl."""
    pairs = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", pairs[:-HELD_OUT]), ("val", pairs[-HELD_OUT:])):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for keys in (("sentence1", "sentence2"), ("sentence2", "sentence1")):
                for pair in part:
                    for key in keys:
                        file.write(json.dumps({"text": pair[key]}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
