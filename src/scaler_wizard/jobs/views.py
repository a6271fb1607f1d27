"""Files in the workspace that a person can look into: generated from the status, never read back.

status.json   the whole picture
queue.json    what waits, in its order, and what was finished lately
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaler_wizard.store.durable import json_text, write_atomic
from scaler_wizard.store.workspace import Workspace


def write_views(workspace: Workspace, status: Mapping[str, Any]) -> None:
    """Replace both files. Atomic, not synced: they are written again in seconds; OSError when they cannot."""
    queue = {key: status[key] for key in ("time", "queue", "recent", "inbox")}
    for name, value in (("status.json", status), ("queue.json", queue)):
        write_atomic(workspace.root / name, json_text(value) + "\n", durable=False)
