"""Text that every Python has: docstrings and sources of the running interpreter's standard library.

A document is one module's docstrings or its source. The split is a hash of the top-level name (`email` for
`email.message`), so that nothing of a held-out package is trained on; the order is a hash too, so that the
first megabyte is a fair sample and not the letter A. Modules are read, never imported. Torch-free.
The text differs between Python versions: whoever records a number on it records the version beside it.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "held_out"]
Kind = Literal["docstrings", "source"]

HELD_OUT_SHARE = 0.1
# Not code one reads: tests, installed packages, generated tables, other people's bundles.
SKIPPED = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "lib2to3",
        "ensurepip",
        "idlelib",
    }
    | {"encodings", "pydoc_data", "turtledemo"}
)


@dataclass(frozen=True, slots=True)
class Document:
    """One module's docstrings or source, in printable ASCII."""

    module: str
    kind: Kind
    split: Split
    text: str


def sanitise(text: str) -> str:
    """`text` in printable ASCII: tabs become four spaces, other characters "?"; lines keep their ends."""
    lines = text.expandtabs(4).splitlines()
    return "\n".join("".join(c if " " <= c <= "~" else "?" for c in line).rstrip() for line in lines)


def split_of(module: str) -> Split:
    """The side of the split a dotted module name falls on: 10% of the top-level names are held out."""
    top_level = module.partition(".")[0]
    fraction = int.from_bytes(hashlib.sha256(top_level.encode()).digest()[:8], "big") / 2**64
    return "held_out" if fraction < HELD_OUT_SHARE else "train"


def module_paths(root: Path | None = None) -> list[tuple[str, Path]]:
    """Dotted names and files of the standard library's modules, ordered by a hash of the name.

    root: directory to read instead of the running interpreter's standard library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, Path]] = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        # `_sysconfigdata_...` and `config-3.x-...` are products of the build, not of Python.
        if not SKIPPED.isdisjoint(parts) or any(
            "-" in part or part.startswith("_sysconfigdata") for part in parts
        ):
            continue
        found.append((".".join(part for part in parts if part != "__init__"), path))
    return sorted(found, key=lambda item: hashlib.sha256(item[0].encode()).digest())


def docstrings(source: str) -> str:
    """All docstrings of a module, in order, parted by empty lines.

    Raises SyntaxError when `source` is not Python.
    """
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, owners))
    return "\n\n".join(text for text in found if text)


def documents(split: Split, *, max_chars: int | None = None, root: Path | None = None) -> Iterator[Document]:
    """The documents of one split in a fixed order, until `max_chars` characters have been given.

    A document is never cut, so the last one may pass the limit. Documents below 200 characters are left out.
    """
    given = 0
    for module, path in module_paths(root):
        if split_of(module) != split:
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        texts: tuple[tuple[Kind, str], ...] = (("docstrings", docstrings(source)), ("source", source))
        for kind, text in texts:
            clean = sanitise(text)
            if len(clean) < 200:
                continue
            if max_chars is not None and given >= max_chars:
                return
            given += len(clean)
            yield Document(module, kind, split, clean)
