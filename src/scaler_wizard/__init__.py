"""Scaler Wizard: grow a small open language model on your own hardware, with a way back."""

__version__ = "0.1.0"
