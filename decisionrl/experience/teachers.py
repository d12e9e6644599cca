"""Teachers: scores of segments, and labels of pairs that a script gives in a person's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.experience.preferences import PreferencePairs, Segments
from decisionrl.experience.store import DatasetError

Value = Callable[[Any], Float[Tensor, " n"]]
"""V of observations [n, ...]."""


def segment_returns(segments: Segments, gamma: float = 1.0) -> Float[Tensor, " segments"]:
    """sum_t gamma^t r_t of every segment."""
    reward = _rewards(segments)
    return reward @ gamma ** torch.arange(segments.length, dtype=reward.dtype, device=reward.device)


def regret_scores(segments: Segments, value: Value, *, gamma: float = 1.0) -> Float[Tensor, " segments"]:
    """sum_{t<k} gamma^t r_t + gamma^k V(s_k) - V(s_0), the negated regret [arXiv 2310.13639, appendix D.2].

    With V = V* and deterministic transitions this is sum_t gamma^t A*(s_t, a_t). V(s_k) is 0 where the last step
    terminated. The paper labels with gamma = 1, and for want of s_k stops at s_{k-1}.
    """
    store, end = segments.episodes, segments.start + segments.length
    before = value(store.observation_at(segments.episode, segments.start))
    after = value(store.observation_at(segments.episode, end))
    terminated = store.terminated[store.first[segments.episode] + end - 1]
    return segment_returns(segments, gamma) + gamma**segments.length * after.masked_fill(terminated, 0) - before


def expert_distance(segments: Segments) -> Float[Tensor, " segments"]:
    """-sum_t |a_t - a_t^E|^2, with the expert's actions a^E in ``extras["expert_action"]`` of the episodes.

    Raises:
        DatasetError: the episodes have none.
    """
    store = segments.episodes
    if "expert_action" not in store.extras:
        raise DatasetError(f"extras: {sorted(store.extras)}; valid: with 'expert_action', [steps, ...]")
    rows = _rows(segments)
    return -(store.action[rows] - store.extras["expert_action"][rows]).square().flatten(1).sum(1)


def labels_from_scores(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where the second score is larger, 0 where the first is, 0.5 where they are equal."""
    return 0.5 * (1 + (second - first).sign())


