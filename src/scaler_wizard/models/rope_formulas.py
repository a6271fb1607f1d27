"""The formulas of rotary position embeddings and their extensions, written out by hand from the papers.

Slow and plain on purpose, in Python's double precision: the reference that transformers' numbers are
tested against, and the source of factors where an architecture cannot name a method itself. Knows
nothing about models or configs.

Notation: d is the number of rotated head dimensions, i = 0..d/2-1 the pair, b the base (`rope_theta`),
theta_i = b^(-2i/d) the frequency in radians per token, L the original context, s the factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ntk_base(base: float, factor: float, rotary_dim: int) -> float:
    """The base of static NTK-aware scaling, b * s^(d / (d - 2)).

    bloc97, "NTK-Aware Scaled RoPE" (2023); Definition 1 of YaRN (Peng et al. 2023, arXiv 2309.00071).
    The lowest frequency is then interpolated by exactly s and the highest not at all.
    """
    return float(base * factor ** (rotary_dim / (rotary_dim - 2)))


def inv_freq_by_hand(
    method: str,
    *,
    base: float,
    rotary_dim: int,
    original_context: int,
    factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    attention_factor: float | None = None,
    short_factor: Sequence[float] = (),
    long_factor: Sequence[float] = (),
    sequence_length: int = 0,
) -> tuple[Tensor, float]:
    """Inverse frequencies [d/2] (float64, radians per token) and the factor on cos and sin.

    `sequence_length` (tokens) matters to dynamic and longrope only.
    """
    length = max(sequence_length, original_context)
    attention = 1.0
    if method == "ntk":
        frequencies = _plain(ntk_base(base, factor, rotary_dim), rotary_dim)
    elif method == "dynamic":
        # emozilla, "Dynamically Scaled RoPE" (2023): s grows with the input, and is 1 at L.
        grown = factor * length / original_context - (factor - 1)
        frequencies = _plain(ntk_base(base, grown, rotary_dim), rotary_dim)
    elif method == "linear":
        # Chen et al., "Position Interpolation" (2023, arXiv 2306.15595), eq. 4: position m becomes m / s.
        frequencies = [theta / factor for theta in _plain(base, rotary_dim)]
    elif method == "yarn":
        frequencies = _yarn(base, rotary_dim, original_context, factor, beta_fast, beta_slow)
        # YaRN eq. 22: sqrt(1/t) = 0.1 ln(s) + 1, applied to q and k through cos and sin.
        attention = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    elif method == "llama3":
        frequencies = [
            _llama3(theta, original_context, factor, low_freq_factor, high_freq_factor)
            for theta in _plain(base, rotary_dim)
        ]
    elif method == "longrope":
        # Ding et al., "LongRoPE" (2024, arXiv 2402.13753), eq. 3 without the kept start tokens; the
        # factor on attention is that of the published Phi-3 models.
        divisors = long_factor if sequence_length > original_context else short_factor
        frequencies = [theta / by for theta, by in zip(_plain(base, rotary_dim), divisors, strict=True)]
        if factor > 1:
            attention = math.sqrt(1 + math.log(factor) / math.log(original_context))
    else:
        assert method == "none", method
        frequencies = _plain(base, rotary_dim)
    if attention_factor is not None and method in ("yarn", "longrope"):
        attention = attention_factor
    return torch.tensor(frequencies, dtype=torch.float64), attention


def _plain(base: float, rotary_dim: int) -> list[float]:
    """theta_i = b^(-2i/d) (Su et al. 2021, RoFormer, arXiv 2104.09864, section 3.2.2)."""
    return [base ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)]


def _yarn(
    base: float, rotary_dim: int, context: int, factor: float, beta_fast: float, beta_slow: float
) -> list[float]:
    """NTK-by-parts (YaRN, section 3.2), with the ramp of the authors' code.

    Pairs that turn more than beta_fast times within L keep their frequency, those that turn less than
    beta_slow times are interpolated by s. Between, the paper's ramp is linear in the number of turns;
    the authors' code (github.com/jquesnelle/yarn), and every loader since, makes it linear in i.
    """

    def pair_that_turns(times: float) -> float:
        # Solves L * b^(-2i/d) = 2 pi * times for i.
        return rotary_dim * math.log(context / (2 * math.pi * times)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(beta_slow)), rotary_dim - 1)
    width = last - first if last != first else 0.001
    frequencies = []
    for i, theta in enumerate(_plain(base, rotary_dim)):
        interpolated = min(max((i - first) / width, 0.0), 1.0)
        frequencies.append(theta * (1 - interpolated) + theta / factor * interpolated)
    return frequencies


def _llama3(theta: float, context: int, factor: float, low: float, high: float) -> float:
    """Llama 3.1's scaling (github.com/meta-llama/llama-models, apply_scaling).

    With t = turns of the pair within L: more than `high` keeps the frequency, fewer than `low` divides
    it by s, and between the two are mixed linearly in t.
    """
    turns = context * theta / (2 * math.pi)
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return theta * kept + theta / factor * (1 - kept)
