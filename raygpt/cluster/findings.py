"""PURE. What a look at a cluster file has found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Sentences. `verified` holds what was looked at and is well, `unknown` what could not be looked at and why,
    `problems` what has to be mended first, each with its way out."""

    verified: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
