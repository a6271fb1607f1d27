"""How probes report progress: as all inference does. Torch-free."""

from scaler_wizard.inference.progress import OnProgress, no_progress

__all__ = ["OnProgress", "no_progress"]
