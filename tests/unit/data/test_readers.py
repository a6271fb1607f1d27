"""Files to rows: every type, every kind of damage."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.data import rows as rows_module
from scaler_wizard.data.hub import read_hub_rows
from scaler_wizard.data.readers import DOCUMENT_CHARS, read_rows
from scaler_wizard.data.rows import BadRows
from scaler_wizard.errors import DataFileMissingError, EmptyDataError, FormatError, RowError, ScalerError

ROWS = [{"text": "a"}, {"text": "é🙂", "n": [1, 2.5, None, {"x": True}]}, {"text": 'q"\n'}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path: Path, **options: object) -> list[dict[str, object]]:
    return [row.value for row in read_rows(path, **options)]  # type: ignore[arg-type]


def test_jsonl_numbers_are_lines_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS)
    found = list(read_rows(write(tmp_path / "a.jsonl", text)))
    assert [(row.number, row.value) for row in found] == [(1, ROWS[0]), (3, ROWS[1]), (5, ROWS[2])]


def test_json_array_and_json_lines_in_a_json_file(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", json.dumps(ROWS, indent=3))) == ROWS
    assert values(write(tmp_path / "b.json", "\n".join(map(json.dumps, ROWS)))) == ROWS


def test_json_array_larger_than_the_read_buffer(tmp_path: Path) -> None:
    big = [{"text": "é" * 700_000, "i": i} for i in range(5)]
    assert values(write(tmp_path / "a.json", json.dumps(big, ensure_ascii=False))) == big


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text('a\\"\n\u2028é')
        ),
        min_size=1,
    )
)
def test_json_round_trip(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    assert values(write(tmp_path / "a.json", json.dumps(rows))) == rows
    assert (
        values(write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)))
        == rows
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=80) | st.text('[]{},:"\\n1 eNaN\n', max_size=60).map(str.encode),
    data=st.data(),
)
def test_hostile_bytes_give_rows_or_our_errors(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt"]))
    # Any exception outside our tree escapes `suppress` and fails the test.
    with contextlib.suppress(ScalerError):
        for row in read_rows(write(tmp_path / f"a{suffix}", content), bad_rows=BadRows("quarantine")):
            assert isinstance(row.value, dict)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1', "not JSON"),
        (b"[1]", "an array instead of an object"),
        (b"null", "null instead of an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_line_stops_or_is_set_aside(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(RowError, match=r"a\.jsonl, row 2: ") as caught:
        list(read_rows(path))
    assert reason in caught.value.found
    bad = BadRows("quarantine")
    assert values(path, bad_rows=bad) == [{"text": "a"}, {"text": "b"}]
    assert bad.count == 1
    assert bad.reasons[0][0] == 2
    assert reason in bad.reasons[0][1]


def test_line_beyond_8_mb_is_skipped_whole(tmp_path: Path) -> None:
    long = b'{"text": "' + b"x" * (rows_module.MAX_ROW_BYTES + 5) + b'"}'
    path = write(tmp_path / "a.jsonl", long + b'\n{"text": "b"}')
    bad = BadRows("quarantine")
    assert [(row.number, row.value) for row in read_rows(path, bad_rows=bad)] == [(2, {"text": "b"})]
    assert bad.reasons == [(1, f"{path}, row 1: longer than 8 MB")]


def test_damage_inside_an_array_stops_even_in_quarantine(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"a": 1}, {"a": 2} {"a": 3}]')
    with pytest.raises(RowError, match="row 2"):
        list(read_rows(path, bad_rows=BadRows("quarantine")))


def test_array_element_that_is_no_object_is_set_aside(tmp_path: Path) -> None:
    bad = BadRows("quarantine")
    assert values(write(tmp_path / "a.json", '[{"a": 1}, 12, {"a": 3}]'), bad_rows=bad) == [
        {"a": 1},
        {"a": 3},
    ]
    assert bad.reasons[0][0] == 2


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'prompt,completion\n"a\nb",c\nonly one\nd\xff,e\nf,"g ""h"""\n')
    bad = BadRows("quarantine")
    found = [(row.number, row.value) for row in read_rows(path, bad_rows=bad)]
    assert found == [
        (2, {"prompt": "a\nb", "completion": "c"}),
        (6, {"prompt": "f", "completion": 'g "h"'}),
    ]
    assert [number for number, _ in bad.reasons] == [4, 5]


