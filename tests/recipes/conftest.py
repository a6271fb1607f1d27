"""What tests that run whole recipes work with."""

from __future__ import annotations

from harness.fixtures import harness, one_thread, workspace

__all__ = ["harness", "one_thread", "workspace"]
