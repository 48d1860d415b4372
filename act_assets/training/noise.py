"""Gumbel noise that is a function of (seed, step, token id): the same on every device and in every batch.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) started at a key made of seed and step, one number per token id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))


def noise_keys(seeds: Sequence[int], device: Any = None) -> torch.Tensor:
    """One key per row, [rows], int64."""
    import torch

    return _mix(torch.tensor([_signed(seed + _GAMMA) for seed in seeds], dtype=torch.int64, device=device))


def gumbel_noise(keys: torch.Tensor, step: int, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise of one decoding step, [rows, vocabulary], fp32."""
    import torch

    starts = _mix(keys + _signed((step + 1) * _GAMMA))
    counters = torch.arange(1, vocabulary + 1, device=keys.device) * _signed(_GAMMA)
    bits = _mix(starts[:, None] + counters)
    bits >>= 8
    bits &= (1 << 56) - 1
    # fp32 is finest near 0, and -log(-log1p(-u)) is steepest there: tokens of any probability can be drawn.
    uniform = bits.float().add_(0.5).mul_(2.0**-56).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _signed(number: int) -> int:
    """The int64 with the same lowest 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, in place."""
    for shift, factor in _ROUNDS:
        z ^= (z >> shift).bitwise_and_((1 << (64 - shift)) - 1)  # zeros come in; the operator keeps the sign
        if factor is not None:
            z *= _signed(factor)
    return z
