"""Log-probabilities of given tokens: the room `inference` computes them; probes import them from here."""

from scaler_wizard.inference.scoring import TargetScores, score_positions, score_targets

__all__ = ["TargetScores", "score_positions", "score_targets"]
