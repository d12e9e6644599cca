"""When to stop looking: noisy observations of a hidden bit, of which each costs a token; solved exactly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index, random_numbers

_TIE = 1e-12
"""Values that differ by less are equal but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """What a rule for stopping gives.

    Attributes:
        accuracy: the probability that the answer is the bit.
        observations: their expected number.
        cost: of an observation.
    """

    accuracy: float
    observations: float
    cost: float

    @property
    def value(self) -> float:
        """accuracy - cost * observations."""
        return self.accuracy - self.cost * self.observations


@dataclass(frozen=True, kw_only=True)
class StopVote(TextTaskDefaults):
    """A bit is hidden. After each ``T`` the environment says ``0`` or ``1``, which is the bit with probability
    1/2 + delta; ``A0`` or ``A1`` answers. ``"0.25:"`` is answered by ``"T1T0T1A1"``, say.

    Prompt i shows delta number i mod D of D; its bit changes after every D prompts. The reward is 1 if the answer is
    the bit, else 0, less ``cost`` for each ``T``. After ``cap`` observations the environment says nothing more, and a
    response with more ``T`` than that is wrong, as is one of another form.

    Args:
        deltas: from the easiest to the hardest, each in [0.001, 0.5].
        cap: observations there are.
        cost: of an observation.

    Raises:
        ValueError: an option has no valid value.
    """

    deltas: tuple[float, ...] = (0.4, 0.25, 0.1)
    cap: int = 16
    cost: float = 0.0

    name = "text/stop-vote"
    alphabet = "0123456789.:TA"
    num_prompts = None
    best_reward = 1.0
    triggers = "T"

    def __post_init__(self) -> None:
        deltas = list(self.deltas) if isinstance(self.deltas, Iterable) else []
        if not deltas or not all(_is_number(delta) and 0.001 <= delta <= 0.5 for delta in deltas):
            raise ValueError(f"deltas = {self.deltas}; valid: at least one, each in [0.001, 0.5]")
        check_whole("cap", self.cap, 1)
        _check_cost(self.cost)

    @property
    def success(self) -> float:
        """Half an observation's cost below what the right answer earns after all of them; above 0, since a wrong answer
        earns at most that. If all of them cost more than 1, right answers after too many do not count."""
        return max(1 - self.cost * (self.cap + 0.5), _TIE)

    @property
    def max_tokens(self) -> int:
        return 2 * self.cap + len("A0") + 1

    def prompt(self, index: int, /) -> str:
        return f"{self.delta(index)}:"

    def delta(self, index: int) -> float:
        return self.deltas[checked_index(self, index) % len(self.deltas)]

    def hidden_bit(self, index: int) -> int:
        return checked_index(self, index) // len(self.deltas) % 2

    def reply(self, index: int, response: str, noise: int, /) -> str:
        observations = response.count("T")
        if observations > self.cap:
            return ""
        luck = random_numbers(self.name, checked_index(self, index), noise, observations).random()
        return str(self.hidden_bit(index) ^ int(luck >= 0.5 + self.delta(index)))

    def reward(self, index: int, response: str, /) -> float:
        right = re.fullmatch(rf"(?:T[01]){{0,{self.cap}}}A{self.hidden_bit(index)}", response) is not None
        return float(right) - self.cost * response.count("T")

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        """Any number of observations from 0 to ``cap``, each as likely, and then the bit.

        The answer is the bit even where the observations speak against it, so a model that learns from many of these
        learns how likely each bit is.
        """
        noise = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        observations = int(torch.randint(self.cap + 1, (), generator=generator, device=generator.device))
        response = ""
        for _ in range(observations):
            response += "T"
            response += self.reply(index, response, noise)
        return f"{response}A{self.hidden_bit(index)}"

    def optimum(self, cost: float) -> Stopping:
        """The best rule at this cost of an observation, averaged over the deltas; :func:`optimal_stopping` of each.

        Over many costs this is the frontier of accuracy against the expected number of observations.
        """
        each = [optimal_stopping(delta=delta, cost=cost, cap=self.cap) for delta in self.deltas]
        return Stopping(
            accuracy=sum(one.accuracy for one in each) / len(each),
            observations=sum(one.observations for one in each) / len(each),
            cost=cost,
        )


def majority_accuracy(*, delta: float, observations: int) -> float:
    """How often the majority of n observations is the bit; half of the ties are right.

    P(X > n/2) + P(X = n/2) / 2 with X binomial of n and 1/2 + delta.

    Raises:
        ValueError: delta is not in (0, 0.5].
    """
    _check_delta(delta)
    right = scipy.stats.binom(observations, 0.5 + delta)
    return float(right.sf(observations / 2) + right.pmf(observations / 2) / 2)


def optimal_stopping(*, delta: float, cost: float, cap: int) -> Stopping:
    """The rule that maximizes accuracy - cost * observations, by dynamic programming.

    The state is the number of observations and the lead d of the bit seen more often. That one is the hidden bit
    with probability b(d) = 1 / (1 + (q / p)^d), p = 1/2 + delta, q = 1/2 - delta, and it is the best answer. The
    next observation adds to the lead with probability b p + (1 - b) q. Where stopping is as good as going on, the rule
    stops.

    Raises:
        ValueError: delta is not in (0, 0.5], or the cost negative or not finite.
    """
    _check_delta(delta)
    _check_cost(cost)
    p, q = 0.5 + delta, 0.5 - delta
    lead = np.arange(cap + 1)
    right = 1 / (1 + (q / p) ** lead)
    grows = np.where(lead > 0, right * p + (1 - right) * q, 1.0)
    value, accuracy, observations = right, right, np.zeros(cap + 1)
    for seen in reversed(range(cap)):
        reachable = slice(seen + 1)
        stopped, growing = right[reachable], grows[reachable]
        going_on = _expected(value, growing) - cost
        stop = stopped >= going_on - _TIE
        accuracy = np.where(stop, stopped, _expected(accuracy, growing))
        observations = np.where(stop, 0.0, 1 + _expected(observations, growing))
        value = np.maximum(stopped, going_on)
    return Stopping(accuracy=float(accuracy[0]), observations=float(observations[0]), cost=cost)


def _expected(following: NDArray[np.float64], grows: NDArray[np.float64]) -> NDArray[np.float64]:
    """From what follows at leads 0, ..., n + 1 its expectation before the observation, at leads 0, ..., n."""
    shrunk = np.concatenate([following[1:2], following[: len(grows) - 1]])
    mean: NDArray[np.float64] = grows * following[1:] + (1 - grows) * shrunk
    return mean


def _check_delta(delta: float) -> None:
    if not 0 < delta <= 0.5:
        raise ValueError(f"delta = {delta}; valid: in (0, 0.5]")


def _check_cost(cost: float) -> None:
    if not (_is_number(cost) and 0 <= cost < np.inf):
        raise ValueError(f"cost = {cost!r}; valid: a number >= 0")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
