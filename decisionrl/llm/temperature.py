"""HAPO's temperature of single tokens, hotter where the policy is uncertain (arXiv 2509.16591, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.heterogeneous import EntropyStatistics, adaptive_temperature, entropy_statistics


class EntropyTemperature:
    """A pipeline step that measures the entropies of a batch, by which the tokens of the next one are sampled.

        heat = EntropyTemperature(tau=0.1)
        world = TextWorld(..., temperature=heat.at)
        source = EpisodeSource(world, ..., pipeline=[..., heat])

    The first batch is sampled at the policy's temperature. Log-probabilities are at that temperature always, as in the
    release, so what was sampled differs a little from what ratios assume.

    Args:
        tau: how far the temperature follows the entropy; it stays in [1 - tau, 1 + tau]. The paper has 0.1, the
            released scripts 0.05.
        rho: the quantile of log-entropies that divides uncertain tokens from confident ones.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, *, tau: float = 0.1, rho: float = 0.8) -> None:
        if not 0 <= tau < 1:
            raise ValueError(f"tau = {tau}; valid: in [0, 1)")
        if not 0 <= rho <= 1:
            raise ValueError(f"rho = {rho}; valid: in [0, 1]")
        self.tau, self.rho = tau, rho
        self._statistics: EntropyStatistics | None = None

    def at(self, entropy: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Temperatures of tokens whose distribution has this entropy, in nats."""
        if self._statistics is None:
            return torch.ones_like(entropy)
        return adaptive_temperature(entropy, self._statistics, tau=self.tau)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """The batch as it is.

        Raises:
            ValueError: it has no entropy.
        """
        if batch.entropy is None:
            raise ValueError("entropy is None; the temperature needs the entropy at collection")
        if batch.mask.any():
            self._statistics = entropy_statistics(batch.entropy, batch.mask, rho=self.rho)
        return batch

    def state_dict(self) -> dict[str, Any]:
        known = self._statistics
        return {"statistics": None if known is None else torch.stack([*vars(known).values()])}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        known = state["statistics"]
        self._statistics = None if known is None else EntropyStatistics(*known.unbind())
