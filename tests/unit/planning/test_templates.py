from __future__ import annotations

from pathlib import Path

import pytest

from scaler_wizard.errors import SpecError, UnknownKeyError
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.templates import SHIPPED, fit_template, load_templates


def test_the_six_of_the_design() -> None:
    table = {
        name: (t.rank, t.alpha, t.context_multiplier, t.distillation, t.min_vram_gb, t.telemetry)
        for name, t in SHIPPED.items()
    }
    assert table == {
        "balanced_scaling": (16, 48, 4, True, 16, "standard"),
        "max_context": (12, 32, 16, False, 20, "high_resolution"),
        "max_parameters": (32, 96, 2, True, 18, "standard"),
        "budget_context": (8, 24, 2, False, 8, "standard"),
        "reasoning_boost": (28, 84, 3, True, 16, "detailed"),
        "creative_fusion": (20, 60, 6, True, 24, "exploratory"),
    }


def test_less_vram_halves_rank_and_multiplier() -> None:
    fitted = fit_template(SHIPPED["max_context"], FAKES["laptop_8gb_gpu"])
    assert (fitted.template.rank, fitted.template.alpha, fitted.template.context_multiplier) == (6, 16, 8)
    assert "12 -> 6" in fitted.reasons[0]
    assert fit_template(SHIPPED["max_context"], FAKES["a100_80gb"]).reasons == ()


def test_floors() -> None:
    low = SHIPPED["budget_context"].model_copy(update={"rank": 6, "min_vram_gb": 16})
    fitted = fit_template(low, FAKES["laptop_8gb_gpu"]).template
    assert (fitted.rank, fitted.context_multiplier) == (4, 2)
    lower = low.model_copy(update={"rank": 2, "context_multiplier": 1.0})
    fitted = fit_template(lower, FAKES["laptop_8gb_gpu"]).template
    assert (fitted.rank, fitted.context_multiplier) == (2, 1)


def test_without_a_gpu_ram_stands_in_and_is_said() -> None:
    fitted = fit_template(SHIPPED["balanced_scaling"], FAKES["budget_laptop"])
    assert fitted.template.rank == 8
    assert "RAM" in fitted.reasons[0]
    assert fit_template(SHIPPED["balanced_scaling"], FAKES["two_cores"]).template.rank == 16


def test_own_templates(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "mine.yaml").write_text("rank: 4\nalpha: 8\ncontext_multiplier: 2\nmin_vram_gb: 4\n")
    assert load_templates(tmp_path)["mine"].rank == 4
    assert set(load_templates(None)) == set(SHIPPED)
    (folder / "mine.yaml").write_text("rnk: 4\nalpha: 8\ncontext_multiplier: 2\nmin_vram_gb: 4\n")
    with pytest.raises(UnknownKeyError, match="rank"):
        load_templates(tmp_path)
    (folder / "mine.yaml").write_text(
        "name: other\nrank: 4\nalpha: 8\ncontext_multiplier: 2\nmin_vram_gb: 4\n"
    )
    with pytest.raises(SpecError, match="names itself"):
        load_templates(tmp_path)
    (folder / "mine.yaml").rename(folder / "max_context.yaml")
    (folder / "max_context.yaml").write_text("rank: 4\nalpha: 8\ncontext_multiplier: 2\nmin_vram_gb: 4\n")
    with pytest.raises(SpecError, match="ships"):
        load_templates(tmp_path)
