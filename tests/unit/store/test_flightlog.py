import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.store.flightlog import GENESIS, append, read_entries, verify


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "flight_log.jsonl"
    for i in range(5):
        append(path, "phase", "grow-0001", {"phase": f"P{i}", "loss": float("nan")}, now=float(i))
    return path


def test_chain_is_right(log):
    check = verify(log)
    assert (check.ok, check.lines, check.first_bad_line) == (True, 5, None)
    assert append(log, "sign", "r", {}) == verify(log).last_hash
    entries = read_entries(log, limit=2)
    assert [entry["kind"] for entry in entries] == ["phase", "sign"]
    assert entries[0]["data"] == {"phase": "P4", "loss": None}
    empty = verify(log.with_name("none"))
    assert (empty.ok, empty.lines, empty.last_hash) == (True, 0, GENESIS)
    assert read_entries(log.with_name("none")) == []


def tampered(lines, how):
    if how == "change":
        lines[2] = lines[2].replace(b"P2", b"P9")
    elif how == "delete":
        del lines[2]
    elif how == "reorder":
        lines[2], lines[3] = lines[3], lines[2]
    elif how == "insert":
        lines.insert(2, lines[1])
    elif how == "drop first":
        del lines[0]
    elif how == "respace last":
        lines[4] = lines[4].replace(b": ", b":  ", 1)
    elif how == "garbage":
        lines[2] = b"\xff\n"
    return lines


@pytest.mark.parametrize(
    ("how", "bad"),
    [
        ("change", 3),
        ("delete", 3),
        ("reorder", 3),
        ("insert", 3),
        ("drop first", 1),
        ("garbage", 3),
        ("respace last", 5),
    ],
)
def test_tampering_is_found_at_its_line(log, how, bad):
    log.write_bytes(b"".join(tampered(log.read_bytes().splitlines(keepends=True), how)))
    check = verify(log)
    assert (check.ok, check.lines, check.first_bad_line) == (False, bad - 1, bad)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found(log, data):
    original = log.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[at]))
    log.write_bytes(original[:at] + bytes([byte]) + original[at + 1 :])
    try:
        assert not verify(log).ok
    finally:
        log.write_bytes(original)


def test_a_torn_last_line_is_set_aside(log):
    whole = log.read_bytes()
    log.write_bytes(whole[:-7])
    assert verify(log).first_bad_line == 5
    append(log, "phase", "r", {})
    assert verify(log).ok
    assert verify(log).lines == 5
    assert whole.splitlines()[4][:20] in log.with_suffix(".torn").read_bytes()


def test_appenders_take_turns(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import sys; from pathlib import Path; from scaler_wizard.store.flightlog import append\n"
        "for i in range(20): append(Path(sys.argv[1]), 'k', 'r', {'i': i})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert (verify(path).ok, verify(path).lines) == (True, 60)


def test_unwritable(tmp_path):
    with pytest.raises(WorkspaceError, match="flight log"):
        append(tmp_path / "none" / "log", "k", "r", {})
