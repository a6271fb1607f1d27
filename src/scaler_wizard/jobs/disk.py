"""Whether there is enough free disk to start something. Pure; who measures and who acts is elsewhere."""

from __future__ import annotations

from typing import Literal

from scaler_wizard.specs.continual import DiskSection

GB = 1e9
DiskVerdict = Literal["ok", "warn", "refuse"]


def disk_verdict(free_bytes: int, section: DiskSection) -> DiskVerdict:
    """Refuse below `refuse_below_gb`, warn below `warn_below_gb`."""
    if free_bytes < section.refuse_below_gb * GB:
        return "refuse"
    return "warn" if free_bytes < section.warn_below_gb * GB else "ok"
