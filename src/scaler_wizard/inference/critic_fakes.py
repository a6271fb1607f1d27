"""Askers without a model, for tests of what a critic's replies amount to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scaler_wizard.inference.critic import Asked


@dataclass
class ScriptedAsker:
    """Replies and option scores by a rule of the prompt's text; remembers what it was asked."""

    reply: Callable[[str], str] = lambda text: text
    score: Callable[[str], tuple[float, float]] = lambda text: (0.0, 0.0)
    asked: dict[str, list[Asked]] = field(default_factory=dict)
    """What was asked, by the key of the call."""

    def replies(self, key: str, asked: Sequence[Asked]) -> list[str]:
        """See `critic.Asker.replies`."""
        self.asked[key] = list(asked)
        return [self.reply(item.text) for item in asked]

    def option_scores(self, key: str, asked: Sequence[Asked]) -> list[tuple[float, float]]:
        """See `critic.Asker.option_scores`."""
        self.asked[key] = list(asked)
        return [self.score(item.text) for item in asked]
