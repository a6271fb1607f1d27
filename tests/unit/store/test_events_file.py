import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from pydantic import ValidationError

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.specs.events import Note, PhaseStarted, ProbeDone, RunEnded
from scaler_wizard.store.events_file import MAX_LINE_BYTES, EventReader, EventWriter, follow_events


def texts(path, from_seq=0):
    return [(event.seq, event.text) for event in EventReader(path, from_seq)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def test_sequence_continues_after_restart(path):
    for start in (0, 2):
        with EventWriter(path, clock=lambda: 5.0) as writer:
            for i in range(2):
                event = writer.write(Note(text=f"n{start + i}"))
                assert (event.seq, event.time) == (start + i + 1, 5.0)
    assert texts(path) == [(1, "n0"), (2, "n1"), (3, "n2"), (4, "n3")]
    assert texts(path, 3) == [(3, "n2"), (4, "n3")]
    assert list(EventReader(path.with_name("none"))) == []


def test_every_cut_of_the_last_line_is_repaired(path):
    with EventWriter(path) as writer:
        writer.write(Note(text="first"))
        size = path.stat().st_size
        writer.write(Note(text="second ü"))
    whole = path.read_bytes()
    for cut in range(size, len(whole) + 1):
        path.write_bytes(whole[:cut])
        torn = path.with_suffix(".torn")
        torn.unlink(missing_ok=True)
        with EventWriter(path) as writer:
            writer.write(Note(text="after"))
        complete = cut >= len(whole) - 1  # only the newline was missing, or nothing
        kept = [(1, "first"), (2, "second ü")] if complete else [(1, "first")]
        assert texts(path) == [*kept, (len(kept) + 1, "after")]
        assert torn.exists() == (not complete and cut > size)
        if torn.exists():
            assert torn.read_bytes() == whole[size:cut] + b"\n"


def test_corrupt_lines_are_counted_and_skipped(path):
    with EventWriter(path) as writer:
        writer.write(Note(text="a"))
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n{}\n[]\nnull\n" + b'{"type": "note", "text": 3}\n')
        file.write(
            b"x" * (2 * MAX_LINE_BYTES + 5) + b"\n"
        )  # longer than any line: read in pieces, skipped once
    with EventWriter(path) as writer:
        assert writer.write(Note(text="b")).seq == 2
    reader = EventReader(path)
    assert [event.text for event in reader] == ["a", "b"]
    assert reader.skipped == 6


def test_an_invalid_event_is_not_written(path):
    with EventWriter(path) as writer:
        broken = PhaseStarted.model_construct(phase=["x"], title="t")
        with pytest.raises(ValidationError), pytest.warns(UserWarning, match="serializer"):
            writer.write(broken)
        writer.write(ProbeDone(phase="P1", probe="p", result={"value": float("nan")}))
    (event,) = EventReader(path)
    assert event.result == {"value": None}
    assert event.seq == 1


def test_full_disk_leaves_whole_lines(tmp_path):
    """A real limit on the file's size, in a process of its own."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from scaler_wizard.errors import WorkspaceError\n"
        "from scaler_wizard.specs.events import Note\n"
        "from scaler_wizard.store.events_file import EventWriter, EventReader\n"
        "path = Path(sys.argv[1]); writer = EventWriter(path)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try:\n    while True: writer.write(Note(text='x' * 100))\n"
        "except WorkspaceError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "writer.write(Note(text='space is back')); print([e.seq for e in EventReader(path)])"
    )
    path = tmp_path / "events.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    reader = EventReader(path)
    seqs = [event.seq for event in reader]
    assert seqs == list(range(1, len(seqs) + 1))
    assert reader.skipped == 0
    assert not path.with_suffix(".torn").exists()


def test_unusable_path(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(WorkspaceError, match="cannot write"):
        EventWriter(tmp_path / "link")


def test_kill_9_in_the_middle_of_writing_loses_no_acknowledged_event(path):
    code = (
        "import sys; from pathlib import Path; from scaler_wizard.specs.events import Note\n"
        "from scaler_wizard.store.events_file import EventWriter\n"
        "writer = EventWriter(Path(sys.argv[1]))\n"
        "while True: print(writer.write(Note(text='x' * 3000)).seq, flush=True)"
    )
    rng = random.Random(20)
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        worker.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(worker.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in worker.communicate()[0].splitlines() if line]
        seqs = [seq for seq, _ in texts(path)]
        assert seqs == list(range(1, len(seqs) + 1))
        assert not acknowledged or acknowledged[-1] <= seqs[-1]


def test_follow_sees_everything_also_half_written_lines(path):
    done = threading.Event()
    seen = []

    def follow():
        seen.extend(event.seq for event in follow_events(path, done.is_set, poll=0.002))

    follower = threading.Thread(target=follow)
    follower.start()
    with EventWriter(path) as writer:
        for _ in range(50):
            writer.write(Note(text="x"))
        line = path.read_bytes().splitlines()[0].replace(b'"seq":1', b'"seq":51') + b"\n"
        with path.open("ab", buffering=0) as file:
            file.write(line[:20])
            time.sleep(0.02)
            file.write(line[20:])
    with EventWriter(path) as writer:
        writer.write(RunEnded(status="completed"))
    done.set()
    follower.join(5)
    assert seen == list(range(1, 53))


def test_follow_stops_before_the_file_exists(path):
    assert list(follow_events(path, lambda: True, poll=0.001)) == []
