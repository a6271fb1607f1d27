"""How a model is run to be measured: the room `inference` knows; probes import it from here."""

from scaler_wizard.inference.modes import DEFAULT_LIMITS, InferenceLimits, measuring, vocabulary_size

__all__ = ["DEFAULT_LIMITS", "InferenceLimits", "measuring", "vocabulary_size"]