@dataclass(frozen=True, kw_only=True)
class ScriptedTeacher:
    """A teacher who sees the rewards and errs like a person: B-Pref [arXiv 2111.03026].

    Of two segments with rewards r^1 and r^2 [H], in this order:

    1. skips the pair if max(sum r^1, sum r^2) <= skip * margin, unless that is <= 0;
    2. calls them equal, label 0.5, if abs(sum r^1 - sum r^2) < equal * margin;
    3. else weighs the rewards, R^i = sum_t gamma^(H-1-t) r^i_t: recent steps count for more;
    4. prefers the second if R^1 < R^2 (beta <= 0), or with probability sigmoid(beta (R^2 - R^1));
    5. and says the opposite with probability ``mistake``.

    Attributes:
        beta: how rational; <= 0 stands for infinity.
        gamma: how far back the teacher looks.
        mistake: probability of an error.
        skip, equal: thresholds in units of ``margin``.
        margin: the return of a typical segment, which :func:`typical_return` measures. (The reference code also
            multiplies by skip and equal twice, so that its thresholds are skip^2 margin and equal^2 margin.)

    Raises:
        ValueError: a value outside its range; a threshold without a margin, when called.
    """

    beta: float = -1.0
    gamma: float = 1.0
    mistake: float = 0.0
    skip: float = 0.0
    equal: float = 0.0
    margin: float | None = None

    def __post_init__(self) -> None:
        for name in ("gamma", "mistake"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} = {value}; valid: 0 to 1")
        for name in ("skip", "equal"):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"{name} = {value}; valid: >= 0")

    def __call__(
        self,
        rewards_first: Float[Tensor, "n steps"],
        rewards_second: Float[Tensor, "n steps"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """``(label, keep)``: the label of every pair, and whether the teacher did not skip it."""
        if self.margin is None and (self.skip or self.equal):
            raise ValueError(f"margin = None; valid: a number, as skip = {self.skip} and equal = {self.equal}")
        least, close = (threshold * (self.margin or 0.0) for threshold in (self.skip, self.equal))
        total_first, total_second = rewards_first.sum(1), rewards_second.sum(1)
        best = torch.maximum(total_first, total_second)
        keep = best > least if least > 0 else torch.ones_like(best, dtype=torch.bool)
        equal = (total_first - total_second).abs() < close

        steps = rewards_first.shape[1]
        recency = self.gamma ** torch.arange(steps - 1, -1, -1, dtype=rewards_first.dtype, device=rewards_first.device)
        gain = (rewards_second - rewards_first) @ recency
        if self.beta > 0:
            second = _uniform(gain, generator) < torch.sigmoid(self.beta * gain)
        else:
            second = gain > 0
        second ^= _uniform(gain, generator) < self.mistake
        return torch.where(equal, 0.5, second.to(gain.dtype)), keep


ORACLE = ScriptedTeacher()
MISTAKE = ScriptedTeacher(mistake=0.1)
NOISY = ScriptedTeacher(beta=1.0)
SKIP = ScriptedTeacher(skip=0.1)
MYOPIC = ScriptedTeacher(gamma=0.9)
EQUAL = ScriptedTeacher(equal=0.1)


def typical_return(segments: Segments) -> float:
    """The mean return of an episode, times the share of the longest episode that a segment covers."""
    store = segments.episodes
    return float(store.returns.mean()) * segments.length / int(store.length.max())


def preference_pairs(
    segments: Segments,
    *,
    pairs: int | None = None,
    teacher: ScriptedTeacher | None = None,
    flip: float = 0.0,
    generator: torch.Generator,
) -> PreferencePairs:
    """Labeled pairs of the segments.

    Args:
        segments: they need a score, unless a ``teacher`` looks at their rewards.
        pairs: as many pairs of two different segments, drawn at random; None compares every segment once, i with i + n/2.
        teacher: gives the labels, and leaves out pairs; None prefers the larger score, and equal ones to equal parts.
            If it has no margin, it takes that of :func:`typical_return`.
        flip: the probability that a label is turned around.

    Raises:
        DatasetError: fewer than two segments, or no score and no teacher.
        ValueError: flip outside [0, 1], or pairs < 1.
    """
    if not 0 <= flip <= 1:
        raise ValueError(f"flip = {flip}; valid: 0 to 1")
    if len(segments) < 2:
        raise DatasetError(f"there are {len(segments)} segments; valid: at least 2")
    first, second = _halves(segments) if pairs is None else _drawn(segments, pairs, generator)
    if teacher is not None:
        if teacher.margin is None:
            teacher = dataclasses.replace(teacher, margin=typical_return(segments))
        reward = _rewards(segments)
        label, keep = teacher(reward[first], reward[second], generator)
    elif segments.score is not None:
        label = labels_from_scores(segments.score[first], segments.score[second])
        keep = torch.ones_like(label, dtype=torch.bool)
    else:
        raise DatasetError("segments have no score; valid: segments.scored(...), or a teacher")
    label = torch.where(_uniform(label, generator) < flip, 1 - label, label)
    return PreferencePairs(segments=segments, first=first[keep], second=second[keep], label=label[keep])


def _halves(segments: Segments) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    half = len(segments) // 2
    first = torch.arange(half, device=segments.start.device)
    return first, first + half


def _drawn(
    segments: Segments, pairs: int, generator: torch.Generator
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    if pairs < 1:
        raise ValueError(f"pairs = {pairs}; valid: a whole number >= 1, or None")
    count, device = len(segments), segments.start.device
    first = torch.randint(count, (pairs,), generator=generator)
    apart = torch.randint(1, count, (pairs,), generator=generator)
    return first.to(device), ((first + apart) % count).to(device)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def _rewards(segments: Segments) -> Float[Tensor, "segments steps"]:
    return segments.episodes.reward[_rows(segments)]


def _rows(segments: Segments) -> Int[Tensor, "segments steps"]:
    """The rows of the episodes' steps."""
    begin = segments.episodes.first[segments.episode] + segments.start
    return begin[:, None] + torch.arange(segments.length, device=begin.device)
