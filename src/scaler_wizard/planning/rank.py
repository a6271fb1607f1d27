"""The rank formula of earlier releases, kept importable for callers that use it."""

from __future__ import annotations

from collections.abc import Mapping


def calculate_optimal_lora_rank(
    base_model_size: float, target_capacity: float, hardware_constraints: Mapping[str, float]
) -> int:
    """LoRA rank by the old rule; `suggest_lora_config` replaces it and gives reasons.

    base = min(32, max(8, int(size * 0.01))), times min(1.5, target / size), times
    min(1, available_memory_gb / 16), rounded down, at least 1.

    Args:
        base_model_size: size of the base, in any unit (millions of parameters are usual), above 0.
        target_capacity: wanted size, same unit.
        hardware_constraints: `available_memory_gb`; 16 when absent.
    """
    assert base_model_size > 0
    base = min(32, max(8, int(base_model_size * 0.01)))
    capacity = min(1.5, target_capacity / base_model_size)
    memory = min(1.0, hardware_constraints.get("available_memory_gb", 16.0) / 16.0)
    return max(1, int(base * capacity * memory))
