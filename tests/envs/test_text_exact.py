"""What the text tasks claim to know exactly: values, gradients, variances and when to stop, against plain loops."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from decisionrl.envs.text import own_characters
from decisionrl.envs.text.key_token_chain import KeyTokenChain
from decisionrl.envs.text.prompt_bandit import PromptBandit
from decisionrl.envs.text.stop_vote import StopVote, majority_accuracy, optimal_stopping


@pytest.fixture
def bandit() -> PromptBandit:
    return PromptBandit(prompts=3, actions=4, table_seed=2)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def leave_one_out(reward: Tensor) -> Tensor:
    others = (reward.sum(-1, keepdim=True) - reward) / (reward.shape[-1] - 1)
    return reward - others


def test_the_table_holds_the_rewards_of_the_letters(bandit: PromptBandit) -> None:
    for prompt, letters in enumerate(bandit.right):
        assert 1 <= len(letters) <= 3
        rewards = [bandit.reward(prompt, letter) for letter in "abcd"]
        assert bandit.table[prompt].tolist() == rewards == [float(letter in letters) for letter in "abcd"]
        assert bandit.reward(prompt, letters + letters) == 0
    sizes = {len(right) for right in PromptBandit(prompts=200).right}
    assert sizes == {1, 2, 3, 4, 5}
    assert PromptBandit(table_seed=1).right != PromptBandit(table_seed=2).right


def test_value_and_gradient_of_the_bandit(bandit: PromptBandit, logits: Tensor) -> None:
    policy = logits.softmax(1)
    expected = sum(policy[m, k] * bandit.table[m, k] for m in range(3) for k in range(4)) / 3
    leaf = logits.clone().requires_grad_()
    value = bandit.value(leaf)
    value.backward()
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(bandit.gradient(logits), leaf.grad)
    assert bandit.value(1e3 * bandit.table) == 1


@pytest.mark.parametrize(("group_size", "baselined"), [(1, False), (1, True), (2, False), (3, True)])
def test_moments_of_the_gradient_in_plain_loops(
    bandit: PromptBandit, logits: Tensor, group_size: int, baselined: bool
) -> None:
    baseline = torch.tensor([0.3, 0.7, 0.2], dtype=torch.float64) * baselined
    moments = bandit.gradient_moments(logits, lambda reward: reward - baseline[:, None, None], group_size=group_size)
    policy = logits.softmax(1)
    mean, second = torch.zeros(3, 4, dtype=torch.float64), 0.0
    for prompt in range(3):
        for group in itertools.product(range(4), repeat=group_size):
            probability = math.prod(float(policy[prompt, action]) for action in group) / 3
            estimate = torch.zeros(3, 4, dtype=torch.float64)
            for action in group:
                leaf = logits.clone().requires_grad_()
                leaf.log_softmax(1)[prompt, action].backward()
                estimate += (bandit.table[prompt, action] - baseline[prompt]) * leaf.grad / group_size
            mean += probability * estimate
            second += probability * float(estimate.square().sum())
    torch.testing.assert_close(moments.mean, mean)
    assert float(moments.variance) == pytest.approx(second - float(mean.square().sum()), rel=1e-9)


def test_which_estimators_are_unbiased(bandit: PromptBandit, logits: Tensor) -> None:
    gradient = bandit.gradient(logits)
    greedy = bandit.table.gather(1, logits.argmax(1, keepdim=True))
    reinforce = bandit.gradient_moments(logits, lambda reward: reward)
    for unbiased in (
        reinforce,
        bandit.gradient_moments(logits, lambda reward: reward - greedy[:, None]),
        bandit.gradient_moments(logits, leave_one_out, group_size=2),
        bandit.gradient_moments(logits, leave_one_out, group_size=4),
    ):
        torch.testing.assert_close(unbiased.mean, gradient)
    centered = bandit.gradient_moments(logits, lambda reward: reward - reward.mean(-1, keepdim=True), group_size=4)
    torch.testing.assert_close(centered.mean, 0.75 * gradient)  # (G - 1) / G of the leave-one-out advantage


def test_the_optimal_baseline_has_the_smallest_variance(bandit: PromptBandit, logits: Tensor) -> None:
    policy = logits.softmax(1)
    square = 1 - 2 * policy + policy.square().sum(1, keepdim=True)  # |e_k - pi|^2
    best = (policy * square * bandit.table).sum(1) / (policy * square).sum(1)

    def variance(baseline: Tensor) -> float:
        return float(bandit.gradient_moments(logits, lambda reward: reward - baseline[:, None, None]).variance)

    for shift in (-0.3, -0.01, 0.01, 0.3):
        assert variance(best) < variance(best + shift)
    certain = 1e3 * bandit.table
    assert float(bandit.gradient_moments(certain, lambda reward: reward - 1).variance) == 0


def test_moments_refuse_what_they_cannot_enumerate(bandit: PromptBandit, logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"group_size = 10; valid: actions\^group_size <= 262,144"):
        bandit.gradient_moments(logits, lambda reward: reward, group_size=10)
    with pytest.raises(ValueError, match=r"advantage has shape \[3, 16\]; valid: \[3, 16, 2\]"):
        bandit.gradient_moments(logits, lambda reward: reward.mean(-1), group_size=2)


def test_keys_stand_where_the_pattern_says() -> None:
    task = KeyTokenChain(length=5, keys=2)
    patterns = [task.pattern(index) for index in range(task.num_prompts)]
    expected = {
        "".join(pattern) for pattern in itertools.product(".01", repeat=5) if sum(key != "." for key in pattern) == 2
    }
    assert len(patterns) == len(expected) == 40
    assert set(patterns) == expected
    everywhere = KeyTokenChain(length=3, keys=3)
    assert {everywhere.pattern(index) for index in range(8)} == set(map("".join, itertools.product("01", repeat=3)))


@pytest.mark.parametrize("partial_credit", [False, True])
def test_rewards_of_all_sequences(partial_credit: bool) -> None:
    task = KeyTokenChain(length=4, keys=2, partial_credit=partial_credit)
    for index in range(task.num_prompts):
        pattern = task.pattern(index)
        for response in map("".join, itertools.product("01", repeat=4)):
            right = sum(pattern[t] == response[t] for t in range(4))
            assert task.reward(index, response) == (right / 2 if partial_credit else float(right == 2))
    for wrong in ("", "000", "00000", "00.0", "0 00"):
        assert task.reward(0, wrong) == 0


@pytest.mark.parametrize("partial_credit", [False, True])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_values_of_all_prefixes(order: int, partial_credit: bool) -> None:
    task = KeyTokenChain(length=6, keys=2, partial_credit=partial_credit)
    index = 33
    policy = torch.rand(6, *[2] * (order + 1), generator=torch.Generator().manual_seed(order), dtype=torch.float64)
    policy = policy / policy.sum(-1, keepdim=True)
    values = task.values(index, policy)
    assert values.shape == (7, *[2] * order, 3)

    def value(prefix: str) -> float:
        if len(prefix) == 6:
            return task.reward(index, prefix)
        before = ("0" * order + prefix)[len(prefix) :]
        chances = policy[(len(prefix), *map(int, before))]
        return sum(float(chances[bit]) * value(prefix + str(bit)) for bit in (0, 1))

    for response in map("".join, itertools.product("01", repeat=6)):
        expected = [value(response[:t]) for t in range(7)]
        assert task.prefix_values(index, response, values).tolist() == pytest.approx(expected, abs=1e-14)
    assert task.prefix_values(index, "01", values).tolist() == pytest.approx([value(""), value("0"), value("01")])


def test_values_name_a_policy_of_the_wrong_shape() -> None:
    task = KeyTokenChain(length=6, keys=2)
    for shape in ((6,), (5, 2), (6, 3), (6, 3, 2)):
        with pytest.raises(ValueError, match=r"policy has shape .*; valid: \[6, 2, ..., 2\]"):
            task.values(0, torch.ones(shape))
    with pytest.raises(ValueError, match="response = '012'; valid: up to 6 characters 0 and 1"):
        task.prefix_values(0, "012", task.values(0, torch.full((6, 2), 0.5)))


@pytest.mark.parametrize("delta", [0.5, 0.25, 0.1])
def test_majorities_in_plain_loops(delta: float) -> None:
    for n in range(7):
        expected = 0.0
        for outcome in itertools.product((0, 1), repeat=n):
            right = sum(outcome)
            chance = (0.5 + delta) ** right * (0.5 - delta) ** (n - right)
            expected += chance * (1.0 if 2 * right > n else 0.5 if 2 * right == n else 0.0)
        assert majority_accuracy(delta=delta, observations=n) == pytest.approx(expected, abs=1e-14)
    assert majority_accuracy(delta=0.4, observations=3) == pytest.approx(0.972)


@pytest.mark.parametrize("delta", [0.5, 0.4, 0.1])
@pytest.mark.parametrize("cost", [0.0, 0.001, 0.03, 0.09, 0.2])
def test_optimal_stopping_against_all_histories(delta: float, cost: float) -> None:
    cap = 8

    @cache
    def best(ones: int, zeros: int) -> tuple[float, float, float]:
        """Value, accuracy and further observations, by Bayes' rule."""
        p, q = 0.5 + delta, 0.5 - delta
        one, zero = p**ones * q**zeros, q**ones * p**zeros
        chance = one / (one + zero) if one + zero else 0.5
        stop = max(chance, 1 - chance)
        if ones + zeros == cap:
            return stop, stop, 0.0
        seen_one = chance * p + (1 - chance) * q
        more, less = best(ones + 1, zeros), best(ones, zeros + 1)
        value, accuracy, observations = (seen_one * a + (1 - seen_one) * b for a, b in zip(more, less, strict=True))
        if stop >= value - cost - 1e-12:
            return stop, stop, 0.0
        return value - cost, accuracy, observations + 1

    value, accuracy, observations = best(0, 0)
    rule = optimal_stopping(delta=delta, cost=cost, cap=cap)
    assert (rule.value, rule.accuracy) == pytest.approx((value, accuracy), abs=1e-12)
    assert rule.observations == pytest.approx(observations, abs=1e-12)


