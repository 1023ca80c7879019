"""HellaSwag in small: contexts and endings that a model of 16 to 64 bytes of context can look at whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx"]


def rows(count: int) -> list[dict[str, Any]]:
    """Items with endings of unlike lengths, always the same."""
    draw = random.Random(7)
    return [
        {
            "activity_label": draw.choice(WORDS),
            "ctx_a": f"{draw.choice(WORDS)} {draw.choice(WORDS)}",
            "ctx_b": draw.choice(WORDS[:3]),
            "endings": [" ".join(draw.choices(WORDS, k=draw.randint(1, 2))) for _ in range(4)],
            "label": draw.randrange(4),
        }
        for _ in range(count)
    ]


def write(path: Path, count: int = 40) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return str(path)
