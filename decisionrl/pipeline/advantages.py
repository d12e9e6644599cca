"""Advantages from a row's own rewards: Monte Carlo, generalized (GAE), truncated (T-PPO), greedy baseline (ReMax)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.requirements import required, required_extra
from decisionrl.pipeline.returns import final_step, generalized_advantages, rewards_to_go, whitened, with_advantage


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """``A_t = G_t``, or ``G_t - V(s_t)``, with ``G_t = r_t + gamma G_{t+1}`` to the end of the episode (Williams 1992).

    Sets ``returns`` to G.

    Attributes:
        gamma: discount factor.
        baseline: subtract ``batch.value``.
        bootstrap: add ``gamma next_value`` where an episode was truncated or the row ends before the episode does;
            otherwise the future there counts as 0.

    Raises:
        ValueError: baseline without ``value``, or bootstrap without ``next_value``.
    """

    gamma: float = 1.0
    baseline: bool = False
    bootstrap: bool = False

    def __post_init__(self) -> None:
        _check_share("gamma", self.gamma)

    def __call__(self, batch: Trajectories) -> Trajectories:
        reward = batch.reward
        if self.bootstrap:
            goes_on = (batch.truncated | final_step(batch.mask)) & ~batch.terminated
            reward = reward + torch.where(goes_on, self.gamma * required(batch, "next_value", self), 0.0)
        returns = rewards_to_go(reward, batch.mask, batch.terminated | batch.truncated, self.gamma)
        advantage = returns - required(batch, "value", self) if self.baseline else returns
        return with_advantage(batch, advantage, returns)


@dataclass(frozen=True, kw_only=True)
class GAE:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16): ``A_t = delta_t + gamma lam A_{t+1}``.

    ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)`` with V(s_{t+1}) = ``next_value``, 0 where terminated; the trace is cut
    where an episode ends. Rows may be windows of a stream. Masked steps are passed over: A comes from the next step.
    Sets ``returns = A + V``.

    Attributes:
        gamma: discount factor.
        lam: lambda, 0 for one-step errors, 1 for Monte Carlo.
        whiten: bring A to mean 0 and variance 1 over the batch, after the returns are made from it.

    Raises:
        ValueError: no ``value`` or ``next_value``.
    """

    gamma: float = 0.99
    lam: float = 0.95
    whiten: bool = False

    def __post_init__(self) -> None:
        _check_share("gamma", self.gamma)
        _check_share("lam", self.lam)

    def __call__(self, batch: Trajectories) -> Trajectories:
        value = required(batch, "value", self)
        advantage = generalized_advantages(
            batch.reward,
            value,
            required(batch, "next_value", self),
            batch.terminated,
            batch.truncated,
            batch.mask,
            gamma=self.gamma,
            lam=self.lam,
        )
        returns = advantage + value
        return with_advantage(batch, whitened(advantage, batch.mask) if self.whiten else advantage, returns)


@dataclass(frozen=True, kw_only=True)
class TruncatedGAE:
    """GAE of answers cut by the window of generation (T-PPO, arXiv 2506.15050: extended GAE).

    Where a row's last step ends no episode, the next state was not generated yet and ``V(s_l) = V(s_{l-1})`` is
    assumed. Finished rows have ordinary advantages.

    Raises:
        ValueError: no ``value`` or ``next_value``.
    """

    estimator: GAE = field(default_factory=GAE)

    def __call__(self, batch: Trajectories) -> Trajectories:
        value, next_value = required(batch, "value", self), required(batch, "next_value", self)
        unfinished = final_step(batch.mask) & ~batch.terminated & ~batch.truncated
        assumed = batch.replace(next_value=torch.where(unfinished, value, next_value))
        return self.estimator(assumed).replace(next_value=next_value)


@dataclass(frozen=True, kw_only=True)
class GreedyBaseline:
    """``A_t = sum_{t' >= t} r_t' - R_greedy`` (ReMax, arXiv 2310.10505, alg. 1).

    R_greedy is the return of the greedy answer to the same prompt (or the greedy episode from the same start),
    ``extras["greedy_return"]`` [batch]. It does not depend on the sample, so the gradient stays unbiased. With the
    reward at the end, A is the same at all steps: ``R - R_greedy``.

    Attributes:
        difference_clip: bounds on the difference, 5 in the authors' code, which makes the gradient biased.
        discount: the difference is multiplied by ``discount^n`` with n the number of steps from t to the last,
            t among them; 0.99 in the authors' code.

    Raises:
        ValueError: no such extra.
    """

    difference_clip: float | None = None
    discount: float = 1.0

    def __post_init__(self) -> None:
        if self.difference_clip is not None and not self.difference_clip > 0:
            raise ValueError(f"difference_clip = {self.difference_clip}; valid: a positive number, or None")
        _check_share("discount", self.discount)

    def __call__(self, batch: Trajectories) -> Trajectories:
        baseline = required_extra(batch, "greedy_return", self).unsqueeze(1)
        difference = rewards_to_go(batch.reward, batch.mask, torch.zeros_like(batch.mask)) - baseline
        if self.difference_clip is not None:
            difference = difference.clamp(-self.difference_clip, self.difference_clip)
        if self.discount != 1:
            difference = difference * self.discount ** batch.mask.flip(1).cumsum(1).flip(1)
        return with_advantage(batch, difference)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value}; valid: in [0, 1]")