def test_limits_of_optimal_stopping() -> None:
    free = optimal_stopping(delta=0.25, cost=0.0, cap=16)
    assert free.accuracy == pytest.approx(majority_accuracy(delta=0.25, observations=16), abs=1e-12)
    assert 8 < free.observations < 16  # it stops when the rest cannot change the majority
    dear = optimal_stopping(delta=0.25, cost=1.0, cap=16)
    assert (dear.accuracy, dear.observations, dear.value) == (0.5, 0.0, 0.5)
    with pytest.raises(ValueError, match=r"delta = 0; valid: in \(0, 0.5\]"):
        optimal_stopping(delta=0, cost=0.1, cap=16)
    sure = optimal_stopping(delta=0.5, cost=0.01, cap=16)
    assert (sure.accuracy, sure.observations) == (1.0, 1.0)


def test_the_frontier_is_monotone_and_above_fixed_numbers() -> None:
    task = StopVote()
    frontier = [task.optimum(cost) for cost in (0.0, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.5)]
    for cheaper, dearer in itertools.pairwise(frontier):
        assert cheaper.accuracy >= dearer.accuracy
        assert cheaper.observations >= dearer.observations
    for rule in frontier:
        for n in range(17):
            fixed = sum(majority_accuracy(delta=delta, observations=n) for delta in task.deltas) / 3
            assert rule.value >= fixed - rule.cost * n - 1e-12


