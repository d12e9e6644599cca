"""Curricula over starts."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.pipeline.curricula import (
    GAINS,
    VADE,
    XRPO,
    FreshStarts,
    PrioritizedStarts,
    ResampleUntilUseful,
    UniformStarts,
)
from decisionrl.seeding import generator

RATES = torch.linspace(0, 1, 12, dtype=torch.float64)


def stream(seed=0):
    return generator(seed, "starts")


def scored(ids, random):
    """Success at the rate of each start."""
    return (torch.rand(len(ids), generator=random, dtype=torch.float64) < RATES[ids % len(RATES)]).double()


def play(starts, random, score=scored):
    """One batch: the proposals until None."""
    proposals = []
    while (ids := starts.propose(random)) is not None:
        assert ids.dtype == torch.int64
        assert len(torch.unique_consecutive(ids)) == len(torch.unique(ids)), "equal starts are adjacent"
        starts.observe(ids, score(ids, random))
        proposals.append(ids)
    return proposals


CURRICULA = {
    "fresh": lambda: FreshStarts(groups=3, group_size=2),
    "uniform": lambda: UniformStarts(num_starts=12, groups=3, group_size=2),
    "prioritized": lambda: PrioritizedStarts(num_starts=12, episodes=5),
    "vade": lambda: VADE(num_starts=12, groups=3, group_size=4),
    "xrpo": lambda: XRPO(num_starts=12, groups=4, budget=21, base=2),
    "resampled": lambda: ResampleUntilUseful(
        UniformStarts(num_starts=12, groups=3, group_size=2), min_groups=3, max_rounds=4
    ),
}


@pytest.mark.parametrize("name", CURRICULA)
def test_resumed_in_the_middle_of_a_batch(name):
    first, second, random, copy = CURRICULA[name](), CURRICULA[name](), stream(), stream(1)
    for _ in range(3):
        play(first, random)
    ids = first.propose(random)
    first.observe(ids, scored(ids, random))
    second.load_state_dict(first.state_dict())
    copy.set_state(random.get_state())
    for _ in range(3):
        expected, found = play(first, random), play(second, copy)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]


def test_fresh_starts_count_up():
    starts = CURRICULA["fresh"]()
    assert [ids.tolist() for ids in play(starts, stream())] == [[0, 0, 1, 1, 2, 2]]
    assert [ids.tolist() for ids in play(starts, stream())] == [[3, 3, 4, 4, 5, 5]]


def test_uniform_starts_differ_and_all_occur():
    starts, random = CURRICULA["uniform"](), stream()
    count = torch.zeros(12)
    for _ in range(400):
        (ids,) = play(starts, random)
        assert torch.equal(ids[::2], ids[1::2])
        assert len(ids[::2].unique()) == 3
        count += torch.bincount(ids[::2], minlength=12)
    assert scipy.stats.chisquare(count.numpy()).pvalue > 1e-4


# Single-stream SPO


def test_weights_of_success_rates():
    for value, weight in [(0.0, 0.05), (1.0, 0.05), (0.1, 0.35), (0.25, 0.4830), (0.5, 0.55)]:
        starts = PrioritizedStarts(num_starts=2, episodes=1, initial=value)
        assert starts.weights.tolist() == pytest.approx([weight] * 2, abs=1e-4)


def test_tracker_by_hand():
    starts = PrioritizedStarts(num_starts=2, episodes=1, rho=0.9)
    starts.load_state_dict({"alpha": torch.tensor([4.0, 1.0]), "beta": torch.tensor([4.0, 2.0]), "proposed": True})
    starts.observe(torch.tensor([0]), torch.tensor([1.0]))
    state = starts.state_dict()
    assert state["alpha"].tolist() == pytest.approx([4.6, 1])
    assert state["beta"].tolist() == pytest.approx([3.6, 2])
    value = 0.5 + (1 - 0.5) / (0.9 * 8 + 1)  # as a moving average
    assert value == pytest.approx(0.5609756)
    assert starts.weights[0].item() == pytest.approx((value * (1 - value)) ** 0.5 + 0.05)


def test_no_memory_is_the_last_score_and_memory_is_bounded():
    forgetful = PrioritizedStarts(num_starts=1, episodes=1, rho=0)
    forgetful.observe(torch.tensor([0]), torch.tensor([0.3]))
    assert forgetful.weights.item() == pytest.approx((0.3 * 0.7) ** 0.5 + 0.05)
    starts = PrioritizedStarts(num_starts=1, episodes=1, rho=0.875)
    for _ in range(50):
        starts.observe(torch.tensor([0]), torch.tensor([1.0]))
    assert (starts.state_dict()["alpha"] + starts.state_dict()["beta"]).item() == pytest.approx(8)


def test_draws_follow_the_weights_without_repetition():
    starts, random = PrioritizedStarts(num_starts=3, episodes=1), stream()
    for _ in range(40):
        starts.observe(torch.arange(3), torch.tensor([1.0, 0.0, 0.5]))
    count = torch.zeros(3)
    for _ in range(2000):
        ids = starts.propose(random)
        assert starts.propose(random) is None
        count += torch.bincount(ids, minlength=3)
    expected = starts.weights / starts.weights.sum() * 2000
    assert scipy.stats.chisquare(count.double().numpy(), expected.numpy()).pvalue > 1e-4
    everything = PrioritizedStarts(num_starts=3, episodes=3)
    assert sorted(everything.propose(random).tolist()) == [0, 1, 2]


# VADE


def counts(starts):
    return torch.stack([starts.alpha, starts.beta], 1).tolist()


def with_counts(pairs, **options):
    starts = VADE(num_starts=len(pairs), groups=1, **options)
    alpha, beta = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    starts.load_state_dict({"alpha": alpha, "beta": beta, "proposed": True})
    return starts


def test_vade_by_hand():
    starts = with_counts([(0.1, 8.4), (2.7, 5.3), (9.0, 0.2)])
    ids = torch.arange(2).repeat_interleave(8)
    scores = torch.tensor([1.0] + [0] * 7 + [1] * 4 + [0] * 4)
    starts.observe(ids, scores)
    expected = [(1.02, 8.68), (4.54, 5.06), (8.991, 0.1998)]
    assert [tuple(pair) for pair in counts(starts)] == [pytest.approx(pair) for pair in expected]


def test_vade_with_full_memory_counts():
    starts, random = VADE(num_starts=12, groups=3, lambda1=1, lambda2=1), stream()
    total = torch.zeros(12, 2, dtype=torch.float64)

    def score(ids, random):
        scores = scored(ids, random)
        total[:, 0].index_add_(0, ids, scores)
        total[:, 1].index_add_(0, ids, 1 - scores)
        return scores

    for _ in range(10):
        play(starts, random, score)
    assert counts(starts) == total.tolist()
    assert total.sum().item() == 10 * 3 * 8


def test_vade_memory_is_bounded():
    starts = VADE(num_starts=1, groups=1)
    for _ in range(40):
        starts.observe(torch.zeros(8, dtype=torch.int64), torch.ones(8))
    assert counts(starts)[0] == pytest.approx([10, 0])


def test_vade_with_room_for_all_plays_all():
    (ids,) = play(VADE(num_starts=12, groups=12), stream())
    assert torch.bincount(ids).tolist() == [8] * 12


def test_vade_draws_from_the_posterior():
    """Two starts: how often the first wins, against the same comparison of independent draws."""
    starts, random = with_counts([(6.0, 2.0), (1.0, 20.0)]), stream()
    starts.load_state_dict({**starts.state_dict(), "proposed": False})
    wins = 0
    for _ in range(2000):
        wins += int(starts.propose(random)[0] == 0)
        assert starts.propose(random) is None
    draws = np.random.default_rng(0).beta([7, 2], [3, 21], size=(200_000, 2))
    gain = draws * (1 - draws) ** 2
    share = (gain[:, 0] > gain[:, 1]).mean()
    assert abs(wins / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5


@pytest.mark.parametrize(("gain", "best"), [("p(1-p)^2", 1), ("p(1-p)", 2)])
def test_greedy_vade_takes_the_largest_gain(gain, best):
    # posterior means .1, 1/3, .5, .9
    starts = VADE(num_starts=4, groups=1, group_size=2, gain=gain, greedy=True)
    alpha, beta = torch.tensor([0.0, 1, 4, 8]), torch.tensor([8.0, 3, 4, 0])
    starts.load_state_dict({"alpha": alpha, "beta": beta, "proposed": False})
    assert starts.propose(stream()).tolist() == [best] * 2


def test_gain_is_largest_at_a_third():
    p = torch.linspace(0, 1, 3001, dtype=torch.float64)
    gain = GAINS["p(1-p)^2"](p)
    assert p[gain.argmax()].item() == pytest.approx(1 / 3, abs=1e-3)
    assert gain.max().item() == pytest.approx(4 / 27, abs=1e-6)


# XRPO


def halfwidth(n, s):
    return scipy.stats.t.ppf(0.975, n - 1) * s / np.sqrt(n)


def allocate(count, scores, episodes, ucb_lambda):
    """The definition, one episode at a time."""
    count = list(count)
    spread = [np.std(x, ddof=1) if len(x) > 1 else 0.0 for x in scores]
    for _ in range(episodes):
        total = sum(count)
        priority = [
            np.inf if n < 2 else halfwidth(n, s) - halfwidth(n + 1, s) + ucb_lambda * np.sqrt(np.log(1 + total) / n)
            for n, s in zip(count, spread, strict=True)
        ]
        count[int(np.argmax(priority))] += 1
    return count


@pytest.mark.parametrize("base", [1, 2, 4])
@pytest.mark.parametrize("ucb_lambda", [0.0, 0.1, 1.0])
def test_xrpo_against_the_definition(base, ucb_lambda):
    starts, random = XRPO(num_starts=12, groups=5, budget=41, base=base, ucb_lambda=ucb_lambda), stream()

    def score(ids, random):
        return torch.rand(len(ids), generator=random, dtype=torch.float64) * ids

    first = starts.propose(random)
    names = torch.unique_consecutive(first).tolist()
    assert torch.unique_consecutive(first, return_counts=True)[1].tolist() == [base] * 5
    seen, ids, left = {name: [] for name in names}, first, 41 - 5 * base
    for phases_left in (2, 1):
        scores = score(ids, random)
        starts.observe(ids, scores)
        for name, value in zip(ids.tolist(), scores.tolist(), strict=True):
            seen[name].append(value)
        before = [len(seen[name]) for name in names]
        share = -(-left // phases_left)
        after = allocate(before, [seen[name] for name in names], share, ucb_lambda)
        ids = starts.propose(random)
        assert [int((ids == name).sum()) for name in names] == [a - b for a, b in zip(after, before, strict=True)]
        left -= share
    assert left == 0
    starts.observe(ids, score(ids, random))
    assert starts.propose(random) is None


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 20), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=50)
def test_xrpo_spends_its_budget(groups, base, extra, phases, seed):
    budget = groups * base + extra
    starts, random = XRPO(num_starts=6, groups=groups, budget=budget, base=base, phases=phases), stream(seed)
    for _ in range(2):
        proposals = play(starts, random)
        assert sum(map(len, proposals)) == budget
        assert len(proposals) == 1 + min(extra, phases - 1)
        assert len(torch.cat(proposals).unique()) == groups


def test_xrpo_gives_to_the_largest_spread():
    starts, random = XRPO(num_starts=3, groups=3, budget=13, base=4, ucb_lambda=0.0), stream()
    scores = torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
    ids = starts.propose(random)
    starts.observe(ids, scores[torch.unique_consecutive(ids)].flatten())
    assert starts.propose(random).tolist() == [1]


def test_xrpo_gives_to_the_least_played_where_nothing_spreads():
    starts, random = XRPO(num_starts=3, groups=3, budget=18, base=4, ucb_lambda=0.5), stream()
    ids = starts.propose(random)
    starts.observe(ids, torch.ones(12))
    assert len(starts.propose(random).unique()) == 3


def test_xrpo_needs_the_scores():
    starts, random = CURRICULA["xrpo"](), stream()
    starts.propose(random)
    with pytest.raises(RuntimeError, match="8 episodes were proposed but not observed"):
        starts.propose(random)


# Resampling


def test_rounds_until_enough_groups_are_useful():
    starts, random = ResampleUntilUseful(FreshStarts(groups=2, group_size=2), min_groups=2, max_rounds=9), stream()

    def score(ids, random):
        """Starts 2 and 5 are useful."""
        return torch.where((ids == 2) | (ids == 5), torch.arange(4) % 2, 1).double()

    assert [ids[::2].tolist() for ids in play(starts, random, score)] == [[0, 1], [2, 3], [4, 5]]
    assert starts.propose(random).tolist() == [6, 6, 7, 7]


def test_rounds_are_limited():
    starts = ResampleUntilUseful(FreshStarts(groups=2, group_size=2), min_groups=1, max_rounds=3)
    assert len(play(starts, stream(), lambda ids, random: torch.ones(len(ids)))) == 3


def test_rounds_of_several_phases_and_their_scores_reach_the_curriculum():
    vade = VADE(num_starts=4, groups=4, group_size=2)
    play(ResampleUntilUseful(vade, min_groups=1, max_rounds=2), stream(), lambda ids, random: torch.ones(len(ids)))
    assert vade.alpha.tolist() == pytest.approx([0.2 * 2 + 2] * 4)
    xrpo = XRPO(num_starts=4, groups=4, budget=12, base=1)
    rounds = ResampleUntilUseful(xrpo, min_groups=5, max_rounds=2)
    assert [len(ids) for ids in play(rounds, stream())] == [4, 4, 4] * 2


def test_scores_of_one_start_count_together_over_phases():
    starts = ResampleUntilUseful(XRPO(num_starts=1, groups=1, budget=3, base=1), min_groups=1, max_rounds=5)
    number = iter(range(99))
    assert len(play(starts, stream(), lambda ids, random: torch.full((len(ids),), float(next(number))))) == 3


# Errors


@pytest.mark.parametrize("name", ["vade", "prioritized"])
@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_scores_are_success(name, score):
    with pytest.raises(ValueError, match=rf"score {score}\d*; valid: success, from 0 to 1"):
        CURRICULA[name]().observe(torch.tensor([0, 1]), torch.tensor([1.0, score], dtype=torch.float64))


@pytest.mark.parametrize("name", ["vade", "prioritized", "xrpo"])
def test_unknown_starts_and_wrong_shapes(name):
    starts = CURRICULA[name]()
    with pytest.raises(ValueError, match="start 12; valid: 0 to 11"):
        starts.observe(torch.tensor([3, 12]), torch.ones(2))
    with pytest.raises(ValueError, match=r"shape \(2,\) and \(3,\); valid: both \[episodes\]"):
        starts.observe(torch.tensor([3, 1]), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FreshStarts(groups=0, group_size=1), "groups = 0; valid"),
        (lambda: UniformStarts(num_starts=3, groups=4, group_size=1), "groups = 4; valid: 1 to num_starts = 3"),
        (lambda: PrioritizedStarts(num_starts=3, episodes=4), "episodes = 4; valid: 1 to num_starts = 3"),
        (lambda: PrioritizedStarts(num_starts=3, episodes=1, rho=1), "rho = 1; valid"),
        (lambda: PrioritizedStarts(num_starts=3, episodes=1, floor=0), "floor = 0; valid"),
        (lambda: PrioritizedStarts(num_starts=3, episodes=1, initial=2), "initial = 2; valid"),
        (
            lambda: PrioritizedStarts(num_starts=3, episodes=1).observe(torch.tensor([1, 1]), torch.ones(2)),
            "start 1 was played more than once",
        ),
        (lambda: VADE(num_starts=3, groups=1, lambda1=2), "lambda1 = 2; valid"),
        (lambda: VADE(num_starts=3, groups=1, gain="p"), "unknown gain 'p'"),
        (lambda: XRPO(num_starts=3, groups=2, budget=3, base=2), "budget = 3; valid: at least groups x base = 4"),
        (lambda: XRPO(num_starts=3, groups=2, budget=9, base=2, phases=1), "phases = 1; valid"),
        (lambda: XRPO(num_starts=3, groups=2, budget=9, base=2, alpha=1), "alpha = 1; valid"),
        (lambda: XRPO(num_starts=3, groups=2, budget=9, base=2, ucb_lambda=-1), "ucb_lambda = -1; valid"),
        (lambda: ResampleUntilUseful(FreshStarts(groups=1, group_size=1), min_groups=1, max_rounds=0), "max_rounds"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
