"""Noise that depends on (seed, step, token id) alone, and has Gumbel's distribution."""

from __future__ import annotations

import math

import pytest
import torch

from act_assets.training.noise import gumbel_noise, noise_keys


def _splitmix(state: int) -> int:
    """Steele, Lea, Flood (2014), in Python's integers."""
    z = state % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_the_bits_are_those_of_splitmix64() -> None:
    gamma = 0x9E3779B97F4A7C15
    for seed, step in ((0, 0), (1, 5), (2**63 - 1, 1000)):
        start = _splitmix(_splitmix(seed + gamma) + (step + 1) * gamma)
        uniforms = [((_splitmix(start + i * gamma) >> 8) + 0.5) / 2**56 for i in range(1, 41)]
        expected = [-math.log(-math.log1p(-u)) for u in uniforms]
        assert gumbel_noise(noise_keys([seed]), step, 40)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_row_does_not_depend_on_the_others_nor_on_the_width_of_the_vocabulary() -> None:
    together = gumbel_noise(noise_keys([3, 4, 5]), 7, 300)
    assert torch.equal(together[1], gumbel_noise(noise_keys([4]), 7, 500)[0, :300])
    assert not torch.equal(together[1], gumbel_noise(noise_keys([4]), 8, 300)[0])


def test_the_distribution_is_gumbels_and_rows_and_steps_are_independent() -> None:
    drawn = gumbel_noise(noise_keys(range(200)), 0, 5000).double()
    assert bool(drawn.isfinite().all())
    values, _ = drawn.flatten().sort()
    expected = torch.exp(-torch.exp(-values))
    distance = (expected - torch.linspace(0, 1, len(values), dtype=torch.float64)).abs().max()
    assert float(distance) < 1.95 / math.sqrt(len(values)), "Kolmogorov-Smirnov at 0.1 %"
    later = gumbel_noise(noise_keys(range(200)), 1, 5000).double()
    for other in (later, drawn.roll(1, 0), drawn.roll(1, 1)):
        correlation = torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(drawn.numel())


def test_rare_tokens_can_be_drawn() -> None:
    """torch.rand ends at 1 - 2^-24: noise above 16.6, which tokens of probability below 6e-8 need, never came."""
    keys = noise_keys(range(200))
    assert max(float(gumbel_noise(keys, step, 10_000).max()) for step in range(20)) > 16.7
