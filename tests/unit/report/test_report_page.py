from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.errors import RunNotFoundError, WorkspaceError
from scaler_wizard.report.page import render, write_report
from scaler_wizard.report.record import load_record

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = (
    '"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)> '
    "$\\frac{ {{ 7*7 }} \x1b[31m \u202e"
)


class Page(HTMLParser):
    """Tags with attributes, ids, and whether every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text())


def assert_self_contained(page: Page) -> None:
    assert not page.open
    assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & {
        tag for tag, _ in page.tags
    }
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert (attrs.get(name) or "#").startswith("#")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attrs or attrs[name] in ids


def test_a_finished_run_becomes_one_small_self_contained_file_quickly(run_dir: Path) -> None:
    started = time.process_time()
    path = write_report(run_dir)
    assert time.process_time() - started < 4
    assert path == run_dir / "report.html"
    assert path.stat().st_size < 1_500_000
    source = path.read_text()
    assert_self_contained(Page(source))
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source


def test_every_section_of_a_finished_run_is_there(run_dir: Path) -> None:
    page = page_of(run_dir)
    for sentence in (
        "Effective context 512 of 512 tokens requested.",
        "That is 4 times the 128 tokens it had before, by yarn scaling",
        "P2 passed untrained",
        "needle accuracy at 512",
        "0.970 [0.920, 0.990]",
        "needles held at 5 of 5 depths",
        "a row of beans behind the shed",
        "Ada Example <ada@example.org>",
        "the job is the one that was signed",
        "largest logit difference 1.1e-05; same first choice at 100.00% of 1,234 positions",
        "scaler rollback grow-0001 --to-phase P2",
        "A rollback rehearsed in this run took 0.01 s.",
        "scaler run job.yaml",
        "Sapphire Rapids",
        "16.00 GiB",
        "12 steps (1 to 12 of 12)",
        "gates were approved by the run itself",
    ):
        assert sentence in page.text
    assert "Not in this report" not in page.text
    assert len(page.named("figure")) == 6
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.named("th"))
    assert page.named("html") == [{"lang": "en"}]


def test_an_edited_job_is_named_in_the_contract_section(run_dir: Path) -> None:
    job = json.loads((run_dir / "job.json").read_text())
    job["training"] = {"max_steps": 5}
    (run_dir / "job.json").write_text(json.dumps(job))
    assert "the stored job does not match" in page_of(run_dir).text


def test_an_unfinished_run_shows_what_there_is_and_says_what_is_missing(unfinished_dir: Path) -> None:
    page = page_of(unfinished_dir)
    assert_self_contained(page)
    assert "2 phases committed so far: P0 and P1." in page.text
    assert "Failed: the breaker stopped it" in page.text
    assert "What to do: roll back to P1" in page.text
    assert "result.json is not there: the run has not reached its end" in page.text
    assert "loss spike: 9.1 is 4.2x the window" in page.text
    assert {figure["id"] for figure in page.named("figure")} == {
        "chart-loss",
        "chart-quality",
        "chart-memory",
    }
    assert "--to-phase P2" not in page.text


def test_a_run_without_any_readable_file_still_gives_a_page(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "result.json").write_text('{"table": [')
    (run / "job.json").write_bytes(b"\xff\xfe")
    (run / "events.jsonl").write_bytes(b'{"type": "step"\n\x00\x00\n{"type":"note","text":"torn')
    page = page_of(run)
    assert_self_contained(page)
    for name in ("result.json", "job.json", "plan.json", "run.json", "events.jsonl"):
        assert name in page.text
    assert "No phase has been committed yet." in page.text


def test_a_section_that_the_result_lacks_is_named(run_dir: Path, result: dict[str, Any]) -> None:
    del result["needle"]
    (run_dir / "result.json").write_text(json.dumps(result))
    page = page_of(run_dir)
    assert "result.json says nothing about the needle probe." in page.text
    assert "chart-needle" not in [figure["id"] for figure in page.named("figure")]


def poisoned(value: Any) -> Any:
    """Every string, keys included where they are names, replaced by a hostile one."""
    if isinstance(value, str):
        return HOSTILE + value
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return value


def test_no_text_of_a_run_can_become_markup(run_dir: Path, result: dict[str, Any]) -> None:
    result = poisoned(result)
    result["candidates"] = {HOSTILE + phase: rows for phase, rows in result["candidates"].items()}
    (run_dir / "result.json").write_text(json.dumps(result))
    for name in ("job.json", "plan.json"):
        (run_dir / name).write_text(json.dumps(poisoned(json.loads((run_dir / name).read_text()))))
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    for event in lines:
        for key in ("phase", "text", "title", "checkpoint", "by"):
            if key in event:
                event[key] = HOSTILE + event[key]
    (run_dir / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    source = write_report(run_dir).read_text()
    page = Page(source)
    assert_self_contained(page)
    assert "alert(1)" in page.text
    assert "<script" not in source
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert "49" not in page.text.split("alert(1)")[1][:60]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_result_with_any_part_replaced_still_gives_a_page(
    run_dir: Path, result: dict[str, Any], data: st.DataObject
) -> None:
    changed = copy.deepcopy(result)
    target: Any = changed
    while True:  # walk to a random place and put anything there
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        if isinstance(target[key], dict | list) and target[key] and data.draw(st.integers(0, 3)):
            target = target[key]
            continue
        target[key] = data.draw(json_values)
        break
    (run_dir / "result.json").write_text(json.dumps(changed))
    assert not Page(render(load_record(run_dir))).open


@pytest.mark.parametrize("extreme", [-1e17, 5e-324, 10**400])
def test_numbers_of_absurd_size_are_shown_not_fatal(
    run_dir: Path, result: dict[str, Any], extreme: float
) -> None:
    for row in result["nll_by_position"]["after"][:2] + result["table"] + result["phases"]:
        for key in ("nll", "high", "after", "baseline", "perplexity", "seconds", "accuracy"):
            row[key] = extreme
    result["memory"] = dict.fromkeys(result["memory"], extreme)
    result["candidates"]["P2"][0]["nll_difference"] = extreme
    result["base_context"] = extreme
    (run_dir / "result.json").write_text(json.dumps(result))
    assert_self_contained(page_of(run_dir))


def test_the_target_is_replaced_whole_or_not_at_all(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "page.html"
    with pytest.raises(WorkspaceError, match=r"page\.html"):
        write_report(run_dir, target)
    target.parent.mkdir()
    target.write_text("old")
    assert write_report(run_dir, target) == target
    assert target.read_text().startswith("<!doctype html>")
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="not a run directory"):
        write_report(tmp_path / "nothing")


def test_the_report_imports_no_torch_and_no_pyplot() -> None:
    code = (
        "import sys, scaler_wizard.report.page; "
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
