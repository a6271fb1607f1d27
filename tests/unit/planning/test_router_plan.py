"""How a router is trained, from its rows."""

from __future__ import annotations

import pytest

from scaler_wizard.planning.router import suggest_router

BIG, TINY = 4_000_000_000, 1_000_000


@pytest.mark.parametrize(
    ("rows", "vision", "rank"),
    [(10, False, 2), (900, False, 2), (1800, False, 4), (3600, False, 8), (10**6, False, 32),
     (3600, True, 4), (10, True, 2)],
)  # fmt: skip
def test_rank_follows_the_rows(rows: int, vision: bool, rank: int) -> None:
    settings = suggest_router(rows, parameters=BIG, vision=vision)
    assert (settings.rank, settings.alpha) == (rank, 2 * rank)


@pytest.mark.parametrize(("rows", "rate"), [(900, 1e-4), (1800, 1e-4), (7200, 5e-5), (10**6, 1e-4 / 8**0.5)])
def test_the_rate_falls_with_the_rank_within_bounds(rows: int, rate: float) -> None:
    assert suggest_router(rows, parameters=BIG).learning_rate == pytest.approx(rate)


def test_a_narrow_model_needs_a_larger_rate_and_says_so() -> None:
    real, tiny = (suggest_router(900, parameters=count) for count in (BIG, TINY))
    assert tiny.learning_rate == pytest.approx(50 * real.learning_rate)
    assert "narrow" in tiny.reasons["learning_rate"]


@pytest.mark.parametrize(("longest", "batch", "passes"), [(20, 16, 1), (1000, 4, 4), (5000, 1, 16)])
def test_sixteen_rows_a_step_in_as_many_passes_as_they_need(longest: int, batch: int, passes: int) -> None:
    settings = suggest_router(900, parameters=BIG, longest_row=longest)
    assert (settings.batch_rows, settings.accumulation, settings.step_rows) == (batch, passes, 16)


def test_what_the_job_says_is_kept_and_every_value_has_a_reason() -> None:
    settings = suggest_router(
        900, parameters=BIG, rank=16, learning_rate=3e-3, max_steps=5, patience=7
    )  # fmt: skip
    assert (settings.rank, settings.learning_rate, settings.max_steps, settings.patience) == (16, 3e-3, 5, 7)
    assert settings.look_steps <= 5
    values = set(settings.as_dict()) - {"reasons"}
    assert set(settings.reasons) == values
    assert settings.reasons["rank"] == "set in the job"
