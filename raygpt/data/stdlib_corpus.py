"""English and Python that every Python installation already carries: the corpus of the quick start.

Three kinds of documents, in a fixed order for one Python version: the language reference's help topics
(`pydoc_data.topics`), docstrings gathered per module, and the modules' sources. Nothing is imported or run: docstrings
are read from the syntax tree.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raygpt import storage
from raygpt.errors import UserError

# Not text worth learning: test data, GUIs, bundled tools, generated tables, byte-code caches.
LEFT_OUT = {
    "__pycache__",
    "__phello__",
    "config",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib-dynload",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "turtledemo",
}
# A docstring document shorter than this says no more than its module's name.
SHORTEST = 200


def documents() -> Iterator[str]:
    """Help topics, then for every module of the standard library its docstrings and its source: 10-15 MB.

    The same Python version gives the same documents in the same order. Raises UserError where Python was
    installed without its library's sources.
    """
    yield from _topics()
    library = _library()
    modules = 0
    for path in _modules(library):
        try:
            source = path.read_bytes().decode("utf-8")
            tree = ast.parse(source)
        except (OSError, UnicodeDecodeError, SyntaxError):
            continue  # a file in another encoding or made to be wrong: none that a reader would miss
        modules += 1
        name = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        text = _docstrings(name, tree)
        if len(text) >= SHORTEST:
            yield text
        if source.strip():
            yield source
    if modules < 100:
        raise UserError(
            f"{library} has only {modules} modules of Python's standard library as source: install Python with its "
            "library's sources, or name other prepare.sources."
        )


def write_corpus(path: Path) -> int:
    """Write the corpus as one JSON object per line, `{"text": ...}`; returns the documents' number.

    A file that already holds exactly this is left alone, so that what was prepared from it stays valid.
    """
    texts = list(documents())
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode("utf-8")
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(data)
        os.replace(aside, path)
    return len(texts)


def place_corpus(home: str) -> str:
    """URI of the corpus below `home`, written under a name of its contents: another Python's text is another file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        write_corpus(path)
        text = path.read_bytes()
    # without a time stamp inside, equal text is an equal file
    data = gzip.compress(text, compresslevel=1, mtime=0)
    where = storage.locate(home) / "corpus" / f"python-{hashlib.sha256(text).hexdigest()[:12]}.jsonl.gz"
    if storage.info(where).size != len(data):
        storage.write_bytes(where, data)
    return where.uri


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the documentation out
        return
    for name in sorted(topics):
        yield topics[name].strip() + "\n"


def _modules(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith(("config-", ".")))
        for name in sorted(files):
            # _sysconfigdata_*.py is made on the machine that built Python and differs between builds
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder) / name


def _docstrings(module: str, tree: ast.Module) -> str:
    """The module's docstrings as one page of documentation: names with signatures as headings, text below."""
    parts: list[str] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}.{child.name}"
                if text := ast.get_docstring(child):
                    signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
                    parts.append(f"{name}{signature}\n\n{text}\n")
                visit(child, name)

    if text := ast.get_docstring(tree):
        parts.append(f"{module}\n\n{text}\n")
    visit(tree, module)
    return "\n".join(parts)
