"""Pure core, Ray shell: what claims to be pure imports on a machine without Ray."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import raygpt

ROOT = Path(raygpt.__file__).resolve().parent
PURE = sorted(
    {path for path in ROOT.rglob("*.py") if path.read_text(encoding="utf-8").startswith('"""PURE')}
    | set((ROOT / "model").glob("*.py"))
    | set((ROOT / "train/optim").glob("*.py"))
    | {ROOT / "data/order.py", ROOT / "train/step.py", ROOT / "track/record.py"}
)
SHELL = ("ray", "deepspeed", "wandb", "transformers")
# What a machine lent for minutes must be able to measure: these import with torch and numpy alone.
BARE = (
    "train.evaluation",
    "hardware",
    "model.generate",
    "model.gpt",
    "model.text",
    "train.ahead",
    "bench.__main__",
    "bench.step",
    "train.compile_cache",
    "parallel.ddp",
    "parallel.distributed",
    "train.loop",
    "train.replica",
    "train.warmup",
)
_PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}


def dependencies() -> list[str]:
    """Every package that raygpt or an extra of it asks for, but torch and numpy, as it is imported."""
    extras = [word for name, words in _PROJECT["optional-dependencies"].items() if name != "dev" for word in words]
    names = [re.split(r"[^A-Za-z0-9_-]", word)[0] for word in [*_PROJECT["dependencies"], *extras]]
    return sorted({_IMPORTED_AS.get(name.lower(), name) for name in names} - {"torch", "numpy"})


# makes them unimportable; torch itself does without
BLOCKER = f"import sys\nfor name in {dependencies()!r}: sys.modules[name] = None\n"


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


def test_the_training_step_and_its_bench_import_with_torch_and_numpy_alone() -> None:
    assert {"ray", "pydantic", "pyarrow", "yaml", "psutil", "deepspeed", "transformers"} <= set(dependencies())
    code = BLOCKER + f"import importlib\nfor name in {BARE!r}: importlib.import_module('raygpt.' + name)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_is_too_long_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 450}


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Modules of raygpt that a module imports anywhere, inside functions and for types as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in inner if name in modules] or [node.module]
        found |= {name for name in names if name in modules}
    return found


def test_no_module_imports_itself_through_others() -> None:
    names = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    left = {name: imports_of(path, set(names)) - {name} for name, path in names.items()}
    # take away what imports nothing that is left, again and again: a circle stays
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, sorted(left)
