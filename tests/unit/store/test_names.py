import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.store.names import contained, safe_name


@pytest.mark.parametrize("name", ["a", "grow-0001", "P3.1-0007", "x" * 64, "A_b.c"])
def test_good_names(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", ".x", "a/b", "a\\b", "a b", "a\n", "ü", "x" * 65, "a\0"]
)
def test_bad_names(name):
    with pytest.raises(WorkspaceError, match="cannot be used as a file name"):
        safe_name(name)


@given(st.text())
def test_a_safe_name_is_one_plain_component(text):
    try:
        safe_name(text)
    except WorkspaceError:
        return
    assert "/" not in text
    assert text.isascii()
    assert not text.startswith(".")


def test_contained(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "sub")
    (root / "loop").symlink_to(root / "loop")
    assert contained(root, "sub", "x") == root / "sub" / "x"
    assert contained(root, "in/x") == root / "sub" / "x"
    for bad in ("../x", "/etc/passwd", "out/x", "sub/../../x", ".", "", "loop/x", "a\0b", "out"):
        with pytest.raises(WorkspaceError, match="outside"):
            contained(root, bad)
