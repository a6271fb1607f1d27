"""The reserve: real blocks, given up once, taken again only where there is room."""

import errno

import pytest

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.store.ballast import MIB, Ballast


def test_the_space_is_really_taken_and_given_up_once(tmp_path):
    ballast = Ballast(tmp_path, 1.5)
    assert not ballast.is_held()
    assert ballast.reserve()
    assert ballast.path.stat().st_blocks * 512 >= 1.5 * MIB
    assert ballast.release()
    assert not ballast.release()


def test_it_is_not_taken_where_it_would_fill_the_disk(tmp_path):
    ballast = Ballast(tmp_path, 1)
    assert not ballast.reserve(free_bytes=3 * MIB)
    assert ballast.reserve(free_bytes=5 * MIB)


def test_none_is_wanted(tmp_path):
    assert Ballast(tmp_path, 0).is_held()
    assert Ballast(tmp_path, 0).reserve()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space"), WorkspaceError("(database or disk is full)")]
)
def test_a_full_disk_frees_it_and_the_call_is_done_again(tmp_path, error):
    ballast = Ballast(tmp_path, 0.1)
    ballast.reserve()

    def commit():
        if ballast.path.exists():
            raise error
        return "committed"

    assert ballast.guard(commit) == "committed"
    ballast.path.mkdir()
    with pytest.raises(ValueError, match="other"):
        ballast.guard(lambda: (_ for _ in ()).throw(ValueError("other")))


def test_without_ballast_the_error_is_told(tmp_path):
    def commit():
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        Ballast(tmp_path, 1).guard(commit)
