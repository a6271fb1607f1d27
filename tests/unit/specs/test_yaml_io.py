from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.errors import SpecError
from scaler_wizard.specs.yaml_io import MAX_BYTES, MAX_DEPTH, dump_yaml, parse_yaml, read_yaml

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "an alias .*line 2"),
        ("a: &a [*a]\n", "an alias"),
        ("a: 1\nb: 2\na: 3\n", 'the key "a" twice, again at line 3'),
        ("s:\n  a: 1\n  a: 2\n", 'the key "a" twice'),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1 .*: a tag"),
        ("a: !!python/name:os.system\n", "a tag"),
        ("a: !mine 3\n", "leave the tag away"),
        ("a: " + "[" * 50 + "]" * 50, f"deeper than {MAX_DEPTH}"),
        ("[" * 100_000, f"deeper than {MAX_DEPTH}"),
        ("? [a]\n: 1\n", "as a name"),
        ("a: [1\n", "not closed"),
        ("a:\n\tb: 1\n", "line 2 .*: a tab .*indent with spaces"),
        ("a: b: c\n", r"line 1 \(a: b: c\): a second colon"),
        ("a:\n    b: 1\n  c: 2\n", "line 3 .*: an indentation"),
        ('a: 1\nb: "text\nc: 2\n', "line 2 .*: a text in quotes that is not closed"),
        ("a: @b\n", "put the text in quotes"),
        ("a: - b\n", "list on the next line"),
        ("a\n  b: 1\n", r"line 2 \(b: 1\): .* the line before has none"),
        ("a: 1\nb\nc: 2\n", r"line 2 \(b\): a name without a colon"),
        ("a: [1\nb: 2\n", r"line 1 .*: a list in brackets"),
        ("a: \x07\n", "line 1: a control character"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("a: " + "9" * 5000, "thousands of digits"),
        ("", "holds nothing"),
        ("# only a comment\n", "holds nothing"),
        ("- 1\n- 2\n", "holds list"),
        ("just text", "holds str"),
    ],
)
def test_hostile_or_wrong_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_yaml(text, "job.yaml")


def test_tags_run_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    with pytest.raises(SpecError):
        parse_yaml(f"a: !!python/object/apply:pathlib.Path.touch [{proof}]")
    assert not proof.exists()


def test_depth_up_to_the_limit_is_read() -> None:
    assert parse_yaml("a: " + "[" * (MAX_DEPTH - 2) + "1" + "]" * (MAX_DEPTH - 2))


def test_words_and_times_stay_what_they_are() -> None:
    text = "a: on\nb: 2026-11-21T12:00:00+00:00\nc: no\nd: true\ne: False\nf: 1e-4\n"
    assert parse_yaml(text) == {
        "a": "on",
        "b": "2026-11-21T12:00:00+00:00",
        "c": "no",
        "d": True,
        "e": False,
        "f": "1e-4",
    }


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    with pytest.raises(SpecError, match="no job file at"):
        read_yaml(path)
    with pytest.raises(SpecError, match="is not a file"):
        read_yaml(tmp_path)
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(SpecError, match=r"not UTF-8 \(byte 3\)"):
        read_yaml(path)
    path.write_text("a: " + "x" * MAX_BYTES)
    with pytest.raises(SpecError, match="has 1,048,579 bytes"):
        read_yaml(path)
    path.write_text("a: é\n", encoding="utf-8")
    assert read_yaml(path) == {"a": "é"}


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=4))
def test_what_is_dumped_is_read_back(value: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(value)) == value


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_mapping_or_a_spec_error(text: str) -> None:
    with suppress(SpecError):
        assert isinstance(parse_yaml(text), dict)
