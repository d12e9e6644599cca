"""Which learning histories are kept, and how often: Algorithm 1 of arXiv 2505.15143 and its relatives."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.pipeline.history_filter import HistoryFilter, multinomial, resample
from decisionrl.pipeline.history_scores import retention, score
from decisionrl.seeding import generator

MODES = ["resample", "shuffled", "multinomial", "weight"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed, "uniform"), dtype=torch.float64)


def draws(like, stream="draws"):
    """v of one pass after another, without end."""
    random = generator(0, stream)
    while True:
        yield torch.rand(like.shape, generator=random, dtype=torch.float64)


def shares(index):
    """How often each history stands in the lists of one task or several."""
    return index.flatten().bincount(minlength=index.shape[1]).double() / index.numel()


def random_returns(tasks=3, histories=6, episodes=5):
    return uniform(tasks, histories, episodes, seed=1)


def apply(returns, mode="resample", *, seed=0, r_max=1.0, mask=None, **settings):
    return HistoryFilter(mode=mode, **settings)(returns, r_max, generator(seed, "filter"), mask=mask)


# Algorithm 1


def algorithm_1(probability, v, order):
    """The pseudo code, for one task."""
    kept, histories = [], len(probability)
    for draw, numbers in zip(v, order, strict=False):
        for number in numbers:
            if draw[number] < probability[number]:
                kept.append(number)
            if len(kept) == histories:
                return kept
    raise AssertionError("not enough passes")


@given(st.integers(1, 4), st.integers(1, 7), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_against_the_pseudo_code(tasks, histories, shuffle, seed):
    probability = retention(uniform(tasks, histories, seed=seed))
    v = uniform(histories, tasks, histories, seed=seed + 1)
    order = uniform(histories, tasks, histories, seed=seed + 2).argsort(-1)
    if not shuffle:
        order = torch.arange(histories).expand_as(order)
    index = resample(probability, v, order=order if shuffle else None)
    for task in range(tasks):
        expected = algorithm_1(probability[task].tolist(), v[:, task].tolist(), order[:, task].tolist())
        assert index[task].tolist() == expected


def test_the_filter_is_algorithm_1_with_its_generator():
    filtered = apply(random_returns(tasks=4))
    assert torch.equal(filtered.index, resample(filtered.probability, draws(filtered.probability, "filter")))


def test_as_many_passes_as_histories_suffice():
    probability = tensor([0, 0, 1, 0], [0, 0.5, 0, 1])
    never = torch.full((4, 2, 4), 1 - 2**-53, dtype=torch.float64)
    assert resample(probability, never).tolist() == [[2] * 4, [3] * 4]
    with pytest.raises(ValueError, match=r"the passes ended with 3 of 4 histories for task 0; draw more"):
        resample(probability, never[:3])


def test_no_history_of_probability_zero_even_at_a_draw_of_zero():
    probability = tensor([0, 0.5, 0, 1, 0])
    zeros = torch.zeros(5, 1, 5, dtype=torch.float64)
    assert resample(probability, zeros).tolist() == [[1, 3, 1, 3, 1]]
    assert multinomial(probability, zeros[0]).tolist() == [[1] * 5]
    last = torch.full((1, 5), 1 - 2**-53, dtype=torch.float64)
    assert multinomial(probability, last).tolist() == [[3] * 5]


def places_taken(probability, orders):
    """Expected share of every history after Algorithm 1, exactly: how full the list is, as a distribution."""
    size = len(probability)
    full, taken = [1.0] + [0.0] * size, [0.0] * size
    for _ in range(60):
        after = [0.0] * (size + 1)
        for order in orders:
            state = list(full)
            for number in order:
                for places in reversed(range(size)):
                    appended = probability[number] * state[places]
                    state[places] -= appended
                    state[places + 1] += appended
                    taken[number] += appended / len(orders)
            after = [total + each / len(orders) for total, each in zip(after, state, strict=True)]
        full = after
    return [each / size for each in taken]


def test_short_lists_are_biased_against_late_histories():
    probability = retention(tensor([0.2, 0.4, 0.6, 0.8, 1.0])).expand(100_000, 5)
    one = probability[0].tolist()
    in_order = places_taken(one, [range(5)])
    assert in_order == pytest.approx([0, 0.1169, 0.2251, 0.3092, 0.3488], abs=1e-4)
    assert shares(resample(probability, draws(probability))).tolist() == pytest.approx(in_order, abs=0.003)

    order = (each.argsort(-1) for each in draws(probability, "order"))
    shuffled = places_taken(one, list(itertools.permutations(range(5))))
    assert shuffled == pytest.approx([0, 0.0947, 0.1947, 0.3002, 0.4104], abs=1e-4)
    assert shares(resample(probability, draws(probability), order=order)).tolist() == pytest.approx(shuffled, abs=0.003)

    independent = shares(multinomial(probability, next(draws(probability)))).tolist()
    assert independent == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=0.003)


def test_long_lists_follow_the_probabilities():
    probability = retention(torch.linspace(0, 1, 100, dtype=torch.float64)[None]).expand(1000, 100)
    expected = 100 * probability[0] / probability[0].sum()
    index = resample(probability, draws(probability))
    torch.testing.assert_close(100 * shares(index), expected, atol=0.55, rtol=0)
    distinct = torch.tensor([len(task.unique()) for task in index]).double().mean()
    assert distinct.item() == pytest.approx(68, abs=0.5)
    torch.testing.assert_close(
        100 * shares(multinomial(probability, next(draws(probability)))), expected, atol=0.25, rtol=0
    )


# The filter


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [None, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_comes_out(mode, alpha, dtype):
    returns = random_returns(tasks=5, histories=9).to(dtype)
    before = returns.clone()
    filtered = apply(returns, mode, alpha=alpha)
    assert torch.equal(returns, before)
    assert filtered.index.shape == filtered.weight.shape == (5, 9)
    assert filtered.weight.dtype == dtype
    torch.testing.assert_close(filtered.score, score(returns.double(), 1))
    torch.testing.assert_close(filtered.probability, retention(filtered.score, alpha=alpha))
    again = apply(returns, mode, alpha=alpha)
    assert torch.equal(again.index, filtered.index)
    worst = filtered.score.argmin(-1, keepdim=True)
    if mode == "weight":
        assert torch.equal(filtered.index, torch.arange(9).expand(5, 9))
        torch.testing.assert_close(filtered.weight.mean(-1), torch.ones(5, dtype=dtype))
        assert (filtered.weight.gather(1, worst) == 0).all()
    else:
        assert (filtered.weight == 1).all()
        assert ((filtered.index >= 0) & (filtered.index < 9)).all()
        assert (filtered.index != worst).all()
        assert not torch.equal(apply(returns, mode, alpha=alpha, seed=1).index, filtered.index)


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode):
    returns = random_returns()
    padding = tensor(math.nan, math.inf, -1e9).expand(3, 6, 3)
    padded = torch.cat([returns, padding], -1)
    mask = torch.cat([torch.ones_like(returns), torch.zeros_like(padding)], -1).bool()
    for r_max in (1.0, "data"):
        plain, masked = apply(returns, mode, r_max=r_max), apply(padded, mode, r_max=r_max, mask=mask)
        assert torch.equal(plain.index, masked.index)
        torch.testing.assert_close(plain.weight, masked.weight)


@pytest.mark.parametrize("mode", ["resample", "weight"])
@pytest.mark.parametrize("shape", [(2, 1, 7), (3, 4, 7), (2, 5, 1), (1, 1, 1)])
def test_where_all_are_equal_nothing_changes(mode, shape):
    filtered = apply(torch.full(shape, 0.1), mode)
    assert torch.equal(filtered.index, torch.arange(shape[1]).expand(shape[:2]))
    assert (filtered.weight == 1).all()
    assert (filtered.probability == 1).all()


def test_equal_histories_of_different_lengths_are_equal():
    mask = torch.arange(50).expand(1, 49, 50) <= torch.arange(1, 50)[:, None]
    assert (apply(torch.full((1, 49, 50), 0.1), mask=mask).probability == 1).all()


def test_equal_histories_in_the_modes_that_draw():
    equal = torch.full((2000, 4, 3), 0.5)
    assert (apply(equal, "shuffled").index.sort(-1).values == torch.arange(4)).all()
    assert shares(apply(equal, "multinomial").index).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_single_episodes_rank_by_return():
    filtered = apply(tensor([[0.2], [0.6], [1.0]]), "weight")
    torch.testing.assert_close(filtered.probability, tensor([0, 0.5, 1]))
    torch.testing.assert_close(filtered.weight, tensor([0, 1, 2]))


def test_r_max_from_the_data():
    returns = random_returns()
    by_hand = apply(returns, r_max=returns.amax((1, 2)))
    from_data = apply(returns, r_max="data")
    torch.testing.assert_close(from_data.score, by_hand.score)
    assert torch.equal(from_data.index, by_hand.index)


def test_weights_and_resampling_have_the_same_expected_loss():
    returns, loss = random_returns(tasks=2), uniform(2, 6, seed=5)
    weighted = apply(returns, "weight")
    expected = (weighted.probability * loss).sum(-1) / weighted.probability.sum(-1)
    torch.testing.assert_close((weighted.weight * loss).mean(-1), expected)
    drawn = apply(returns.repeat(20_000, 1, 1), "multinomial")
    losses = loss.repeat(20_000, 1).gather(1, drawn.index).mean(-1).view(20_000, 2).mean(0)
    torch.testing.assert_close(losses, expected, atol=0.003, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_learners_that_do_not_learn_leave(mode):
    random = generator(0, "learners")
    tasks, histories, episodes = 40, 50, 100
    noise = torch.randn(tasks, histories, episodes, generator=random, dtype=torch.float64)
    learning = (18 * (1 - torch.exp(-torch.arange(episodes) / 15)) + 2 * noise).clamp(0, 20)
    playing_at_random = (1 + 2 * noise).clamp(0, 20)
    learns = (torch.rand(tasks, histories, generator=random) >= 0.3)[..., None]
    returns = torch.where(learns, learning, playing_at_random)
    filtered = apply(returns, mode, r_max=20)

    def average(values):
        return (filtered.weight * values.gather(1, filtered.index)).mean().item()

    assert 0.28 < 1 - learns.double().mean().item() < 0.32
    assert average((~learns[..., 0]).double()) < 0.1
    assert average(returns.mean(-1)) > 1.2 * returns.mean().item()


def test_rewards_of_checkpoints_on_prompts():
    rewards = torch.tensor([[[0.0, 0.2, 0.9], [0.1, 0.1, 0.1]], [[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]]])
    assert apply(rewards).index.tolist() == [[0, 0], [1, 1]]


# Returns that do not fit, and errors


def test_returns_outside_the_range_are_counted_once():
    returns = random_returns()
    returns[0, 0, 0], returns[2, 1, 3] = -0.5, 1.5
    with pytest.warns(
        UserWarning, match=r"^2 of 90 returns are outside \[0, R_max\] \(they are from -0.5 to 1.5\)"
    ) as seen:
        filtered = apply(returns)
    assert len(seen) == 1
    torch.testing.assert_close(filtered.score, score(returns, 1))


def test_no_warning_for_padding_or_rounding():
    rounded = torch.full((2, 3, 4), 0.1) * (1 + 2e-7)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    rounded[..., -1], mask[..., -1] = 7.0, False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apply(rounded, r_max=0.1, mask=mask).index.tolist() == [[0, 1, 2]] * 2


def test_errors():
    returns = random_returns()
    with pytest.raises(ValueError, match=r"r_max\[1\] = 0.0; valid: finite and above 0; scale_returns"):
        apply(returns, r_max=tensor(1, 0, 1))
    with pytest.raises(ValueError, match=r"r_max\[0\] = -.* \(and 2 more\); valid: finite and above 0"):
        apply(returns - 2, r_max="data")
    with pytest.raises(ValueError, match=r"r_max = 'dta'; valid: a number, one for each task, or 'data'"):
        apply(returns, r_max="dta")
    with pytest.raises(ValueError, match=r"returns are torch.int64"):
        apply(returns.long())
    with pytest.raises(ValueError, match=r"mode = 'weights'; valid: resample, shuffled, multinomial, weight"):
        HistoryFilter(mode="weights")
    with pytest.raises(ValueError, match=r"alpha = 0; valid"):
        HistoryFilter(alpha=0)
    with pytest.raises(ValueError, match=r"stability_weight = -1; valid"):
        HistoryFilter(stability_weight=-1)


@pytest.mark.parametrize("choose", [resample, multinomial])
def test_probabilities_that_are_none(choose):
    v = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"probability is from 0.0 to 1.5; valid: 0 to 1"):
        choose(tensor([0, 1, 1.5], [0, 1, 1]), v)
    with pytest.raises(ValueError, match=r"probability is from nan to nan; valid: 0 to 1"):
        choose(tensor([0, 1, math.nan], [0, 1, 1]), v)
    with pytest.raises(ValueError, match=r"probability of task 1 is all 0; valid: some history above 0"):
        choose(tensor([0, 1, 1], [0, 0, 0]), v)
    with pytest.raises(ValueError, match=r"probability is of shape \(3,\); valid: \[task, history\]"):
        choose(tensor(0, 1, 1), v)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_the_same_choice_on_the_gpu(mode):
    returns = random_returns()
    here, there = apply(returns, mode), apply(returns.cuda(), mode)
    assert there.index.is_cuda
    assert torch.equal(here.index, there.index.cpu())
    torch.testing.assert_close(here.weight, there.weight.cpu())