def test_observations_are_right_as_often_as_they_should_be() -> None:
    task = StopVote()
    for index in range(6):
        bit = task.hidden_bit(index)
        assert task.prompt(index) == f"{(0.4, 0.25, 0.1)[index % 3]}:"
        assert bit == int(index >= 3)
        heard = [task.reply(index, "T0" * n + "T", noise) for noise in range(500) for n in range(4)]
        assert set(heard) == {"0", "1"}
        right = sum(reply == str(bit) for reply in heard) / len(heard)
        assert right == pytest.approx(0.5 + task.delta(index), abs=4.5 * 0.5 / 2000**0.5)
    assert StopVote(deltas=(0.5,)).reply(1, "T", 7) == "1"


def test_replies_are_of_their_number_and_noise_alone() -> None:
    task = StopVote(cap=3)
    assert task.reply(0, "T1T", 5) == task.reply(0, "T0T", 5)
    assert len({tuple(task.reply(2, "T0" * n + "T", noise) for n in range(3)) for noise in range(200)}) == 8
    assert task.reply(0, "T0T0T0T", 5) == ""


def test_answers_of_stop_vote() -> None:
    task, dear = StopVote(cap=3), StopVote(cap=3, cost=0.1)
    assert task.hidden_bit(4) == 1
    for right in ("A1", "T0A1", "T1T0T0A1"):
        assert task.reward(4, right) == 1
        assert dear.reward(4, right) == pytest.approx(1 - 0.1 * right.count("T"))
    for wrong in ("A0", "T0A0", "1", "A", "TA1", "T00A1", "A1A1", "T1T1T1T1A1", "T1T1T1TA1", "A1\n", "A1T0", ""):
        assert task.reward(4, wrong) == 0
        assert dear.reward(4, wrong) == pytest.approx(-0.1 * wrong.count("T"))


def test_whose_characters_are_in_a_response() -> None:
    task = StopVote(cap=2)
    assert own_characters(task, 0, "T1T0A1") == [True, False, True, False, True, True]
    assert own_characters(task, 0, "T1T0TA1") == [True, False, True, False, True, True, True]
    with pytest.raises(ValueError, match="text/stop-vote: response 'T1T' ends within a reply"):
        own_characters(task, 0, "T1T")


def test_demonstrations_of_stop_vote_show_every_length_and_likely_observations() -> None:
    task, generator = StopVote(), torch.Generator().manual_seed(3)
    shown = [task.demonstration(3, generator) for _ in range(600)]
    assert {text.count("T") for text in shown} == set(range(17))
    assert max(map(len, shown)) + 1 == task.max_tokens
    heard = "".join(text[1 : text.index("A") : 2] for text in shown)
    assert heard.count("1") / len(heard) == pytest.approx(0.9, abs=4.5 * 0.3 / len(heard) ** 0.5)
