"""The standard-library corpus: deterministic, split by package, printable ASCII."""

from __future__ import annotations

import string
import sys
from itertools import islice
from pathlib import Path

import pytest

from scaler_wizard.data import corpus


def test_documents_come_in_the_same_order_and_stop_at_the_limit() -> None:
    first = list(corpus.documents("train", max_chars=300_000))
    assert first == list(corpus.documents("train", max_chars=300_000))
    assert first == list(islice(corpus.documents("train"), len(first)))
    total = sum(len(document.text) for document in first)
    assert total >= 300_000 > total - len(first[-1].text)


def test_text_is_printable_ascii() -> None:
    allowed = set(string.ascii_letters + string.digits + string.punctuation + " \n")
    for document in corpus.documents("train", max_chars=500_000):
        assert set(document.text) <= allowed, document.module
    assert corpus.sanitise("a\tb\r\nc\x00 é  \x0c") == "a   b\nc? ?"


def test_a_package_is_on_one_side_of_the_split() -> None:
    assert corpus.split_of("email.message") == corpus.split_of("email")
    sides: dict[str, set[str]] = {}
    for module, _ in corpus.module_paths():
        sides.setdefault(module.partition(".")[0], set()).add(corpus.split_of(module))
    assert all(len(side) == 1 for side in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "held_out"}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_each_split_gives_its_own_documents_of_both_kinds(split: corpus.Split) -> None:
    found = list(corpus.documents(split, max_chars=400_000))
    assert {document.split for document in found} == {split}
    assert {corpus.split_of(document.module) for document in found} == {split}
    assert {document.kind for document in found} == {"docstrings", "source"}


def test_modules_are_read_and_never_imported(tmp_path: Path) -> None:
    body = '"""What the module says of itself."""\nraise SystemExit\n' + "# filling\n" * 30
    for name in ("alpha", "beta", "gamma", "delta", "kappa", "sigma"):
        (tmp_path / f"{name}.py").write_text(body)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text(body)
    paths = corpus.module_paths(tmp_path)
    assert sorted(name for name, _ in paths) == ["alpha", "beta", "delta", "gamma", "kappa", "sigma"]
    texts = [d.text for split in ("train", "held_out") for d in corpus.documents(split, root=tmp_path)]
    assert len(texts) == 6
    assert "alpha" not in sys.modules


def test_docstrings_are_collected_from_every_level() -> None:
    source = '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
    assert corpus.docstrings(source).split("\n\n") == ["Module.", "Class.", "Method."]
    with pytest.raises(SyntaxError):
        corpus.docstrings("def (")
