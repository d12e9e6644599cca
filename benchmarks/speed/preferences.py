"""How fast preferences are learned from: ``python -m decisionrl.benchmarks.speed.preferences``.

The yardstick is ``plain_preferences``. Both take steps of contrastive preference learning (arXiv 2310.13639) on the
same segments: 96 pairs of 64 steps, 35 observed numbers, 4 actions, drawing the batch included. The library's side is a
recipe's parts: a source of pairs in an episode store, a ``BehaviorPolicy``, the objective ``cpl`` and a
``GradientLearner``, which also looks for values that are not finite.

Rows (suite "speed-preferences"), method "cpl", one case for each size of the network and dropout, on one thread:

- ``loss``: the library's on one batch, with the plain network's weights and no dropout; reference = the plain loss. The
  two must agree to 1e-5 before anything is timed.
- ``speedup``: the plain loop's seconds over the library's, the median of the rounds with the smallest and largest;
  reference = the target, kind "peer". Without dropout there is little to save, and no target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decisionrl.benchmarks.speed.plain_preferences import PlainLearner
from decisionrl.benchmarks.speed.plain_preferences import Segments as PlainSegments
from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import race
from decisionrl.experience.datasets import DatasetSource, Pairs
from decisionrl.experience.preferences import PreferencePairs, Segments, sample_segments
from decisionrl.experience.store import EpisodeStore
from decisionrl.learner import GradientLearner
from decisionrl.objectives.preference_methods import build
from decisionrl.policies.behavior import BehaviorPolicy
from decisionrl.seeding import generator

SUITE = "speed-preferences"
METHOD = "cpl"
TOLERANCE = 1e-5

OBSERVED, ACTIONS, STEPS = 35, 4, 64
EPISODES, EPISODE_STEPS = 100, 250


@dataclass(frozen=True)
class Case:
    """A network to time. target: the speedup that is asked for."""

    hidden: Sequence[int]
    dropout: float
    target: float | None

    @property
    def name(self) -> str:
        return f"{'x'.join(str(width) for width in self.hidden)}-dropout-{self.dropout:g}"


CASES = (Case((256, 256), 0.25, 1.3), Case((512, 512), 0.25, 1.3), Case((256, 256), 0.0, None))


@dataclass(frozen=True)
class Profile:
    """How often and on what is timed. steps: taken by each side in each round."""

    rounds: int
    steps: int
    segments: int = 2000
    pairs: int = 96
    cases: Sequence[Case] = CASES


FULL = Profile(rounds=12, steps=10)
QUICK = Profile(rounds=6, steps=3)


def preferences(profile: Profile, *, device: str, seed: int = 0) -> PreferencePairs:
    """Random episodes, segments of them with random scores, and as many pairs as segments."""
    drawing = generator(seed, "preferences")
    steps = EPISODES * EPISODE_STEPS
    truncated = torch.arange(1, steps + 1) % EPISODE_STEPS == 0
    episodes = EpisodeStore(
        observation=torch.randn(steps + EPISODES, OBSERVED, generator=drawing),
        action=torch.rand(steps, ACTIONS, generator=drawing) * 2 - 1,
        reward=torch.zeros(steps),
        terminated=torch.zeros_like(truncated),
        truncated=truncated,
        length=torch.full((EPISODES,), EPISODE_STEPS),
        observation_space=spaces.Box(-math.inf, math.inf, (OBSERVED,)),
        action_space=spaces.Box(-1, 1, (ACTIONS,)),
    ).to(device)
    segments = sample_segments(episodes, profile.segments, STEPS, generator=drawing)
    score = torch.rand(profile.segments, generator=drawing).to(device)
    first = torch.arange(profile.segments, device=device)
    second = first.roll(1)
    return PreferencePairs(
        segments=segments.scored(score), first=first, second=second, label=(score[second] > score[first]).float()
    )


def plain_segments(segments: Segments) -> PlainSegments:
    """The same segments as arrays."""
    assert segments.score is not None
    rows = segments.rows(torch.arange(len(segments), device=segments.start.device)).to("cpu")
    assert isinstance(rows.observation, torch.Tensor)
    return PlainSegments(rows.observation.numpy(), rows.action.numpy(), segments.score.cpu().numpy())


def both(pairs: PreferencePairs, case: Case, *, size: int) -> tuple[PlainLearner, BehaviorPolicy]:
    """The plain learner and the library's policy with equal weights; it sees observations as they are, too."""
    store = pairs.segments.episodes
    device = str(pairs.first.device)
    plain = PlainLearner(
        plain_segments(pairs.segments), hidden=case.hidden, dropout=case.dropout, pairs=size, device=device
    )
    policy = BehaviorPolicy(
        store.observation_space,
        store.action_space,
        hidden=case.hidden,
        dropout=case.dropout,
        normalize_observations=False,
    ).to(device)
    linear = (each for each in plain.network if isinstance(each, nn.Linear))
    for layer, source in zip([*policy.hidden.layers, policy.last], linear, strict=True):
        layer.load_state_dict(source.state_dict())
    return plain, policy


def losses(pairs: PreferencePairs, case: Case, *, size: int) -> tuple[Tensor, Tensor]:
    """The loss of the library and of the plain loop on the first pairs, without dropout.

    Raises:
        RuntimeError: they differ.
    """
    plain, policy = both(pairs, case, size=size)
    plain.network.eval()
    policy.eval()
    index = torch.arange(size, device=pairs.first.device)
    numbers = plain.segments.batch(pairs.first[index].cpu().numpy(), pairs.second[index].cpu().numpy())
    with torch.no_grad():
        ours = build(METHOD)(policy, pairs.batch(index)).value
        theirs = plain.loss(*(each.to(plain.device) for each in numbers))
    if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
        raise RuntimeError(f"{METHOD}: the loss differs: library {float(ours)!r}, plain loop {float(theirs)!r}")
    return ours, theirs


def measure(report: Report, profile: Profile, *, device: str) -> None:
    """All rows."""
    pairs = preferences(profile, device=device)
    for case in profile.cases:
        ours, theirs = losses(pairs, case, size=profile.pairs)
        report.add(case.name, METHOD, "loss", float(ours), target=float(theirs))
        plain, policy = both(pairs, case, size=profile.pairs)
        source = DatasetSource(Pairs(pairs=pairs, size=profile.pairs))
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4, fused=True)
        learner = GradientLearner(policy, build(METHOD), optimizer)
        seconds = race(
            {
                "plain": repeated(plain.step, profile.steps),
                "ours": repeated(partial(step, source, learner), profile.steps),
            },
            rounds=profile.rounds,
            device=device,
        )
        report.speedup(case.name, METHOD, seconds["plain"], seconds["ours"], case.target)


def step(source: DatasetSource, learner: GradientLearner) -> None:
    """One update of the library."""
    learner.update(source.sample())


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that calls another so often."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        measure(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
