"""A routing set: merged, written whole, read back checked; what is wrong with the data is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.data.routing import METADATA, merge_sources, read_routing, routing_folder, write_routing
from scaler_wizard.data.routing_sources import RoutingSource, parse_source, source_rows
from scaler_wizard.errors import DataError, DataFileMissingError, EmptyDataError, RowError, ScalerError
from scaler_wizard.specs.experts import RoutingSection

SECTION = RoutingSection(test_rows=10, rows=40)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(name: str, count: int = 60) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{name} question {number * 7919}{name}", "completion": f"answer {number}"}
        for number in range(count)
    ]


@pytest.fixture
def sources(tmp_path: Path) -> list[RoutingSource]:
    return [
        RoutingSource(
            label, f"adapter-{label}", path=write_rows(tmp_path / f"{label}.jsonl", numbered(label))
        )
        for label in ("alpha", "beta")
    ]


def test_a_set_is_written_whole_and_read_back(tmp_path: Path, sources: list[RoutingSource]) -> None:
    merged = merge_sources(sources, SECTION, ["alpha", "beta"])
    folder = routing_folder(tmp_path, "20260131_120000")
    written = write_routing(merged, SECTION, folder, 1.0)
    assert sorted(path.name for path in folder.iterdir()) == [
        "experts.jsonl", METADATA, "test.jsonl", "train.jsonl", "val.jsonl",
    ]  # fmt: skip
    assert written.metadata["counts"] == {
        name: {"train": 32, "val": 8, "test": 10} for name in ("alpha", "beta")
    }
    row = json.loads((folder / "test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row.keys() == {"id", "image", "conversations", "metadata"}
    assert row["metadata"].keys() == {"adapter", "label", "source_dataset"}
    assert {row.adapter for row in written.train} == {"adapter-alpha", "adapter-beta"}
    again = write_routing(merged, SECTION, folder, 2.0)
    assert again.digest == written.digest, "a stage that is repeated finds its work done"
    assert not list(folder.parent.glob(".*"))


def test_what_experts_learn_from_is_never_measured_on(tmp_path: Path, sources: list[RoutingSource]) -> None:
    merged = merge_sources(sources, SECTION, ["alpha", "beta"])
    found = write_routing(merged, SECTION, routing_folder(tmp_path, "x"), 1.0)
    learned = {row.id for row in found.lessons}
    assert len(learned) == 2 * (60 - 10 - 8), "train rows, and those beyond the wanted number"
    assert not learned & {row.id for row in (*found.test, *found.val)}


def test_a_changed_set_is_refused(tmp_path: Path, sources: list[RoutingSource]) -> None:
    folder = routing_folder(tmp_path, "x")
    write_routing(merge_sources(sources, SECTION, ["alpha", "beta"]), SECTION, folder, 1.0)
    test = folder / "test.jsonl"
    test.write_bytes(test.read_bytes().replace(b"answer", b"Answer", 1))
    with pytest.raises(DataError, match=r"test\.jsonl has changed"):
        read_routing(folder)
    (folder / METADATA).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be used"):
        read_routing(folder)


def test_a_missing_expert_is_an_error_and_one_set_to_zero_is_not(sources: list[RoutingSource]) -> None:
    with pytest.raises(DataError, match="no data for gamma"):
        merge_sources(sources, SECTION, ["alpha", "beta", "gamma"])
    without = SECTION.model_copy(update={"experts": {"gamma": 0}})
    assert merge_sources(sources, without, ["alpha", "beta", "gamma"]).labels == ("alpha", "beta")
    with pytest.raises(DataError, match="counts rows of delta"):
        merge_sources(sources, SECTION.model_copy(update={"experts": {"delta": 5}}), ["alpha", "beta"])
    stray = RoutingSource("delta", "delta", generator="sort")
    with pytest.raises(DataError, match="data for delta, which is no expert here"):
        merge_sources([*sources, stray], SECTION, ["alpha", "beta"])
    with pytest.raises(DataError, match="twice for alpha"):
        merge_sources([*sources, sources[0]], SECTION, ["alpha", "beta"])


def test_the_same_input_under_two_labels_is_counted_and_kept_together(tmp_path: Path) -> None:
    shared = numbered("same", 5)
    sources = [
        RoutingSource(name, name, path=write_rows(tmp_path / f"{name}.jsonl", numbered(name) + shared))
        for name in ("a", "b")
    ]
    merged = merge_sources(sources, SECTION, ["a", "b"])
    assert merged.ambiguous == 5


def test_images_are_copied_once_and_rows_that_share_one_stay_together(tmp_path: Path) -> None:
    images = tmp_path / "shots"
    images.mkdir()
    for number in range(30):
        (images / f"{number}.png").write_bytes(b"picture %d" % number)
    sources = []
    for name in ("a", "b"):
        rows = [{**row, "image": f"{number % 30}.png"} for number, row in enumerate(numbered(name))]
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        sources.append(RoutingSource(name, name, path=path, image_root=images))
    section = SECTION.model_copy(update={"test_rows": 8})
    found = write_routing(merge_sources(sources, section, ["a", "b"]), section, tmp_path / "set", 1.0)
    names = {
        split: {row.image.name for row in found.split(split) if row.image}
        for split in ("train", "val", "test")
    }
    assert all(names.values())
    assert not names["train"] & names["test"]
    assert not names["train"] & names["val"]
    assert not names["val"] & names["test"]
    assert len(list((found.path / "images").iterdir())) <= 30


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("../secret.png", RowError, "leads outside"),
        ("/etc/passwd", RowError, "leads outside"),
        ("none.png", DataFileMissingError, "no image none.png"),
        (["x.png"], RowError, "image is not a path"),
        ("a\0b", RowError, "leads outside"),
    ],
)
def test_hostile_images_are_refused(
    tmp_path: Path, image: object, error: type[ScalerError], words: str
) -> None:
    row = {"prompt": "what is it", "completion": "a thing", "image": image}
    source = RoutingSource("a", "a", path=write_rows(tmp_path / "a.jsonl", [row]))
    with pytest.raises(error, match=words):
        list(source_rows(source, None, 0))


def test_a_link_out_of_the_image_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    shots = tmp_path / "shots"
    shots.mkdir()
    (shots / "a.png").symlink_to(tmp_path / "secret")
    row = {"prompt": "what is it", "completion": "a thing", "image": "a.png"}
    source = RoutingSource("a", "a", path=write_rows(tmp_path / "a.jsonl", [row]), image_root=shots)
    with pytest.raises(RowError, match="leads outside"):
        list(source_rows(source, None, 0))


@pytest.mark.parametrize(
    "text", ['{"prompt": 1', '{"text": "no question"}', '{"prompt": "q", "completion": ""}', "", "\0\0"]
)
def test_hostile_rows_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        list(source_rows(RoutingSource("a", "a", path=path), None, 0))


def test_too_few_rows_are_told(tmp_path: Path, sources: list[RoutingSource]) -> None:
    with pytest.raises(EmptyDataError, match="rows for test"):
        merge_sources(sources, SECTION.model_copy(update={"test_rows": 100}), ["alpha", "beta"])


def test_a_source_as_the_command_line_writes_it() -> None:
    source = parse_source("label=a,jsonl=/x/rows.jsonl,image_root=/x/shots,limit=12")
    assert (source.label, source.path, source.image_root, source.limit) == (
        "a", Path("/x/rows.jsonl"), Path("/x/shots"), 12,
    )  # fmt: skip
    for wrong in (
        "label=a",
        "jsonl=x",
        "label=a,jsonl=x,limit=0",
        "label=a,jsonl=x,limit=²",
        "a",
        "label=a,label=b",
    ):
        with pytest.raises(DataError, match="--source"):
            parse_source(wrong)


def test_generated_rows_are_enough_and_different() -> None:
    sources = [RoutingSource(name, name, generator=name) for name in ("reverse", "sort")]
    merged = merge_sources(sources, RoutingSection(rows=50, test_rows=20), ["reverse", "sort"])
    assert merged.counts() == {name: {"train": 40, "val": 10, "test": 20} for name in ("reverse", "sort")}
    assert len({row.key for row in merged.rows}) == len(merged.rows)
    with pytest.raises(DataError, match="no generated task"):
        list(source_rows(RoutingSource("a", "a", generator="nothing"), 5, 0))
