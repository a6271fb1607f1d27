"""Which run a person means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaler_wizard.jobs.service import Service


def test_without_a_name_the_run_at_work_is_meant(
    service: Service, run_id: str, request_of: dict[str, Any], begin: Callable[[str], int]
) -> None:
    newer = str(service.handle(request_of)["run"])
    assert service.handle({"op": "find_run", "name": ""})["run"] == newer
    begin(run_id)
    assert service.handle({"op": "find_run", "name": ""})["run"] == run_id
    assert service.handle({"op": "find_run", "name": "latest"})["run"] == newer
