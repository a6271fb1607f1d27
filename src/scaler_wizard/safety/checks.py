"""One measured number against one limit, with the sentence a person reads. Every gate is made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One number against its limit. `limit` is None where the check does not gate."""

    value: float | None
    limit: float | None
    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's decision: it passes when every check does."""

    passed: bool
    reasons: tuple[str, ...]
    """Sentences of what failed, or of everything it passed on."""
    checks: Mapping[str, Check]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "checks": {name: asdict(check) for name, check in self.checks.items()},
        }


def verdict_of(checks: Mapping[str, Check]) -> Verdict:
    """Passed when all are; no check at all is no proof of anything, so that it does not pass."""
    failed = tuple(check.sentence for check in checks.values() if not check.ok)
    if not checks:
        return Verdict(False, ("nothing was measured",), {})
    return Verdict(not failed, failed or tuple(check.sentence for check in checks.values()), dict(checks))
