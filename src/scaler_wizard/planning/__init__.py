"""From a job, a machine and a model's facts to a plan. Pure; never imports torch."""

from scaler_wizard.planning.rank import calculate_optimal_lora_rank

__all__ = ["calculate_optimal_lora_rank"]
