from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from scaler_wizard.errors import SpecError, UnknownKeyError
from scaler_wizard.specs.base import Spec, inner_model, key_of
from scaler_wizard.specs.cockpit import CockpitPayload
from scaler_wizard.specs.grow import GrowJob

MINIMAL: dict[str, Any] = {"model": {"base_model": "seedling"}, "dataset": {"identifier": "rows.jsonl"}}
REQUIRED: dict[str, dict[str, Any]] = {
    "model": {"base_model": "seedling"},
    "dataset": {"identifier": "rows.jsonl"},
    "scaling.distillation": {"teacher": "big"},
    "scaling.longrope_factors": {"short_factor": [1.0], "long_factor": [2.0]},
}


def sections(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(prefix, model)]
    for name, field in model.model_fields.items():
        inner = inner_model(field.annotation)
        if inner is not None:
            key = key_of(name, field)
            found += sections(inner, f"{prefix}.{key}" if prefix else key)
    return found


SECTIONS = sections(GrowJob)


def job_with(path: str, key: str, value: object) -> dict[str, Any]:
    """A minimal job with one key set in the section at `path`."""
    job: dict[str, Any] = {name: dict(section) for name, section in MINIMAL.items()}
    place, walked = job, []
    for part in path.split(".") if path else []:
        walked.append(part)
        place = place.setdefault(part, dict(REQUIRED.get(".".join(walked), {})))
    place[key] = value
    return job


@pytest.mark.parametrize(
    ("path", "model"), SECTIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_mistyped_key_is_refused_with_the_nearest_one_at_every_level(
    path: str, model: type[BaseModel]
) -> None:
    for name, field in model.model_fields.items():
        key = key_of(name, field)
        typo = key + "x"
        with pytest.raises(UnknownKeyError) as caught:
            GrowJob.parse(job_with(path, typo, 1))
        assert f'"{path}.{typo}"'.replace('".', '"') in caught.value.found
        assert caught.value.todo == f'did you mean "{key}"?'


def test_the_walk_reaches_every_level() -> None:
    assert {path for path, _ in SECTIONS} >= {"", "scaling.lora", "safety.circuit_breaker", "contract"}
    assert len(SECTIONS) == 15


def test_a_key_like_no_other_gets_the_list_of_valid_ones() -> None:
    with pytest.raises(UnknownKeyError, match="valid keys here: response_window_sec, ask"):
        GrowJob.parse(job_with("safety.gates", "zzz", 1))


def test_the_field_name_behind_an_alias_is_not_a_key() -> None:
    with pytest.raises(UnknownKeyError, match='did you mean "communityShare"'):
        GrowJob.parse(MINIMAL | {"community_share": True})


def test_an_unknown_key_is_named_before_what_it_causes() -> None:
    with pytest.raises(UnknownKeyError, match=r'unknown key "modle" \(and 1 more\)'):
        GrowJob.parse({"modle": {"base_model": "x"}, "dataset": {"identifier": "x"}})


@pytest.mark.parametrize(
    ("path", "key", "value", "words"),
    [
        ("safety.gates", "response_window_sec", 29, "greater than or equal to 30"),
        ("safety.gates", "response_window_sec", 601, "less than or equal to 600"),
        ("training", "learning_rate", float("nan"), "finite number"),
        ("training", "learning_rate", float("inf"), "finite number"),
        ("scaling", "strategy", "lorra", "'lora'"),
        ("scaling", "context_schedule", [256, 128], "must rise strictly"),
        ("scaling", "context_schedule", [], "must rise strictly"),
        ("scaling.lora", "target_modules", 3, "scaling.lora.target_modules is the number 3. Expected"),
        ("evaluation", "depths", [0, 1], "at least five numbers"),
        ("evaluation", "depths", [0, 0.1, 0.2, 0.3, 1.1], "at least five numbers"),
        ("", "name", "../evil", "name is the text"),
        ("", "name", "a" * 65, "name is the text"),
        ("", "name", "good\n", "name is the text"),
        ("", "scaling", None, "scaling is empty"),
        ("", "recipe", "continual", "'grow'"),
        ("dataset", "identifier", "", "dataset.identifier is empty"),
    ],
)
def test_wrong_values_name_key_found_and_expected(path: str, key: str, value: object, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        GrowJob.parse(job_with(path, key, value))
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_job_that_is_no_mapping(value: object) -> None:
    with pytest.raises(SpecError, match="a mapping of section names"):
        GrowJob.parse(value)


def test_missing_section_is_named() -> None:
    with pytest.raises(SpecError, match='"model" is missing'):
        GrowJob.parse({"dataset": {"identifier": "x"}})


def test_specs_are_frozen() -> None:
    job = GrowJob.parse(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        job.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        job.training.max_steps = 1  # type: ignore[misc]


def test_a_job_survives_its_own_file_form() -> None:
    job = GrowJob.parse(MINIMAL | {"communityShare": True, "scaling": {"distillation": {"teacher": "big"}}})
    assert GrowJob.parse(job.model_dump(mode="json", by_alias=True)) == job


@pytest.mark.parametrize("root", [GrowJob, CockpitPayload])
def test_every_field_and_class_is_documented(root: type[Spec]) -> None:
    for path, model in sections(root):
        assert (model.__doc__ or "").strip(), model.__name__
        for name, field in model.model_fields.items():
            assert len(field.description or "") > 8, f"{path}.{name}"
