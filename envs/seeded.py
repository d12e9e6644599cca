"""Random numbers that are a function of a seed: each copy of a batched world has its own, whatever the others do."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GAMMA, _FIRST, _SECOND = (each - 2**64 for each in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Constants of SplitMix64 (Steele, Lea and Flood 2014) as 64-bit integers with a sign; products wrap."""


def uniform(seed: Int[Tensor, " copies"], step: Int[Tensor, " copies"], count: int) -> Float[Tensor, "copies count"]:
    """Numbers that are uniform on (0, 1] and determined by the seed and the step, in float64."""
    number = torch.arange(1, count + 1, device=seed.device)
    mixed = _mixed(_mixed(_mixed(seed) + step)[:, None] + number * _GAMMA)
    return (_shifted(mixed, 11) + 1).double() * 2.0**-53


def _mixed(value: Int[Tensor, ...]) -> Int[Tensor, ...]:
    value = value + _GAMMA
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def _shifted(value: Int[Tensor, ...], bits: int) -> Int[Tensor, ...]:
    """The bits of a 64-bit integer shifted to the right, zeros coming in from the left."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
