"""Least squares for linear MDPs from sufficient statistics, for many runs at once.

With phi_tau the features and s'_tau the next state of step tau of stage h, and lambda the ridge weight:

    Lambda_h = lambda I + sum_tau phi_tau phi_tau^T
    C_h      = Lambda_h^{-1} sum_tau phi_tau onehot(s'_tau)^T

The regression on any function f of the next state is then Lambda_h^{-1} sum_tau phi_tau f(s'_tau) = C_h f, so that no
history is kept, and an episode costs the same however many came before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.envs.linear_mdp.model import LinearMDP
from decisionrl.envs.linear_mdp.sampling import Episodes


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a least-squares method is told of the world: everything but where actions lead.

    Attributes:
        features: phi, [*, H, S, A, d] with [*] = () or [runs]. They need not be on the simplex. An action without
            features, all of them 0, is worth its reward and nothing after it.
        rewards: r_h(s, a), [*, H, S, A].
        caps: upper bounds of V_0, ..., V_H, [H + 1], the last one 0.
        fail_state: the state of value 0 that makes min_s V_h(s) = 0; None where there is none.
        learn_rewards: estimate rewards as phi . theta from what was paid, instead of knowing them. (Those of actions
            without features stay known.)
    """

    features: Float[Tensor, "*batch H S A d"]
    rewards: Float[Tensor, "*batch H S A"]
    caps: Float[Tensor, " stages"]
    fail_state: int | None = None
    learn_rewards: bool = False

    @classmethod
    def of(cls, mdp: LinearMDP, *, learn_rewards: bool = False) -> Problem:
        """With the MDP's own features, and V_h <= (H - h) max_reward."""
        remaining = torch.arange(mdp.horizon, -1, -1, dtype=torch.float64, device=mdp.device)
        return cls(
            features=mdp.features,
            rewards=mdp.rewards,
            caps=mdp.max_reward * remaining,
            fail_state=mdp.fail_state,
            learn_rewards=learn_rewards,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """H, S, A, d."""
        stages, states, actions, d = self.features.shape[-4:]
        return stages, states, actions, d

    @cached_property
    def caps_list(self) -> list[float]:
        """The caps as plain numbers."""
        caps: list[float] = self.caps.tolist()
        return caps

    @cached_property
    def rows(self) -> Float[Tensor, "*batch H SA d"]:
        """The features with one row for each s A + a."""
        return self.features.flatten(-3, -2)

    @cached_property
    def known_rewards(self) -> Float[Tensor, "*batch H S A"]:
        """The part of the rewards that is not estimated."""
        if not self.learn_rewards:
            return self.rewards
        return torch.where((self.features == 0).all(-1), self.rewards, 0.0)

    def predict(self, h: int, weights: Float[Tensor, "runs d"]) -> Float[Tensor, "runs SA"]:
        """phi_h(s, a) . w for every s A + a."""
        rows = self.rows[..., h, :, :]
        return weights @ rows.mT if rows.dim() == 2 else (rows @ weights.unsqueeze(-1)).squeeze(-1)

    def features_of(self, pairs: Int[Tensor, "runs H"]) -> Float[Tensor, "runs H d"]:
        """phi_h of the pairs s A + a taken at every stage."""
        if self.rows.dim() == 3:
            return self.rows[self._stages, pairs]
        return self.rows[torch.arange(len(pairs), device=pairs.device).unsqueeze(1), self._stages, pairs]

    @cached_property
    def _stages(self) -> Int[Tensor, " H"]:
        return torch.arange(self.shape[0], device=self.rewards.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimates:
    """What the regressions say.

    Attributes:
        inverse: Lambda_h^{-1}, [runs, H, d, d].
        transitions: C_h, [runs, H, d, S].
        rewards: Lambda_h^{-1} sum_tau phi_tau r_tau, [runs, H, d].
    """

    inverse: Float[Tensor, "runs H d d"]
    transitions: Float[Tensor, "runs H d S"]
    rewards: Float[Tensor, "runs H d"]


class RecursiveLeastSquares:
    """One episode of every run at a time, in O(H (d^2 + d S)): recursive least squares.

    A step with features phi and outcome y (the indicator of the next state, and the reward) changes, with k =
    Lambda^{-1} phi / (1 + phi^T Lambda^{-1} phi),

        Lambda^{-1} <- Lambda^{-1} - k phi^T Lambda^{-1}        C <- C + k (y - C^T phi)^T

    Attributes:
        log_volume: log det Lambda_h - log det(lambda I), [runs, H].

    Raises:
        ValueError: a ridge weight that is not positive.
    """

    def __init__(self, problem: Problem, *, runs: int, ridge: float) -> None:
        _check_ridge(ridge)
        stages, states, _, d = problem.shape
        self.problem, self.runs = problem, runs
        # [Lambda^{-1} | C], which one product and one update of rank one serve together.
        self._solved = problem.rewards.new_zeros(runs * stages, d, d + states + 1)
        self._solved[:, range(d), range(d)] = 1 / ridge
        self.log_volume = problem.rewards.new_zeros(runs, stages)

    def add(self, episodes: Episodes) -> None:
        """Take in one episode of every run: states [runs, H + 1]."""
        _, _, actions, d = self.problem.shape
        states = episodes.states
        phi = self.problem.features_of(states[:, :-1] * actions + episodes.actions).flatten(0, 1).unsqueeze(-1)
        change = phi.mT @ self._solved
        gain = change[..., :d].mT
        growth = 1 + phi.mT @ gain
        gain = gain / growth
        change.neg_()
        change.scatter_add_(2, states[:, 1:].reshape(-1, 1, 1) + d, torch.ones_like(growth))
        change[..., -1:] += episodes.rewards.reshape(-1, 1, 1)
        self._solved.baddbmm_(gain, change)
        self.log_volume += growth.view_as(self.log_volume).log()

    def estimates(self) -> Estimates:
        """Views of the current statistics, valid until the next ``add``."""
        stages, _, _, d = self.problem.shape
        solved = self._solved.view(self.runs, stages, d, -1)
        return Estimates(inverse=solved[..., :d], transitions=solved[..., d:-1], rewards=solved[..., -1])

    def state_dict(self) -> dict[str, Any]:
        return {"solved": self._solved, "log_volume": self.log_volume}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._solved.copy_(state["solved"])
        self.log_volume.copy_(state["log_volume"])


class CountedLeastSquares:
    """Many episodes of every run at a time, kept as how often each step occurred; steps may be weighted.

    Raises:
        ValueError: a ridge weight that is not positive.
    """

    def __init__(self, problem: Problem, *, runs: int, ridge: float) -> None:
        _check_ridge(ridge)
        stages, states, actions, _ = problem.shape
        self.problem, self.runs = problem, runs
        self._ridge = ridge
        self._counts = problem.rewards.new_zeros(runs, stages, states * actions, states)
        self._paid = problem.rewards.new_zeros(runs, stages, states * actions)

    def add(self, episodes: Episodes) -> None:
        """Take in episodes of every run: states [runs, episodes, H + 1]."""
        stages, states, actions, _ = self.problem.shape
        pairs = episodes.states[..., :-1] * actions + episodes.actions
        run = torch.arange(self.runs, device=pairs.device).view(-1, 1, 1)
        cell = (run * stages + torch.arange(stages, device=pairs.device)) * (states * actions) + pairs
        ones = self._counts.new_ones(cell.numel())
        self._counts.view(-1).index_add_(0, (cell * states + episodes.states[..., 1:]).flatten(), ones)
        self._paid.view(-1).index_add_(0, cell.flatten(), episodes.rewards.flatten())

    def estimates(self, *, weights: Float[Tensor, "runs H S A"] | None = None, ridge: float | None = None) -> Estimates:
        """The weighted regressions: every step counts w_h(s, a) times, once by default.

        ridge: instead of that of the object.
        """
        rows = self.problem.rows
        counts, paid = self._counts, self._paid
        if weights is not None:
            weight = weights.flatten(-2)
            counts, paid = counts * weight.unsqueeze(-1), paid * weight
        gram = rows.mT @ (counts.sum(-1, keepdim=True) * rows)
        gram.diagonal(dim1=-2, dim2=-1).add_(self._ridge if ridge is None else ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        learned = inverse @ (rows.mT @ torch.cat([counts, paid.unsqueeze(-1)], -1))
        return Estimates(inverse=inverse, transitions=learned[..., :-1], rewards=learned[..., -1])

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts, "paid": self._paid}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._counts.copy_(state["counts"])
        self._paid.copy_(state["paid"])


def _check_ridge(ridge: float) -> None:
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge = {ridge}; valid: a positive number")
