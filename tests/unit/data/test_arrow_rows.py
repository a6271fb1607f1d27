"""Arrow files and the directories that `datasets` saves, read without that package."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.rows import BadRows
from scaler_wizard.errors import DataFileMissingError, EmptyDataError, FormatError

TABLE = pyarrow.table({"text": [f"row {n}" for n in range(3000)], "score": [float("nan")] * 3000})


def save(folder: Path, table: pyarrow.Table = TABLE, name: str = "data-00000-of-00001.arrow") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=1000)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_saved_dataset(tmp_path: Path) -> None:
    rows = list(read_rows(save(tmp_path / "ds")))
    assert [(row.number, row.value["text"]) for row in rows] == [(n + 1, f"row {n}") for n in range(3000)]
    assert rows[0].value["score"] is None


def test_saved_by_the_library_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional extra `hub` is not installed")
    data = datasets.Dataset.from_list([{"text": f"row {n}"} for n in range(5)])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([1, 2])}).save_to_disk(tmp_path / "two")
    assert len(list(read_rows(tmp_path / "one"))) == 5
    assert len(list(read_rows(tmp_path / "two"))) == 5
    assert [row.value["text"] for row in read_rows(tmp_path / "two" / "test")] == ["row 1", "row 2"]


def test_arrow_in_both_formats_and_its_progress(tmp_path: Path) -> None:
    stream = save(tmp_path / "ds") / "data-00000-of-00001.arrow"
    path = tmp_path / "b.arrow"
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, TABLE.schema) as out:
        out.write_table(TABLE)
    for source in (stream, path):
        bad = BadRows()
        assert len(list(read_rows(source, bad_rows=bad))) == 3000
        assert 0 < bad.bytes_read <= source.stat().st_size


def test_splits_without_train_ask_for_one(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["dev", "test"]}))
    with pytest.raises(FormatError, match="dev, test"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "none.arrow", 7, None])
def test_listing_cannot_leave_its_directory(tmp_path: Path, name: object) -> None:
    save(tmp_path, name="secret.arrow")
    folder = save(tmp_path / "ds")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(FormatError, match="inside the directory"):
        list(read_rows(folder))


@pytest.mark.parametrize("state", ["[]", "{", "[" * 100_000, "{}"])
def test_damaged_listing(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises((FormatError, EmptyDataError)):
        list(read_rows(tmp_path))


def test_selection_that_was_not_written_out(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(FormatError, match="flatten_indices"):
        list(read_rows(tmp_path))
    with pytest.raises(DataFileMissingError):
        list(read_rows(tmp_path / "nowhere"))


def test_parquet_rows_of_a_megabyte_come_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["x" * (1 << 20)] * 40})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="none")
    bad = BadRows()
    rows = read_rows(path, bad_rows=bad)
    next(rows)
    next(rows)
    list(rows)
    assert bad.bytes_read == path.stat().st_size
