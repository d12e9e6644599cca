"""Teachers: the scripted one step by step, scores of segments against plain loops, and pairs made of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.experience.preferences import Segments
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.teachers import (
    EQUAL,
    MISTAKE,
    MYOPIC,
    NOISY,
    ORACLE,
    SKIP,
    ScriptedTeacher,
    expert_distance,
    labels_from_scores,
    preference_pairs,
    regret_scores,
    segment_returns,
    typical_return,
)

LENGTHS = (7, 4, 9)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def episodes(reward: Tensor | None = None, *, terminated: int | None = None, expert: bool = True) -> EpisodeStore:
    """Three episodes in which the observation counts all observations there are."""
    steps, random = sum(LENGTHS), seeded(5)
    ends = torch.zeros(steps, dtype=torch.bool)
    if terminated is not None:
        ends[terminated] = True
    return EpisodeStore(
        observation=torch.arange(steps + len(LENGTHS), dtype=torch.float64)[:, None],
        action=torch.randn(steps, 2, generator=random, dtype=torch.float64),
        reward=torch.randn(steps, generator=random, dtype=torch.float64) if reward is None else reward,
        terminated=ends,
        truncated=torch.zeros(steps, dtype=torch.bool),
        length=torch.tensor(LENGTHS),
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
        action_space=spaces.Box(-1, 1, (2,)),
        extras={"expert_action": torch.randn(steps, 2, generator=random, dtype=torch.float64)} if expert else {},
    )


def segments(store: EpisodeStore | None = None) -> Segments:
    store = episodes() if store is None else store
    return Segments(
        episodes=store, episode=torch.tensor([0, 0, 1, 2, 2]), start=torch.tensor([0, 4, 1, 6, 2]), length=3
    )


def value(observation: Tensor) -> Tensor:
    return (observation.squeeze(-1) * 0.7).sin()


def first_rows(which: Segments) -> list[int]:
    """Of every segment, the row of its first step."""
    begin = [0, 7, 11]
    return [begin[e] + s for e, s in zip(which.episode.tolist(), which.start.tolist(), strict=True)]


def label(teacher: ScriptedTeacher, first: list[float], second: list[float]) -> float:
    pair = torch.tensor([first]), torch.tensor([second])
    return float(teacher(*pair, seeded())[0])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_returns_and_regrets_of_segments(gamma: float) -> None:
    found = segments()
    reward = found.episodes.reward
    seen = [row + episode for row, episode in zip(first_rows(found), found.episode.tolist(), strict=True)]
    for i, row in enumerate(first_rows(found)):
        total = sum(gamma**t * float(reward[row + t]) for t in range(3))
        assert float(segment_returns(found, gamma)[i]) == pytest.approx(total, abs=1e-12)
        worth = math.sin(0.7 * (seen[i] + 3)) * gamma**3 - math.sin(0.7 * seen[i])
        assert float(regret_scores(found, value, gamma=gamma)[i]) == pytest.approx(total + worth, abs=1e-12)


def test_a_state_after_the_end_is_worth_nothing() -> None:
    plain, ended = segments(), segments(episodes(terminated=6))
    assert ended.episodes.terminated[first_rows(ended)[1] + 2]
    change = regret_scores(ended, value) - regret_scores(plain, value)
    after = math.sin(0.7 * 7)
    torch.testing.assert_close(change, torch.tensor([0, -after, 0, 0, 0], dtype=torch.float64))


def test_exact_values_make_regret_the_sum_of_advantages() -> None:
    """A corridor with goal: V* counts the steps to it, and a step away from it has advantage -2."""
    position = [4, 3, 4, 3, 2, 3, 2, 1, 0]
    store = EpisodeStore(
        observation=torch.tensor(position, dtype=torch.float64)[:, None],
        action=torch.zeros(8, 1),
        reward=-torch.ones(8, dtype=torch.float64),
        terminated=torch.arange(8) == 7,
        truncated=torch.zeros(8, dtype=torch.bool),
        length=torch.tensor([8]),
        observation_space=spaces.Box(0, 4, (1,)),
        action_space=spaces.Box(-1, 1, (1,)),
    )
    pieces = Segments(episodes=store, episode=torch.zeros(6, dtype=torch.long), start=torch.arange(6), length=3)
    score = regret_scores(pieces, lambda observation: -observation.squeeze(-1))
    advantage = [-2.0 * (after > before) for before, after in zip(position[:-1], position[1:], strict=True)]
    assert score.tolist() == [sum(advantage[i : i + 3]) for i in range(6)]


def test_the_distance_to_the_expert() -> None:
    found = segments()
    action, expert = found.episodes.action, found.episodes.extras["expert_action"]
    for i, row in enumerate(first_rows(found)):
        distance = sum(float(((action[row + t] - expert[row + t]) ** 2).sum()) for t in range(3))
        assert float(expert_distance(found)[i]) == pytest.approx(-distance, abs=1e-12)
    assert (expert_distance(found) < 0).all()
    with pytest.raises(DatasetError, match=r"extras: \[\]; valid: with 'expert_action'"):
        expert_distance(segments(episodes(expert=False)))


def test_labels_of_scores() -> None:
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, -1.0])
    assert labels_from_scores(first, second).tolist() == [1, 0.5, 0]


def test_a_rational_teacher_prefers_the_larger_return() -> None:
    first, second = torch.randn(50, 6, generator=seeded(1)), torch.randn(50, 6, generator=seeded(2))
    for seed in range(3):
        found, keep = ORACLE(first, second, seeded(seed))
        torch.testing.assert_close(found, (first.sum(1) < second.sum(1)).float())
        assert keep.all()


@pytest.mark.parametrize("beta", [0.0, -5.0, 1e9])
def test_no_beta_and_an_endless_one_are_rational(beta: float) -> None:
    first, second = torch.randn(50, 6, generator=seeded(1)), torch.randn(50, 6, generator=seeded(2))
    oracle, _ = ORACLE(first, second, seeded())
    torch.testing.assert_close(ScriptedTeacher(beta=beta)(first, second, seeded(3))[0], oracle)


def test_a_noisy_teacher_is_bradley_terry() -> None:
    count = 40_000
    first, second = torch.tensor([0.2, 0.1]).expand(count, 2), torch.tensor([0.5, 0.3]).expand(count, 2)
    found, _ = dataclasses.replace(NOISY, beta=2.0)(first, second, seeded())
    wanted = 1 / (1 + math.exp(-2 * 0.5))
    assert float(found.mean()) == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / count))


def test_mistakes_have_the_stated_frequency() -> None:
    count = 40_000
    first, second = torch.randn(count, 3, generator=seeded(1)), torch.randn(count, 3, generator=seeded(2))
    wrong = (MISTAKE(first, second, seeded())[0] != ORACLE(first, second, seeded())[0]).float().mean()
    assert float(wrong) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / count))
    turned, _ = ScriptedTeacher(mistake=1.0)(first, second, seeded())
    torch.testing.assert_close(turned, 1 - ORACLE(first, second, seeded())[0])


def test_a_myopic_teacher_weighs_recent_steps_more() -> None:
    early, late = [1.0, 0, 0, 0], [0, 0, 0, 0.9**3 + 0.01]
    assert label(ORACLE, early, late) == 0
    assert label(MYOPIC, early, late) == 1
    assert label(MYOPIC, early, [0, 0, 0, 0.9**3 - 0.01]) == 0
    assert label(MYOPIC, early, [0, 0.9 - 0.01, 0, 0]) == 0
    assert label(ScriptedTeacher(gamma=0.0), [5.0, 5, 1], [0.0, 0, 2]) == 1


def test_pairs_without_reward_are_skipped() -> None:
    teacher = dataclasses.replace(SKIP, margin=10.0)  # the threshold is 1
    first = torch.tensor([[0.5, 0.5], [0.5, 0.6], [0.0, 0.0], [-3.0, 0.0]])
    second = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.5], [0.2, 0.2]])
    assert teacher(first, second, seeded())[1].tolist() == [False, True, True, False]
    assert ORACLE(first, second, seeded())[1].all()
    assert dataclasses.replace(SKIP, margin=-10.0)(first, second, seeded())[1].all()  # no threshold without reward


def test_close_pairs_are_equal_whatever_comes_after() -> None:
    teacher = ScriptedTeacher(equal=0.1, margin=10.0, gamma=0.1, mistake=1.0)  # the threshold is 1
    first = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    second = torch.tensor([[0.0, 1.5], [0.0, 1.0], [0.0, 3.5]])
    # The undiscounted returns of the first pair are close, though the discounted ones are not; that of the second
    # differ by just the threshold. Both of the others are mistaken.
    assert teacher(first, second, seeded())[0].tolist() == [0.5, 0, 0]


def test_thresholds_are_not_squared() -> None:
    teacher = dataclasses.replace(EQUAL, margin=10.0)
    assert label(teacher, [0.0], [0.9]) == 0.5  # 0.1 * 10, not 0.1^2 * 10
    assert label(teacher, [0.0], [1.1]) == 1


def test_a_skipped_pair_may_be_equal_as_well() -> None:
    both = ScriptedTeacher(skip=0.1, equal=0.1, margin=10.0)
    found, keep = both(torch.tensor([[0.1], [4.0]]), torch.tensor([[0.2], [4.5]]), seeded())
    assert found.tolist() == [0.5, 0.5]
    assert keep.tolist() == [False, True]


def test_presets() -> None:
    assert ORACLE == ScriptedTeacher()
    assert (MISTAKE.mistake, NOISY.beta, SKIP.skip, MYOPIC.gamma, EQUAL.equal) == (0.1, 1.0, 0.1, 0.9, 0.1)


def test_values_are_checked() -> None:
    with pytest.raises(ValueError, match="gamma = 1.5; valid: 0 to 1"):
        ScriptedTeacher(gamma=1.5)
    with pytest.raises(ValueError, match="mistake = -0.1; valid: 0 to 1"):
        ScriptedTeacher(mistake=-0.1)
    with pytest.raises(ValueError, match="skip = -1.0; valid: >= 0"):
        ScriptedTeacher(skip=-1.0)
    with pytest.raises(ValueError, match="margin = None; valid: a number, as skip = 0.1 and equal = 0.0"):
        label(SKIP, [0.0], [1.0])


def test_the_return_of_a_typical_segment() -> None:
    found = segments()
    assert typical_return(found) == pytest.approx(float(found.episodes.reward.sum()) / 3 * 3 / 9)


def test_comparisons_use_every_segment_once() -> None:
    found = segments().scored(torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0]))
    pairs = preference_pairs(found, generator=seeded())
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0, 1], [2, 3])
    assert pairs.label.tolist() == [1, 0]


def test_random_partners_are_two_different_segments() -> None:
    found = segments().scored(torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0]))
    pairs = preference_pairs(found, pairs=4000, generator=seeded())
    assert (pairs.first != pairs.second).all()
    counts = torch.bincount(pairs.first * 5 + pairs.second, minlength=25).view(5, 5)
    assert counts.diagonal().tolist() == [0] * 5
    assert (counts + torch.eye(5) * 200 - 200).abs().max() < 4 * math.sqrt(200)
    assert found.score is not None
    torch.testing.assert_close(pairs.label, labels_from_scores(found.score[pairs.first], found.score[pairs.second]))
    assert {0.0, 0.5, 1.0} == set(pairs.label.tolist())


def test_a_generator_determines_the_pairs() -> None:
    found = segments().scored(torch.arange(5.0))
    drawn = [preference_pairs(found, pairs=30, flip=0.3, generator=seeded(7)) for _ in range(2)]
    for name in ("first", "second", "label"):
        torch.testing.assert_close(getattr(drawn[0], name), getattr(drawn[1], name))


def test_flips_turn_labels_around_and_leave_ties() -> None:
    found = segments().scored(torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0]))
    plain = preference_pairs(found, pairs=5000, generator=seeded())
    turned = preference_pairs(found, pairs=5000, flip=1.0, generator=seeded())
    torch.testing.assert_close(turned.label, 1 - plain.label)
    noisy = preference_pairs(found, pairs=5000, flip=0.2, generator=seeded())
    strict = plain.label != 0.5
    share = float((noisy.label != plain.label)[strict].float().mean())
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / int(strict.sum())))


def test_a_teacher_labels_by_rewards_and_leaves_pairs_out() -> None:
    reward = torch.zeros(20, dtype=torch.float64)
    reward[11 + 6 : 11 + 9] = 1.0  # only segment 3 sees any
    found = segments(episodes(reward))
    pairs = preference_pairs(found, pairs=400, teacher=SKIP, generator=seeded())
    assert 0 < len(pairs) < 400
    assert ((pairs.first == 3) ^ (pairs.second == 3)).all()
    torch.testing.assert_close(pairs.label, (pairs.second == 3).double())
    with pytest.raises(DatasetError, match="segments have no score"):
        preference_pairs(found, generator=seeded())


def test_numbers_of_pairs_are_checked() -> None:
    found = segments().scored(torch.arange(5.0))
    with pytest.raises(ValueError, match="pairs = 0; valid: a whole number >= 1"):
        preference_pairs(found, pairs=0, generator=seeded())
    with pytest.raises(ValueError, match="flip = 2; valid: 0 to 1"):
        preference_pairs(found, flip=2, generator=seeded())
    with pytest.raises(DatasetError, match="there are 1 segments; valid: at least 2"):
        preference_pairs(found.take(torch.tensor([0])), generator=seeded())
