"""Which starts (prompts, reset seeds, levels) to play next, and how often each.

Starts are numbered. Who plays them calls ``propose`` until it returns None, which ends the batch, and after each
proposal ``observe`` with what came out. Numbers and states are on the CPU, and so are the generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.names import pick


class Starts(Protocol):
    """A curriculum over starts."""

    def propose(self, generator: torch.Generator, /) -> Int[Tensor, " episodes"] | None:
        """The next starts to play: one entry for each episode, equal ones adjacent.

        None: the batch is complete; the next call begins the next one.
        """
        ...

    def observe(self, start_ids: Int[Tensor, " episodes"], scores: Float[Tensor, " episodes"], /) -> None:
        """What the episodes that were just proposed scored."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class FreshStarts:
    """Every group a start never seen before; they are numbered 0, 1, 2, ..."""

    def __init__(self, *, groups: int, group_size: int) -> None:
        """groups: starts in a batch. group_size: episodes of each."""
        self.groups, self.group_size = _positive(groups, "groups"), _positive(group_size, "group_size")
        self._next = 0
        self._proposed = False

    def propose(self, generator: torch.Generator, /) -> Tensor | None:
        self._proposed = not self._proposed
        if not self._proposed:
            return None
        first, self._next = self._next, self._next + self.groups
        return torch.arange(first, self._next).repeat_interleave(self.group_size)

    def observe(self, start_ids: Tensor, scores: Tensor, /) -> None:
        """Scores make no difference."""

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, "proposed": self._proposed}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._next, self._proposed = state["next"], state["proposed"]


class UniformStarts:
    """Some of a fixed set of starts at random; no start twice in a batch."""

    def __init__(self, *, num_starts: int, groups: int, group_size: int) -> None:
        """num_starts: they are 0 to num_starts - 1. groups: of them in a batch. group_size: episodes of each."""
        self.num_starts, self.groups = _subset(num_starts, groups)
        self.group_size = _positive(group_size, "group_size")
        self._proposed = False

    def propose(self, generator: torch.Generator, /) -> Tensor | None:
        self._proposed = not self._proposed
        if not self._proposed:
            return None
        return _uniform(self.num_starts, self.groups, generator).repeat_interleave(self.group_size)

    def observe(self, start_ids: Tensor, scores: Tensor, /) -> None:
        """Scores make no difference."""

    def state_dict(self) -> dict[str, Any]:
        return {"proposed": self._proposed}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._proposed = state["proposed"]


class PrioritizedStarts:
    """SPO's single-stream sampling: starts whose success is uncertain, one episode each (arXiv 2509.13232).

    A start is drawn with probability in proportion to ``sqrt(v (1 - v)) + floor``, without replacement. v is the mean
    alpha / (alpha + beta) of a Beta distribution, which after a score r in [0, 1] becomes
    ``alpha <- rho alpha + r``, ``beta <- rho beta + 1 - r``: a memory of about 1 / (1 - rho) episodes. It begins with
    that many at success rate ``initial``.
    """

    def __init__(
        self, *, num_starts: int, episodes: int, rho: float = 0.875, floor: float = 0.05, initial: float = 0.5
    ) -> None:
        """
        num_starts: they are 0 to num_starts - 1.
        episodes: in a batch, each from another start.
        rho: what is remembered, in [0, 1); the paper moves it from 0.875 to 0.96 with the policy's change.
        floor: keeps every start possible.
        initial: v before any episode; the paper measures it with 8 episodes of each start.
        """
        if not 0 <= rho < 1:
            raise ValueError(f"rho = {rho}; valid: in [0, 1)")
        if not floor > 0:
            raise ValueError(f"floor = {floor}; valid: a number above 0")
        if not 0 <= initial <= 1:
            raise ValueError(f"initial = {initial}; valid: in [0, 1]")
        self.num_starts, self.episodes = _subset(num_starts, episodes, "episodes")
        self.rho, self.floor = rho, floor
        self._alpha = torch.full((num_starts,), initial / (1 - rho), dtype=torch.float64)
        self._beta = torch.full((num_starts,), (1 - initial) / (1 - rho), dtype=torch.float64)
        self._proposed = False

    @property
    def weights(self) -> Float[Tensor, " starts"]:
        """To which the probabilities are in proportion."""
        value = self._alpha / (self._alpha + self._beta)
        return (value * (1 - value)).sqrt() + self.floor

    def propose(self, generator: torch.Generator, /) -> Tensor | None:
        self._proposed = not self._proposed
        if not self._proposed:
            return None
        return torch.multinomial(self.weights, self.episodes, replacement=False, generator=generator)

    def observe(self, start_ids: Tensor, scores: Tensor, /) -> None:
        """Update v of the starts.

        Raises:
            ValueError: a score is not in [0, 1], or a start occurs twice.
        """
        successes, episodes = _tally(start_ids, scores, self.num_starts)
        if (episodes > 1).any():
            raise ValueError(f"start {int(episodes.argmax())} was played more than once; valid: one episode each")
        played = episodes > 0
        self._alpha = torch.where(played, self.rho * self._alpha + successes, self._alpha)
        self._beta = torch.where(played, self.rho * self._beta + 1 - successes, self._beta)

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self._alpha, "beta": self._beta, "proposed": self._proposed}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._alpha, self._beta, self._proposed = state["alpha"], state["beta"], state["proposed"]


GAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "p(1-p)^2": lambda p: p * (1 - p).square(),
    "p(1-p)": lambda p: p * (1 - p),
}


class VADE:
    """Variance-aware dynamic sampling: the starts from which most is to be learned (arXiv 2511.18902).

    For every start draw ``p_i ~ Beta(alpha_i + 1, beta_i + 1)`` and take those of the largest gain I(p_i). After r
    successes in G episodes ``alpha <- lambda1 alpha + r`` and ``beta <- lambda1 beta + G - r``; starts that were not
    played fade, ``(alpha, beta) <- lambda2 (alpha, beta)``, and so are tested again in the end. Both begin at 0.
    """

    def __init__(
        self,
        *,
        num_starts: int,
        groups: int,
        group_size: int = 8,
        lambda1: float = 0.2,
        lambda2: float = 0.999,
        gain: str = "p(1-p)^2",
        greedy: bool = False,
    ) -> None:
        """
        num_starts: they are 0 to num_starts - 1.
        groups: starts in a batch.
        group_size: G.
        lambda1: what is remembered of a start that was played, in [0, 1]; 0 is its last group alone.
        lambda2: what is remembered of one that was not.
        gain: I, "p(1-p)^2" (largest at 1/3) or, as in an ablation, "p(1-p)".
        greedy: the posterior mean in place of the draw, another ablation.
        """
        for name, value in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value}; valid: in [0, 1]")
        self.num_starts, self.groups = _subset(num_starts, groups)
        self.group_size = _positive(group_size, "group_size")
        self.lambda1, self.lambda2, self.greedy = lambda1, lambda2, greedy
        self._gain = pick("gain", gain, GAINS)
        self._alpha = torch.zeros(num_starts, dtype=torch.float64)
        self._beta = torch.zeros(num_starts, dtype=torch.float64)
        self._proposed = False

    @property
    def alpha(self) -> Float[Tensor, " starts"]:
        """Remembered successes."""
        return self._alpha

    @property
    def beta(self) -> Float[Tensor, " starts"]:
        """Remembered failures."""
        return self._beta

    def propose(self, generator: torch.Generator, /) -> Tensor | None:
        self._proposed = not self._proposed
        if not self._proposed:
            return None
        a, b = self._alpha + 1, self._beta + 1
        p = a / (a + b) if self.greedy else _beta_draw(a, b, generator)
        return self._gain(p).topk(self.groups).indices.repeat_interleave(self.group_size)

    def observe(self, start_ids: Tensor, scores: Tensor, /) -> None:
        """Count successes; a score in between counts as a part of one.

        Raises:
            ValueError: a score is not in [0, 1].
        """
        successes, episodes = _tally(start_ids, scores, self.num_starts)
        memory = torch.where(episodes > 0, self.lambda1, torch.full_like(successes, self.lambda2))
        self._alpha = memory * self._alpha + successes
        self._beta = memory * self._beta + episodes - successes

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self._alpha, "beta": self._beta, "proposed": self._proposed}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._alpha, self._beta, self._proposed = state["alpha"], state["beta"], state["proposed"]


