"""The image can do what the package can: it is built with every extra but the developers' and vLLM's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_image_has_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"dev", "llm"}
    installed = re.search(r'pip install [^\n]*"\.\[([\w,-]+)\]"', (ROOT / "Dockerfile").read_text())
    assert installed is not None and set(installed[1].split(",")) == extras >= {"zero", "lora", "tune"}
