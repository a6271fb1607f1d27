from pathlib import Path
from typing import Any

import jsonschema
import pytest

from scaler_wizard.errors import UnknownKeyError
from scaler_wizard.specs.cockpit import CockpitPayload
from scaler_wizard.specs.documentation import (
    cockpit_schema,
    field_help,
    generated_files,
    grow_schema,
    job_page,
    main,
    stale_files,
    walk,
    write_files,
)
from scaler_wizard.specs.grow import GrowJob

ROOT = Path(__file__).parents[3]
JOB: dict[str, Any] = {"model": {"base_model": "seedling"}, "dataset": {"identifier": "rows.jsonl"}}
PAYLOAD: dict[str, Any] = {
    "schemaVersion": "1.0.0",
    "runId": "0b0e7a52-8a0e-4a43-9d5c-6d1f0f3f9a11",
    "timestamp": "2026-11-21T12:00:00+00:00",
    "phase": "P2",
    "status": "running",
    "qualityMetrics": {
        "perplexity": 4.2, "perplexitySlope": 0.02, "accuracy": 0.84, "emergentVibeScore": 0.75,
        "contextRetention": None, "trend": "steady", "canonicalSentence": "Ready?",
    },
    "resourceUsage": {
        "vramUsedGb": 1.0, "vramTotalGb": 16.0, "cpuUtilization": 0.5, "estimatedTimeLeftMin": 8.0,
        "tokensPerSec": 1200.0, "temperature": None, "hybridMode": False, "provider": "local",
    },
    "humanContract": {
        "version": "1.0.0", "guaranteesMet": True, "responseWindowSec": 120, "nextDecisionPoint": "P3",
    },
    "actions": ["pause", "rollback"],
    "alerts": [{"severity": "warn", "modality": "visual", "text": "loss rises"}],
    "traceId": "t-1",
    "audit": {"contract": "00"},
    "userFeedback": None,
}  # fmt: skip


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_generated_files_in_the_repository_are_fresh() -> None:
    assert stale_files(ROOT) == [], "run: python -m scaler_wizard.specs.documentation --write"


def test_check_finds_a_missing_and_a_changed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert stale_files(tmp_path) == list(generated_files())
    assert main(["--write", "--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    write_files(tmp_path)[0].write_text("edited by hand", encoding="utf-8")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert "docs/job.md is out of date" in capsys.readouterr().err


def test_payload_validates_against_the_generated_schema() -> None:
    payload = CockpitPayload.parse(PAYLOAD, "payload")
    emitted = payload.model_dump(mode="json", by_alias=True)
    assert emitted == PAYLOAD
    validator(cockpit_schema()).validate(emitted)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("runId",), "1"),
        (("status",), "sleeping"),
        (("schemaVersion",), "2.0.0"),
        (("userFeedback",), "x" * 501),
        (("qualityMetrics", "canonicalSentence"), "x" * 121),
        (("humanContract", "responseWindowSec"), 29),
        (("actions",), ["explode"]),
        (("resourceUsage", "vram_used_gb"), 1.0),
        (("extra",), 1),
    ],
)
def test_schema_refuses_what_the_model_refuses(place: tuple[str, ...], value: object) -> None:
    bad = {key: dict(part) if isinstance(part, dict) else part for key, part in PAYLOAD.items()}
    target = bad
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    assert not validator(cockpit_schema()).is_valid(bad)


def test_job_schema() -> None:
    check = validator(grow_schema())
    check.validate(JOB)
    check.validate(GrowJob.parse(JOB).model_dump(mode="json", by_alias=True))
    assert not check.is_valid(JOB | {"modle": {}})
    assert not check.is_valid({"model": {"base_model": "x"}})
    assert not check.is_valid(JOB | {"safety": {"gates": {"response_window_sec": 5}}})


def test_the_page_names_every_key_with_its_description() -> None:
    page = job_page()
    helps = list(walk(GrowJob))
    assert len(helps) > 80
    for entry in helps:
        assert entry.description.replace("|", "\\|") in page, entry.path
        assert f"| `{entry.path.rsplit('.', 1)[-1]}` |" in page


def test_links_of_the_page_lead_to_headings() -> None:
    page = job_page()
    anchors = {line[3:].replace(".", "").strip("`") for line in page.splitlines() if line.startswith("## `")}
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links == anchors


def test_field_help() -> None:
    rank = field_help("scaling.lora.rank")
    assert rank.type == "integer >= 1 and <= 1,024 or empty"
    assert (rank.default, rank.description) == ("null", "Rank r of every adapter matrix.")
    assert field_help("model").default == "required"
    assert field_help("safety").type == "section"
    assert field_help("contract").type == "section or empty"
    assert field_help("scaling.lora.target_modules").type == "list of text or one of all-linear, attention"
    with pytest.raises(UnknownKeyError, match=r'no key "scaling.lora.rnk".*did you mean "rank"'):
        field_help("scaling.lora.rnk")
    with pytest.raises(UnknownKeyError, match=r'no key "name\.x"'):
        field_help("name.x")