class XRPO:
    """XRPO's allocation: more episodes where the mean score is least certain (arXiv 2510.06672).

    A batch has ``groups`` random starts and ``budget`` episodes. In the first phase each start gets ``base``; what is
    left is spread evenly over the other phases, and given out one episode at a time to the largest priority
    ``D(n) + lambda sqrt(log(1 + T) / n)`` with n the episodes that the start has and T those of all. D(n) = h(n) -
    h(n + 1) is what one more would take off the confidence interval ``h(n) = t_{1 - alpha/2, n - 1} s / sqrt(n)``, for
    the sample standard deviation s of the start's scores so far. A start with n < 2 comes first.

    The paper's form of the second term and its numbers were not available; these are a reading of summaries.
    """

    def __init__(
        self,
        *,
        num_starts: int,
        groups: int,
        budget: int,
        base: int,
        phases: int = 3,
        alpha: float = 0.05,
        ucb_lambda: float = 0.1,
    ) -> None:
        """
        num_starts: they are 0 to num_starts - 1.
        groups: starts in a batch.
        budget: episodes in a batch.
        base: episodes of each start in the first phase.
        phases: at least 2; one without episodes is left out.
        alpha: of the confidence interval.
        ucb_lambda: weight of the second term; 0 looks at the spread of the scores alone.
        """
        self.num_starts, self.groups = _subset(num_starts, groups)
        self.base, self.phases = _positive(base, "base"), phases
        if phases < 2:
            raise ValueError(f"phases = {phases}; valid: a whole number >= 2")
        if budget < groups * base:
            raise ValueError(f"budget = {budget}; valid: at least groups x base = {groups * base}")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha = {alpha}; valid: in (0, 1)")
        if not ucb_lambda >= 0:
            raise ValueError(f"ucb_lambda = {ucb_lambda}; valid: a number >= 0")
        self.budget, self.ucb_lambda = budget, ucb_lambda
        # D(n) / s for every n that can occur; below two scores there is no interval.
        n = torch.arange(2, budget + 3, dtype=torch.float64)
        width = torch.as_tensor(scipy.stats.t.ppf(1 - alpha / 2, n.numpy() - 1)) / n.sqrt()
        self._narrowing = torch.cat([torch.zeros(2, dtype=torch.float64), width[:-1] - width[1:]])
        self._begin()

    def _begin(self) -> None:
        """A new batch: no starts, nothing known of their scores."""
        self._phase = 0
        self._starts = torch.zeros(self.groups, dtype=torch.int64)
        self._count = torch.zeros(self.groups, dtype=torch.int64)
        self._played = torch.zeros(self.num_starts, dtype=torch.int64)
        self._sum = torch.zeros(self.num_starts, dtype=torch.float64)
        self._squares = torch.zeros(self.num_starts, dtype=torch.float64)

    def propose(self, generator: torch.Generator, /) -> Tensor | None:
        """The next phase's episodes.

        Raises:
            RuntimeError: the phase before has not been observed.
        """
        if self._phase == 0:
            self._starts = _uniform(self.num_starts, self.groups, generator)
            more = torch.full_like(self._starts, self.base)
        else:
            missing = self._count - self._played[self._starts]
            if missing.any():
                raise RuntimeError(
                    f"{int(missing.sum())} episodes were proposed but not observed; XRPO needs their scores"
                )
            left = self.budget - int(self._count.sum())
            if left == 0:
                self._begin()
                return None
            more = self._allocate(-(-left // (self.phases - self._phase)))
        self._phase += 1
        self._count = self._count + more
        return self._starts.repeat_interleave(more)

    def observe(self, start_ids: Tensor, scores: Tensor, /) -> None:
        """Add to the statistics of this batch; scores may be any numbers."""
        _check(start_ids, scores, self.num_starts)
        ids, values = start_ids.cpu(), scores.detach().cpu().double()
        self._played = self._played.index_add(0, ids, torch.ones_like(ids))
        self._sum = self._sum.index_add(0, ids, values)
        self._squares = self._squares.index_add(0, ids, values.square())

    def state_dict(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "starts": self._starts,
            "count": self._count,
            "played": self._played,
            "sum": self._sum,
            "squares": self._squares,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._phase, self._starts, self._count = state["phase"], state["starts"], state["count"]
        self._played, self._sum, self._squares = state["played"], state["sum"], state["squares"]

    def _allocate(self, episodes: int) -> Int[Tensor, " groups"]:
        """How many more each start gets; every one of them changes the priorities."""
        played = self._count.clamp(min=1)
        total = self._sum[self._starts]
        variance = (self._squares[self._starts] - total.square() / played) / (played - 1).clamp(min=1)
        spread = variance.clamp(min=0).sqrt()
        count, so_far = self._count.clone(), int(self._count.sum())
        for everything in range(so_far, so_far + episodes):
            bonus = self.ucb_lambda * (math.log(1 + everything) / count).sqrt()
            priority = torch.where(count < 2, torch.inf, spread * self._narrowing[count] + bonus)
            count[priority.argmax()] += 1
        return count - self._count


class ResampleUntilUseful:
    """DAPO's dynamic sampling: further rounds until enough starts have mixed scores (arXiv 2503.14476, section 3.2).

    A round is a batch of another curriculum. The batch ends after the round in which the number of starts whose
    scores are not all equal, over all rounds of the batch, reaches ``min_groups``, or after ``max_rounds``. What all
    came out alike is in the batch too; ``DynamicSampling`` drops it.
    """

    def __init__(self, starts: Starts, *, min_groups: int, max_rounds: int) -> None:
        self.starts = starts
        self.min_groups, self.max_rounds = _positive(min_groups, "min_groups"), _positive(max_rounds, "max_rounds")
        self._begin()

    def _begin(self) -> None:
        self._rounds = 0
        self._ids = torch.zeros(0, dtype=torch.int64)
        self._scores = torch.zeros(0, dtype=torch.float64)

    def propose(self, generator: torch.Generator, /) -> Tensor | None:
        proposal = self.starts.propose(generator)
        if proposal is not None:
            return proposal
        self._rounds += 1
        if self._rounds == self.max_rounds or self._useful() >= self.min_groups:
            self._begin()
            return None
        return self.starts.propose(generator)

    def observe(self, start_ids: Tensor, scores: Tensor, /) -> None:
        self.starts.observe(start_ids, scores)
        self._ids = torch.cat([self._ids, start_ids.cpu()])
        self._scores = torch.cat([self._scores, scores.detach().cpu().double()])

    def state_dict(self) -> dict[str, Any]:
        return {
            "starts": self.starts.state_dict(),
            "rounds": self._rounds,
            "ids": self._ids,
            "scores": self._scores,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.starts.load_state_dict(state["starts"])
        self._rounds, self._ids, self._scores = state["rounds"], state["ids"], state["scores"]

    def _useful(self) -> int:
        """How many starts of the batch have scores that differ."""
        names, start = torch.unique(self._ids, return_inverse=True)
        least = torch.full((len(names),), torch.inf, dtype=torch.float64).scatter_reduce(0, start, self._scores, "amin")
        most = torch.full((len(names),), -torch.inf, dtype=torch.float64).scatter_reduce(0, start, self._scores, "amax")
        return int((most > least).sum())


def _uniform(num_starts: int, number: int, generator: torch.Generator) -> Int[Tensor, " number"]:
    """Different ones at random."""
    return torch.randperm(num_starts, generator=generator)[:number]


def _beta_draw(alpha: Tensor, beta: Tensor, generator: torch.Generator) -> Tensor:
    """torch's own Beta distribution takes no generator; NumPy's is seeded from it."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha.numpy(), beta.numpy()))


def _tally(
    start_ids: Tensor, scores: Tensor, num_starts: int
) -> tuple[Float[Tensor, " starts"], Int[Tensor, " starts"]]:
    """Successes and episodes of every start."""
    _check(start_ids, scores, num_starts)
    outside = ~((scores >= 0) & (scores <= 1))
    if outside.any():
        raise ValueError(f"score {float(scores[outside][0])}; valid: success, from 0 to 1")
    ids = start_ids.cpu()
    successes = torch.bincount(ids, weights=scores.detach().cpu().double(), minlength=num_starts)
    return successes, torch.bincount(ids, minlength=num_starts)


def _check(start_ids: Tensor, scores: Tensor, num_starts: int) -> None:
    if start_ids.ndim != 1 or scores.shape != start_ids.shape:
        raise ValueError(
            f"start_ids and scores are of shape {tuple(start_ids.shape)} and {tuple(scores.shape)}; "
            "valid: both [episodes]"
        )
    unknown = (start_ids < 0) | (start_ids >= num_starts)
    if unknown.any():
        raise ValueError(f"start {int(start_ids[unknown][0])}; valid: 0 to {num_starts - 1}")


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} = {value}; valid: a whole number >= 1")
    return value


def _subset(num_starts: int, number: int, name: str = "groups") -> tuple[int, int]:
    if not 1 <= number <= num_starts:
        raise ValueError(f"{name} = {number}; valid: 1 to num_starts = {num_starts}")
    return num_starts, number
