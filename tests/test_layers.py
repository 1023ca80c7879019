"""Pure core, Ray shell: what claims to be pure imports on a machine without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import raygpt

ROOT = Path(raygpt.__file__).resolve().parent
PURE = sorted(
    {path for path in ROOT.rglob("*.py") if path.read_text(encoding="utf-8").startswith('"""PURE')}
    | set((ROOT / "model").glob("*.py"))
    | {ROOT / "data/order.py", ROOT / "train/step.py", ROOT / "train/optim.py", ROOT / "track/record.py"}
)
SHELL = ("ray", "deepspeed", "wandb", "transformers")


def test_pure_modules_import_without_ray_deepspeed_wandb_and_transformers() -> None:
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for path in PURE]
    assert len(names) > 10
    code = (
        "import sys, importlib\n"
        f"for name in {SHELL!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_is_too_long_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 450}
