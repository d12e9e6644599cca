"""Linear MDPs as data: P_h(s' | s, a) = sum_i phi_i(s, a) mu_{h,i}(s'), for finitely many states and stages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-9
"""How far sums of probabilities and features may be from 1, and rewards outside their range."""


class FeatureError(ValueError):
    """Features that are not on the simplex."""


class FactorError(ValueError):
    """Factors, or an initial distribution, that are not probability distributions."""


class RewardError(ValueError):
    """Rewards outside their range, or a fail state that pays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMDP:
    """A finite-horizon linear MDP, or many of them along leading dimensions.

    At stage h = 0, ..., H - 1 action a in state s pays r_h(s, a) and leads to s' with probability
    P_h(s' | s, a) = sum_i phi_i(s, a) mu_{h,i}(s') (arXiv 2402.15399, Assumption 3.1). With one-hot features this is
    any tabular MDP. The leading dimensions [*] of the tensors (instances, seeds, perturbations) broadcast; what all
    share is stored once. Nothing here may be changed in place.

    Attributes:
        features: phi, [S, A, d] where all stages share them (stored as a view [H, S, A, d]), or [*, H, S, A, d]. Every
            phi(s, a) >= 0 sums to 1.
        factors: mu, [*, H, d, S]; every mu_{h,i} is a distribution over states.
        rewards: r, [*, H, S, A], in [0, max_reward]. Linear rewards are ``linear_rewards(features, theta)``.
        initial: distribution of the first state, [*, S].
        fail_state: a state that pays nothing and is never left, so that min_s V_h(s) = 0; None where there is none.
        max_reward: 1, but for rewards in other units, such as the payoffs of an option.
        name: for messages.

    Raises:
        FeatureError, FactorError, RewardError: with the first wrong entry.
        ValueError: shapes that do not fit, or tensors that are not float64.
    """

    features: Float[Tensor, "*batch H S A d"]
    factors: Float[Tensor, "*batch H d S"]
    rewards: Float[Tensor, "*batch H S A"]
    initial: Float[Tensor, "*batch S"]
    fail_state: int | None = None
    max_reward: float = 1.0
    name: str = "linear MDP"

    def __post_init__(self) -> None:
        if self.features.dim() == 3:
            stages = self.factors.shape[-3]
            object.__setattr__(self, "features", self.features.expand(stages, -1, -1, -1))
        self._check_shapes()
        self._check_features()
        self._check_distributions("factors", self.factors)
        self._check_distributions("initial", self.initial)
        self._check_rewards()
        self._check_fail_state()

    @property
    def horizon(self) -> int:
        """H, the number of stages."""
        return self.rewards.shape[-3]

    @property
    def num_states(self) -> int:
        """S."""
        return self.rewards.shape[-2]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.rewards.shape[-1]

    @property
    def num_features(self) -> int:
        """d."""
        return self.features.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions, broadcast."""
        leading = (
            self.features.shape[:-4],
            self.factors.shape[:-3],
            self.rewards.shape[:-3],
            self.initial.shape[:-1],
        )
        return torch.Size(np.broadcast_shapes(*leading))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.rewards.device

    @cached_property
    def kernel(self) -> Float[Tensor, "*batch H S A S"]:
        """P_h(s' | s, a)."""
        return torch.einsum("...hsad,...hdt->...hsat", self.features, self.factors)

    def to(self, device: torch.device | str) -> LinearMDP:
        """The same on another device."""
        return LinearMDP(
            features=self.features.to(device),
            factors=self.factors.to(device),
            rewards=self.rewards.to(device),
            initial=self.initial.to(device),
            fail_state=self.fail_state,
            max_reward=self.max_reward,
            name=self.name,
        )

    def _check_shapes(self) -> None:
        named = {"features": self.features, "factors": self.factors, "rewards": self.rewards, "initial": self.initial}
        for field, tensor in named.items():
            if tensor.dtype != torch.float64:
                raise ValueError(f"{self.name}: {field} is {tensor.dtype}; valid: torch.float64")
        if self.features.dim() < 4 or self.factors.dim() < 3 or self.rewards.dim() < 3 or self.initial.dim() < 1:
            shapes = ", ".join(f"{field} {list(tensor.shape)}" for field, tensor in named.items())
            raise ValueError(
                f"{self.name}: {shapes}; valid: features [*, H, S, A, d] or [S, A, d], factors [*, H, d, S], "
                "rewards [*, H, S, A], initial [*, S]"
            )
        stages, states, actions, d = self.features.shape[-4:]
        wanted = {
            "factors": (stages, d, states),
            "rewards": (stages, states, actions),
            "initial": (states,),
        }
        for field, shape in wanted.items():
            tail = tuple(named[field].shape[-len(shape) :])
            if tail != shape:
                raise ValueError(
                    f"{self.name}: {field} ends in {tail}; valid with features [..., H, S, A, d] = "
                    f"{(stages, states, actions, d)}: {shape}"
                )
        try:
            _ = self.batch_shape
        except ValueError as error:
            raise ValueError(f"{self.name}: the leading dimensions do not broadcast: {error}") from None

    def _check_features(self) -> None:
        phi = self.features
        bad = ~((phi >= -TOLERANCE).all(-1) & ((phi.sum(-1) - 1).abs() <= TOLERANCE))
        if bad.any():
            entry = _first(bad)
            raise FeatureError(
                f"{self.name}: features[{_listed(entry)}] = {_short(phi[entry])}, which sums to "
                f"{float(phi[entry].sum()):.9g}; valid: non-negative numbers that sum to 1 (index: ..., stage, state, "
                "action)"
            )

    def _check_distributions(self, field: str, distributions: Tensor) -> None:
        bad = ~((distributions >= -TOLERANCE).all(-1) & ((distributions.sum(-1) - 1).abs() <= TOLERANCE))
        if bad.any():
            entry = _first(bad)
            index = " (index: ..., stage, factor)" if field == "factors" else ""
            place = f"[{_listed(entry)}]" if entry else ""
            raise FactorError(
                f"{self.name}: {field}{place} = {_short(distributions[entry])}, which sums to "
                f"{float(distributions[entry].sum()):.9g}; valid: a probability distribution over states{index}"
            )

    def _check_rewards(self) -> None:
        low, high = -TOLERANCE, self.max_reward + TOLERANCE
        bad = ~((self.rewards >= low) & (self.rewards <= high))
        if bad.any():
            entry = _first(bad)
            raise RewardError(
                f"{self.name}: rewards[{_listed(entry)}] = {float(self.rewards[entry]):.9g}; valid: in "
                f"[0, {self.max_reward:g}] (index: ..., stage, state, action)"
            )

    def _check_fail_state(self) -> None:
        fail = self.fail_state
        if fail is None:
            return
        if not 0 <= fail < self.num_states:
            raise ValueError(f"{self.name}: fail_state = {fail}; valid: a state in 0, ..., {self.num_states - 1}, None")
        paid = self.rewards[..., fail, :].abs() > TOLERANCE
        if paid.any():
            raise RewardError(f"{self.name}: rewards[{_listed(_first(paid))}] of fail_state {fail} is not 0; valid: 0")
        staying = torch.einsum("...had,...hd->...ha", self.features[..., fail, :, :], self.factors[..., fail])
        left = (staying - 1).abs()[..., :-1, :] > TOLERANCE  # where the last stage leads to does not matter
        if left.any():
            raise FactorError(
                f"{self.name}: fail_state {fail} is left with probability "
                f"{float(1 - staying[_first(left)]):.9g} at (..., stage, action) = ({_listed(_first(left))}); valid: 0"
            )


def linear_rewards(
    features: Float[Tensor, "*batch H S A d"], theta: Float[Tensor, "*batch H d"]
) -> Float[Tensor, "*batch H S A"]:
    """r_h(s, a) = phi(s, a) . theta_h; features may be [S, A, d]."""
    return torch.einsum("...sad,...d->...sa", features, theta) if features.dim() > 3 else _stationary(features, theta)


def _stationary(features: Tensor, theta: Tensor) -> Tensor:
    return torch.einsum("sad,...d->...sa", features, theta)


def _first(bad: Tensor) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(int(i) for i in bad.nonzero()[0])


def _listed(entry: tuple[int, ...]) -> str:
    return ", ".join(map(str, entry))


def _short(row: Tensor, limit: int = 8) -> str:
    values = [round(value, 9) for value in row[:limit].tolist()]
    return f"{values}" if len(row) <= limit else f"{values[:-1]} and {len(row) - limit + 1} more"
