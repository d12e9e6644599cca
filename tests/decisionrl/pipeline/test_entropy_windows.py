"""ARES: difficulty, entropy windows, the rewards and the KL weight made of them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_rollout_batches import of_lengths, padded, random_rollout, rollout

from decisionrl.pipeline.entropy_windows import (
    EASY,
    HARD,
    MEDIUM,
    Difficulty,
    EntropyReward,
    HighEntropyWindows,
    KLController,
    ReleasedEntropyReward,
    covered,
    window_means,
)

LONGEST = 30


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def counted(counts, difficulty, correct, **fields):
    """Rows of LONGEST steps of which so many begin a window of high entropy."""
    return rollout(
        torch.ones(len(counts), LONGEST),
        extras={
            "high_entropy": torch.arange(LONGEST) < torch.tensor(counts)[:, None],
            "difficulty": torch.tensor(difficulty),
            "correct": torch.tensor(correct, dtype=torch.bool),
        },
        **fields,
    )


def bonus(step, batch):
    """What a reward step adds to each row; all of it belongs to the last step."""
    shaped = step(batch)
    assert torch.equal(shaped.reward[:, :-1], batch.reward[:, :-1])
    return (shaped.reward - batch.reward)[:, -1].tolist()


# Difficulty


def test_buckets_of_the_paper():
    correct = torch.arange(8) < torch.arange(9)[:, None]
    batch = rollout(torch.ones(72, 1), reward=correct.double().reshape(72, 1), group=torch.arange(72) // 8)
    found = Difficulty()(batch).extras
    assert found["difficulty"][::8].tolist() == [HARD] * 3 + [MEDIUM] * 3 + [EASY] * 3
    assert torch.equal(found["correct"], batch.reward[:, 0] == 1)


def test_buckets_of_the_release_at_their_bounds():
    batch = rollout(torch.ones(6, 1), reward=tensor(1, 1, 0, 1, 0, 0)[:, None].float(), group=torch.arange(6) // 3)
    found = Difficulty(easy=2 / 3, medium=1 / 3)(batch)
    assert found.extras["difficulty"].tolist() == [EASY] * 3 + [MEDIUM] * 3


def test_success_is_of_the_whole_row():
    batch = rollout(of_lengths(2, 1), reward=tensor([0.3, 0.3], [0.4, 9.0]), group=torch.tensor([1, 1]))
    assert Difficulty()(batch).extras["correct"].tolist() == [True, False]
    assert Difficulty(success=0.35)(batch).extras["correct"].tolist() == [True, True]


# Windows


def test_window_means_by_hand():
    values, mask = tensor([1, 2, 3, 4], [5, 6, 7, math.nan]), of_lengths(4, 3)
    expected = tensor([1.5, 2.5, 3.5, 4], [5.5, 6.5, 7, 0])
    torch.testing.assert_close(window_means(values, mask, 2), expected)


@given(st.integers(0, 10_000), st.integers(1, 8))
@settings(max_examples=50)
def test_windows_against_plain_python(seed, width):
    batch = random_rollout(seed)
    begins = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    means, cover = window_means(batch.entropy, batch.mask, width), covered(begins, batch.mask, width)
    for row in range(batch.num_sequences):
        own = batch.mask[row].nonzero().flatten().tolist()
        for place, step in enumerate(own):
            window = own[place : place + width]
            assert means[row, step].item() == pytest.approx(batch.entropy[row, window].mean().item())
            before = own[max(0, place - width + 1) : place + 1]
            assert cover[row, step].item() == begins[row, before].any().item()
    assert not cover[~batch.mask].any()


def test_threshold_of_the_paper():
    entropy = torch.rand(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = HighEntropyWindows(quantile=0.6)(rollout(torch.ones(5, 40), entropy=entropy))
    tau = entropy.quantile(0.6, dim=1).mean()
    torch.testing.assert_close(found.metrics["high_entropy_threshold"], tau)
    high = window_means(entropy, found.mask, 4) >= tau
    assert 0 < high.sum() < high.numel()
    assert torch.equal(found.extras["high_entropy"], high)
    assert torch.equal(found.extras["in_window"], covered(high, found.mask, 4))
    torch.testing.assert_close(found.metrics["high_entropy_count"], high.double().sum(1).mean())


def test_threshold_of_the_release_is_averaged():
    find = HighEntropyWindows(threshold="release", decay=0.9, quantile=0.5)
    taus = []
    for seed in range(3):
        batch = random_rollout(seed)
        means = window_means(batch.entropy, batch.mask, 4)
        rows = [means[row, own].quantile(0.5) for row, own in enumerate(batch.mask)]
        taus.append(torch.stack(rows).quantile(0.5))
        last = find(batch)
    expected = 0.9 * (0.9 * taus[0] + 0.1 * taus[1]) + 0.1 * taus[2]
    torch.testing.assert_close(last.metrics["high_entropy_threshold"], expected)


@pytest.mark.parametrize("threshold", ["paper", "release"])
def test_garbage_outside_the_mask_changes_nothing(threshold):
    batch = random_rollout(4)

    def find(batch):
        return HighEntropyWindows(quantile=0.5, width=2, threshold=threshold)(batch)

    short, long = find(batch), find(padded(batch))
    assert torch.equal(long.extras["high_entropy"][:, :6], short.extras["high_entropy"])
    assert torch.equal(long.extras["in_window"][:, :6], short.extras["in_window"])
    assert not long.extras["in_window"][:, 6:].any()
    order = torch.randperm(8)
    assert torch.equal(find(batch.rows(order)).extras["in_window"], short.extras["in_window"][order])


def test_batches_without_own_steps_leave_the_threshold():
    find, batch = HighEntropyWindows(), random_rollout(0)
    empty = batch.replace(mask=torch.zeros_like(batch.mask))
    assert not find(empty).extras["high_entropy"].any()
    tau = find(batch).metrics["high_entropy_threshold"]
    assert find(empty).metrics["high_entropy_threshold"] == tau


def test_single_steps():
    batch = rollout(torch.ones(3, 1), entropy=tensor(0.1, 0.2, 0.9)[:, None])
    assert HighEntropyWindows()(batch).extras["high_entropy"].flatten().tolist() == [False, False, True]


# The reward of the paper


def test_first_batch_is_left_as_it_is():
    batch = counted([1, 5, 9, 2, 4, 0], [EASY, EASY, MEDIUM, MEDIUM, HARD, HARD], [0] * 6)
    assert bonus(EntropyReward(), batch) == [0] * 6


@pytest.mark.parametrize(
    ("difficulty", "expected"), [(EASY, [0, 0, 0, 4]), (MEDIUM, [2, 0, 0, 4]), (HARD, [2, 0, 0, 0])]
)
def test_penalty_by_hand(difficulty, expected):
    step = EntropyReward(epsilon=1e-12)
    step(counted([4, 4], [difficulty] * 2, [0, 0]))
    counts = [2, 4, 8, 8]  # mean 5.5, variance 6.75, target 4
    found = bonus(step, counted(counts, [difficulty] * 4, [0, 0, 1, 0]))
    assert found == pytest.approx([-1.5 / 6.75 * g for g in expected])


def test_target_is_an_average_of_the_batches_before():
    step = EntropyReward(decay=0.9)
    for counts in ([4, 4], [14, 14]):
        step(counted(counts, [EASY, EASY], [0, 0]))
    step(counted([1], [HARD], [0]))
    target = step.state_dict()["target"]
    assert target[EASY].item() == pytest.approx(0.9 * 4 + 0.1 * 14)
    assert target[HARD].item() == 1
    assert target[MEDIUM].isnan()


def test_fewer_windows_than_usual_are_not_penalized():
    step = EntropyReward()
    step(counted([20, 20], [MEDIUM] * 2, [0, 0]))
    assert bonus(step, counted([3, 9], [MEDIUM] * 2, [0, 0])) == [0, 0]


@given(st.lists(st.tuples(st.integers(0, LONGEST), st.integers(0, 2), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=50)
def test_shape_of_the_penalty(rows):
    step = EntropyReward()
    step(counted([2, 2, 2], [EASY, MEDIUM, HARD], [0, 0, 0]))
    counts, difficulty, correct = zip(*rows, strict=True)
    penalty = [-b for b in bonus(step, counted(counts, difficulty, correct))]
    assert all(p >= 0 for p in penalty)
    assert all(p == 0 for p, c in zip(penalty, correct, strict=True) if c)
    for level, sign in ((EASY, 1), (HARD, -1)):
        chosen = [i for i in range(len(rows)) if difficulty[i] == level and not correct[i]]
        chosen.sort(key=lambda i: sign * counts[i])
        assert all(penalty[i] <= penalty[j] + 1e-12 for i, j in itertools.pairwise(chosen))


def test_rows_without_own_steps_leave_the_statistics():
    step, batch = EntropyReward(), counted([4, 8, 0], [EASY] * 3, [0, 0, 0])
    step(batch.replace(mask=batch.mask & torch.tensor([[True], [True], [False]])))
    assert step.state_dict()["target"][EASY].item() == 6


# The reward of the release


def released(count, difficulty, correct, target, alpha):
    """The table of the released code, one row at a time."""
    f, k, t = ((0.15, 0.25, 0.35)[difficulty], (2, 3, 4)[difficulty], (2, 2.5, 3)[difficulty])
    cap, margin, delta = alpha * (1, 1, 1.2)[difficulty], max(1, f * target), count - target

    def huber(x):
        return x * x / (2 * k) if x <= k else x - k / 2

    def sat(x):
        return 1 / (1 + math.exp(-x / t))

    if difficulty != HARD and correct:
        x = max((delta if difficulty == EASY else abs(delta)) - margin, 0)
        return -min(cap, cap * huber(x) / (margin + k))
    if difficulty != HARD:
        return sat(max(delta - margin, 0)) * cap * (0.6, 0.8)[difficulty]
    if not correct:
        return sat(max(delta - margin, 0)) * cap
    if delta >= -margin:
        return sat(delta + margin) * cap
    return -min(cap, 0.5 * cap * huber(-delta - margin) / (margin + k))


@given(st.lists(st.tuples(st.integers(0, LONGEST), st.integers(0, 2), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=50)
def test_release_against_its_table(rows):
    step, alpha = ReleasedEntropyReward(), [0.5, 0.5, 0.5]
    for batch_rows in (rows, rows[::-1][: len(rows) // 2 + 1]):
        counts, difficulty, correct = zip(*batch_rows, strict=True)
        means = [[n for n, d, _ in batch_rows if d == level] for level in range(3)]
        means = [sum(m) / len(m) if m else None for m in means]
        expected = [released(n, d, c, round(means[d]), alpha[d]) for n, d, c in batch_rows]
        assert bonus(step, counted(counts, difficulty, correct)) == pytest.approx(expected)
        for level, mean in enumerate(means):
            if mean is not None:
                drift = 0.05 * (mean - round(mean))
                alpha[level] = min(max(alpha[level] + (-drift if level == HARD else drift), 0), 2)
    assert step.state_dict()["alpha"].tolist() == pytest.approx(alpha)


def test_release_pays_for_wrong_answers():
    assert bonus(ReleasedEntropyReward(), counted([4, 4], [EASY, EASY], [0, 1])) == pytest.approx([0.15, 0])


# The KL weight


def kl_batch(log_ratio, difficulty, in_window, mask=None):
    log_ratio = torch.as_tensor(log_ratio, dtype=torch.float64)
    return rollout(
        torch.ones_like(log_ratio) if mask is None else mask,
        log_prob=log_ratio,
        extras={
            "reference_log_prob": torch.zeros_like(log_ratio),
            "difficulty": torch.tensor(difficulty),
            "in_window": torch.tensor(in_window),
        },
    )


def k3(d):
    return math.exp(-d) + d - 1


def test_controller_by_hand():
    control = KLController(rho=0.3, target=0.1, rate=0.5, initial=2.0)
    batch = kl_batch(
        [[0.5, -0.5, 9.0], [0.1, 0.1, 0.1], [0.2, math.nan, 0.4]],
        [EASY, HARD, EASY],
        [[False, False, True], [False] * 3, [False, False, False]],
        mask=torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1]]),
    )
    weight = control(batch).extras["kl_weight"]
    easy = 2 * (1 + 0.5 * ((k3(0.5) + k3(-0.5) + k3(0.2) + k3(0.4)) / 4 / 0.1 - 1))
    hard = 2 * (1 + 0.5 * (k3(0.1) / 0.1 - 1))
    torch.testing.assert_close(weight[batch.mask], tensor(easy, easy, 0.3 * easy, hard, hard, hard, easy, easy))
    torch.testing.assert_close(control.state_dict()["kappa"], tensor(easy, 2.0, hard))


def test_controller_stays_within_its_bounds_and_at_the_target():
    far, none = kl_batch([[5.0]], [EASY], [[False]]), kl_batch([[0.0]], [EASY], [[False]])
    control = KLController(rate=0.5, low=0.25, high=4.0)
    for batch, bound in ((far, 4.0), (none, 0.25)):
        for _ in range(10):
            found = control(batch)
        assert found.metrics["kl_weight_easy"].item() == bound
        assert found.metrics["kl_weight_medium"].item() == 1
    at_target = KLController(target=k3(0.2), rate=0.5)
    assert at_target(kl_batch([[0.2]], [HARD], [[False]])).extras["kl_weight"].item() == pytest.approx(1)


def test_without_adaptation_all_steps_weigh_the_same():
    batch = random_rollout(0)
    extras = {**batch.extras, "difficulty": torch.arange(8) % 3, "in_window": torch.rand(8, 6) < 0.5}
    weight = KLController(rho=1.0, rate=0.0)(batch.replace(extras=extras)).extras["kl_weight"]
    assert (weight == 1).all()


def test_only_windows_leave_kappa_alone():
    control = KLController(rho=0.25)
    assert control(kl_batch([[3.0]], [EASY], [[True]])).extras["kl_weight"].item() == 0.25


# State and errors


@pytest.mark.parametrize(
    "build",
    [
        lambda: HighEntropyWindows(decay=0.9),
        lambda: EntropyReward(),
        lambda: ReleasedEntropyReward(),
        lambda: KLController(),
    ],
)
def test_state_round_trip(build):
    first, second = build(), build()

    def batch(seed):
        found = Difficulty()(random_rollout(seed))
        return HighEntropyWindows(quantile=0.3, width=2)(found)

    for seed in range(3):
        first(batch(seed))
    second.load_state_dict(first.state_dict())
    mine, other = first(batch(4)), second(batch(4))
    torch.testing.assert_close(other.reward, mine.reward, equal_nan=True, rtol=0, atol=0)
    for name, expected in mine.extras.items():
        torch.testing.assert_close(other.extras[name], expected, equal_nan=True, rtol=0, atol=0)
    fresh = build()(batch(4))
    changed = [name for name in mine.extras if not torch.equal(fresh.extras[name], mine.extras[name])]
    assert changed or not torch.equal(fresh.reward[mine.mask], mine.reward[mine.mask])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Difficulty(easy=0.3, medium=0.5), "easy = 0.3, medium = 0.5; valid"),
        (lambda: Difficulty()(rollout(torch.ones(1, 1))), "group is None"),
        (lambda: HighEntropyWindows(width=0), "width = 0; valid"),
        (lambda: HighEntropyWindows(quantile=2), "quantile = 2; valid"),
        (lambda: HighEntropyWindows(threshold="median"), "threshold = 'median'; valid: paper, release"),
        (lambda: HighEntropyWindows(decay=1), "decay = 1; valid"),
        (lambda: HighEntropyWindows()(rollout(torch.ones(1, 1))), "entropy is None"),
        (lambda: EntropyReward(decay=1), "decay = 1; valid"),
        (lambda: EntropyReward(epsilon=0), "epsilon = 0; valid"),
        (lambda: EntropyReward()(rollout(torch.ones(1, 1))), r"extras\['correct'\] is missing; put Difficulty earlier"),
        (lambda: KLController(rho=2), "rho = 2; valid"),
        (lambda: KLController(target=0), "target = 0; valid"),
        (lambda: KLController(rate=1), "rate = 1; valid"),
        (lambda: KLController(initial=1e3), "initial = 1000.0, high = 100.0; valid"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
