from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import FAKES, GIB, Gpu
from scaler_wizard.planning.recommend import KEYWORDS, parse_wish, recommend
from scaler_wizard.planning.templates import SHIPPED


@pytest.mark.parametrize("name", sorted(FAKES))
def test_budget_laptop_long_documents(llama_1b: ModelFacts, name: str) -> None:
    for wish in ("budget laptop, long documents", "BUDGET Láptop: focus on documents!"):
        assert recommend(wish, FAKES[name], llama_1b)[0].template.name == "budget_context"


@pytest.mark.parametrize(
    ("wish", "first"),
    [
        ("long_context", "max_context"),
        ("reasoning", "reasoning_boost"),
        ("creative", "creative_fusion"),
        ("general", "balanced_scaling"),
        ("I write stories and poems", "creative_fusion"),
        ("math proofs step by step", "reasoning_boost"),
        ("make it bigger and smarter", "max_parameters"),
        ("lange Bücher und Dokumente", "max_context"),
    ],
)
def test_use_cases_on_a_large_machine(llama_1b: ModelFacts, wish: str, first: str) -> None:
    assert recommend(wish, FAKES["a100_80gb"], llama_1b)[0].template.name == first


def test_unknown_text_is_general_and_said(llama_1b: ModelFacts) -> None:
    for wish in ("", "qwzx zzz", "🙂", "x" * 100_000):
        found = recommend(wish, FAKES["a100_80gb"], llama_1b)
        assert found[0].template.name == "balanced_scaling"
        assert "names nothing we know" in found[0].reasons[0]


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("reasoning, not creative", {"reasoning"}, {"creative"}),
        ("no long documents", {"general"}, {"long"}),
        ("not only stories but also math", {"creative", "reasoning"}, set()),
        ("I don't need stories. Long papers please", {"long"}, {"creative"}),
        ("ohne lange Dokumente, für Mathe", {"reasoning"}, {"long"}),
        ("not a story, but a story", {"creative"}, set()),
    ],
)
def test_negation(text: str, wanted: set[str], unwanted: set[str]) -> None:
    found = parse_wish(text)
    assert set(found.wanted) == wanted
    assert set(found.unwanted) == unwanted


def test_an_unwanted_group_lowers_its_templates(llama_1b: ModelFacts) -> None:
    hardware = FAKES["a100_80gb"]
    plain = {item.template.name: item.score for item in recommend("general", hardware, llama_1b)}
    without = {
        item.template.name: item.score for item in recommend("general, no documents", hardware, llama_1b)
    }
    assert without["balanced_scaling"] < plain["balanced_scaling"]


@given(
    st.floats(1, 100),
    st.floats(1, 100),
    st.sampled_from([words[0].strip("*") for words in KEYWORDS.values()]),
)
@settings(deadline=None)
def test_more_memory_never_lowers_a_score(llama_1b: ModelFacts, one: float, two: float, wish: str) -> None:
    scores = []
    for gib in sorted((one, two)):
        gpu = Gpu("Test", int(gib * GIB), int(gib * GIB), (8, 0))
        hardware = dataclasses.replace(FAKES["rtx_3090"], gpus=(gpu,))
        scores.append({item.template.name: item.score for item in recommend(wish, hardware, llama_1b)})
    assert all(scores[0][name] <= scores[1][name] for name in SHIPPED)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_gives_every_template_a_score(llama_1b: ModelFacts, wish: str) -> None:
    found = recommend(wish, FAKES["two_cores"], llama_1b)
    assert len(found) == len(SHIPPED)
    assert all(0 <= item.score <= 1 and item.reasons for item in found)
    assert found == recommend(wish, FAKES["two_cores"], llama_1b)


def test_a_model_without_rotary_positions_loses_long_templates(bloom: ModelFacts) -> None:
    found = {item.template.name: item for item in recommend("general", FAKES["a100_80gb"], bloom)}
    assert "cannot grow" in " ".join(found["max_context"].reasons)
