"""One way to stretch rotary positions, as plain data. Knows nothing about models or transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from scaler_wizard.errors import ModelError

RopeMethod = Literal["none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"]

MAX_CONTEXT = 1 << 24


@dataclass(frozen=True)
class RopeSetting:
    """One way to read positions up to `target_context` with a model made for `original_context`.

    Lengths are in tokens. `factor` = target / original is the field's s. The remaining fields are the
    methods' own parameters with their papers' defaults; LongRoPE's divisors (rotary dim / 2 values
    each) have none and must be given.
    """

    method: RopeMethod
    original_context: int
    target_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in get_args(RopeMethod):
            raise ModelError(
                f'"{self.method}" is no RoPE method', f"one of {', '.join(get_args(RopeMethod))}"
            )
        lengths = (self.original_context, self.target_context)
        if not all(type(length) is int and length <= MAX_CONTEXT for length in lengths):
            raise ModelError(f"context lengths {lengths!r}", f"whole numbers up to {MAX_CONTEXT:,}")
        if not 1 <= self.original_context <= self.target_context:
            raise ModelError(
                f"a context of {self.target_context} tokens from an original of {self.original_context}",
                "a target at least as long as the original context",
                "leave target_context empty to keep the base context",
            )
        if not (0 < self.beta_slow < self.beta_fast < math.inf):
            raise ModelError(
                f"beta_slow {self.beta_slow} and beta_fast {self.beta_fast}", "0 < beta_slow < beta_fast"
            )
        if not (0 < self.low_freq_factor < self.high_freq_factor < math.inf):
            raise ModelError(
                f"low_freq_factor {self.low_freq_factor} and high_freq_factor {self.high_freq_factor}",
                "0 < low_freq_factor < high_freq_factor",
            )
        positive = (*self.short_factor, *self.long_factor)
        if self.attention_factor is not None:
            positive = (*positive, self.attention_factor)
        if not all(0 < value < math.inf for value in positive):
            raise ModelError("a RoPE factor that is not a positive number", "finite numbers above 0")
        if self.method == "longrope" and not (self.short_factor and self.long_factor):
            raise ModelError("LongRoPE without its factors", "short_factor and long_factor as published")

    @property
    def factor(self) -> float:
        """s = target / original, always from the base model's own context."""
        return self.target_context / self.original_context

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields, and the factor for readers."""
        plain = asdict(self)
        return {**plain, "short_factor": list(self.short_factor), "long_factor": list(self.long_factor),
                "factor": self.factor}  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RopeSetting:
        """Inverse of `as_dict`.

        Raises:
            ModelError: an unknown key, a missing one, or a factor that is not target / original.
        """
        known = {field.name for field in fields(cls)}
        unknown = set(value) - known - {"factor"}
        missing = {"method", "original_context", "target_context"} - set(value)
        if unknown or missing:
            raise ModelError(f"a RoPE setting with keys {sorted(value)}", f"keys of {sorted(known)}")
        plain = {key: value[key] for key in known & set(value)}
        try:
            for key in ("short_factor", "long_factor"):
                plain[key] = tuple(float(item) for item in plain.get(key, ()))
            setting = cls(**plain)
        except (TypeError, ValueError) as error:
            raise ModelError(f"a RoPE setting with a value of the wrong kind ({error})", "numbers") from None
        if "factor" in value and value["factor"] != setting.factor:
            raise ModelError(
                f"a RoPE factor of {value['factor']}",
                f"{setting.factor} (target {setting.target_context} / original {setting.original_context})",
            )
        return setting