def test_csv_quote_that_never_closes_is_an_error_not_a_short_file(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="not CSV"):
        list(read_rows(write(tmp_path / "a.csv", 'a,b\n1,2\n3,"4\n5,6\n'), bad_rows=BadRows("quarantine")))


def test_csv_header_with_a_name_twice(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="header"):
        list(read_rows(write(tmp_path / "a.csv", "a,a\n1,2\n")))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    turns = [{"role": "user", "content": "hi"}]
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": [turns] * 3, "score": [0.5, float("nan"), None]}), path
    )
    assert values(path, max_rows=2) == [{"messages": turns, "score": 0.5}, {"messages": turns, "score": None}]


def test_damaged_parquet(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="not Parquet"):
        list(read_rows(write(tmp_path / "a.parquet", b"PAR1 and nothing else")))


def test_text_documents_join_to_the_file(tmp_path: Path) -> None:
    text = "".join(f"paragraph {i}\nof two lines\n\n" for i in range(3000))
    found = list(read_rows(write(tmp_path / "a.md", text)))
    assert "".join(row.value["text"] for row in found) == text
    assert all(len(row.value["text"]) <= DOCUMENT_CHARS for row in found)
    assert all(row.value["text"].startswith("paragraph") for row in found)
    lines = text.splitlines()
    assert all(lines[row.number - 1] == row.value["text"].split("\n")[0] for row in found)


def test_missing_directory_empty_and_unknown(tmp_path: Path) -> None:
    cases = [
        (tmp_path / "none.jsonl", DataFileMissingError),
        (tmp_path, DataFileMissingError),
        (Path("/dev/zero"), DataFileMissingError),
        (write(tmp_path / "empty.jsonl", ""), EmptyDataError),
        (write(tmp_path / "blank.jsonl", " \n\n"), EmptyDataError),
        (write(tmp_path / "empty.json", "[]"), EmptyDataError),
        (write(tmp_path / "x.zip", "PK"), FormatError),
    ]
    for path, expected in cases:
        with pytest.raises(expected):
            list(read_rows(path))


def test_only_bad_rows_is_empty_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match=r"2 rows were set aside; the first: .*row 1: not JSON"):
        list(read_rows(write(tmp_path / "a.jsonl", "{\n{\n"), bad_rows=BadRows("quarantine")))


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(write(tmp_path / "a.jsonl", '{"text": "a"}'))
    assert values(tmp_path / "link.jsonl") == [{"text": "a"}]


def test_streaming_memory_is_bounded(tmp_path: Path) -> None:
    """50 MB in 1 KB lines must not cost 50 MB: measured in a fresh process."""
    with (tmp_path / "a.jsonl").open("w") as file:
        line = json.dumps({"text": "x" * 1000}) + "\n"
        for _ in range(50):
            file.write(line * 1000)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from scaler_wizard.data.readers import read_rows\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in read_rows(Path(sys.argv[1])))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 'torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.jsonl")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(output[0]) == 50_000
    assert int(output[1]) < 8_000, "kilobytes"
    assert output[2] == "False"


def test_hub_dataset_from_a_local_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the optional extra `hub` is not installed")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    write(tmp_path / "train.jsonl", "\n".join(json.dumps({"text": f"row {i}"}) for i in range(5)))
    found = list(read_hub_rows(str(tmp_path), max_rows=3))
    assert [(row.number, row.value["text"]) for row in found] == [(1, "row 0"), (2, "row 1"), (3, "row 2")]
    with pytest.raises(DataFileMissingError, match="split nowhere"):
        list(read_hub_rows(str(tmp_path), "nowhere"))
