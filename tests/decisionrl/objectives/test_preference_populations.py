"""What the losses' minimizers are when every pair is seen: bandits solved exactly, and a small soft MDP."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor
from toy_preferences import Table, sequences

from decisionrl.experience.preferences import PreferenceBatch, all_pairs
from decisionrl.objectives.preference import PairwisePreference
from decisionrl.objectives.preference_methods import PreferenceObjective, build
from decisionrl.objectives.preference_scores import SequenceScore
from decisionrl.policies.evaluation import Batch, Evaluation

REWARD = torch.tensor([0.661352, 0.266924, 0.061677, 0.621317, -0.451906, -0.16613], dtype=torch.float64)
REFERENCE = torch.tensor([0.3, 0.1, 0.25, 0.05, 0.2, 0.1], dtype=torch.float64)
BETA = 0.5


def every_pair(probability: Tensor, reference: Tensor | None = None) -> PreferenceBatch:
    """Each pair of a bandit's arms, labelled with the probability [k, k] that the row beats the column."""
    k = len(probability)
    first, second = torch.triu_indices(k, k, 1)
    arms = torch.arange(k).unsqueeze(1)
    extras = {} if reference is None else {"reference_log_prob": reference.log().unsqueeze(1)}
    mask = torch.ones(k, 1, dtype=torch.bool)
    return PreferenceBatch(
        segments=sequences(mask, extras=extras, action=arms),
        first=first,
        second=second,
        label=probability[second, first],
    )


def bradley_terry(reward: Tensor) -> Tensor:
    return (reward.unsqueeze(1) - reward.unsqueeze(0)).sigmoid()


def minimized(objective: PreferenceObjective, batch: PreferenceBatch, *, states: int = 1, arms: int = 6) -> Table:
    """L-BFGS from the uniform policy."""
    policy = Table(torch.zeros(states, arms, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        policy.parameters(),
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = objective(policy, batch).value
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return policy


def log_ratio(policy: Table) -> Tensor:
    return policy.logits.detach()[0].log_softmax(0) - REFERENCE.log()


def test_dpo_finds_the_optimum_of_the_regularized_reward() -> None:
    policy = minimized(build("dpo", beta=BETA), every_pair(bradley_terry(REWARD), REFERENCE))
    optimum = (REFERENCE.log() + REWARD / BETA).log_softmax(0)
    assert (policy.logits.detach()[0].log_softmax(0) - optimum).abs().max() < 4e-7


def test_sampling_pairs_unevenly_changes_nothing() -> None:
    batch = every_pair(bradley_terry(REWARD), REFERENCE)
    weight = torch.linspace(0.2, 3, len(batch.label), dtype=torch.float64)
    policy = minimized(build("dpo", beta=BETA), dataclasses.replace(batch, weight=weight))
    optimum = (REFERENCE.log() + REWARD / BETA).log_softmax(0)
    assert (policy.logits.detach()[0].log_softmax(0) - optimum).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["cdpo", "exo"])
def test_noise_models_bound_the_margin_of_certain_labels(name: str) -> None:
    """One arm always beats the other: beta Delta = ln((1 - eps) / eps)."""
    certain = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    batch = every_pair(certain, REFERENCE[:2])
    policy = minimized(build(name, beta=BETA, epsilon=0.2), batch, arms=2)
    ratio = policy.logits.detach()[0].log_softmax(0) - REFERENCE[:2].log()
    assert BETA * (ratio[0] - ratio[1]).item() == pytest.approx(math.log(4), abs=1e-6)


def test_the_margins_of_ipo() -> None:
    """h_i - h_j, with h_i the mean over j of (P_ij - P_ji) / (2 tau): what a full set of pairs leaves of them."""
    probability, tau = bradley_terry(2 * REWARD), 0.4
    policy = minimized(build("ipo", tau=tau), every_pair(probability, REFERENCE))
    expected = ((probability - probability.T) / (2 * tau)).mean(1)
    found = log_ratio(policy)
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=1e-6)


def test_nca_bounds_the_score_of_the_chosen() -> None:
    """The chosen one's part is least at a score of ln 2."""
    objective = build("nca", beta=1.0)
    score = torch.tensor([math.log(2)], dtype=torch.float64, requires_grad=True)

    def loss(chosen: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.float64)
        mask = torch.ones(2, 1, dtype=torch.bool)
        segments = sequences(mask, extras={"reference_log_prob": torch.zeros(2, 1, dtype=torch.float64)})
        batch = PreferenceBatch(
            segments=segments, first=torch.tensor([0]), second=torch.tensor([1]), label=torch.ones(1)
        )
        return objective(_Says(torch.stack([zero, chosen[0]]).unsqueeze(1)), batch).value

    (slope,) = torch.autograd.grad(loss(score), score)
    assert abs(slope.item()) < 1e-15
    assert all(loss(score.detach() + step) > loss(score.detach()) for step in (-0.1, 0.1))


class _Says:
    def __init__(self, log_prob: Tensor) -> None:
        self.log_prob = log_prob

    def evaluate(self, batch: Batch, /) -> Evaluation:
        return Evaluation(self.log_prob)


def test_robust_dpo_is_unbiased_under_flips() -> None:
    """The expectation over all flips of four labels is the loss of the true ones."""
    epsilon = 0.15
    policy = Table(torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(0))
    batch = every_pair(bradley_terry(REWARD), REFERENCE)
    clean = dataclasses.replace(
        batch, first=batch.first[:4], second=batch.second[:4], label=(batch.label[:4] > 0.5).double()
    )
    objective, expected = build("robust_dpo", beta=BETA, epsilon=epsilon), build("dpo", beta=BETA)(policy, clean).value
    total = torch.zeros((), dtype=torch.float64)
    for flips in itertools.product([0.0, 1.0], repeat=4):
        flip = torch.tensor(flips, dtype=torch.float64)
        noisy = dataclasses.replace(clean, label=(clean.label - flip).abs())
        likelihood = math.prod(epsilon if each else 1 - epsilon for each in flips)
        total = total + likelihood * objective(policy, noisy).value
    assert (total - expected).abs() < 1e-15


def test_cpl_recovers_the_bandit() -> None:
    """Preferences follow A* = r - alpha log sum exp(r / alpha), and pi* = softmax(r / alpha)."""
    alpha, reward = 0.5, torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    batch = every_pair(bradley_terry(reward))
    objective = build("cpl", alpha=alpha, bias=1.0)
    optimum = Table((reward / alpha).unsqueeze(0))
    (gradient,) = torch.autograd.grad(objective(optimum, batch).value, optimum.logits)
    assert gradient.abs().max() < 1e-16
    policy = minimized(objective, batch, arms=3)
    assert (policy.logits.detach().softmax(1) - (reward / alpha).softmax(0)).abs().max() < 1e-7


def test_the_bias_keeps_mass_on_the_arms_that_were_seen() -> None:
    """Only the first two arms are compared, and they are equal."""
    batch = every_pair(torch.full((3, 3), 0.5, dtype=torch.float64))
    seen = dataclasses.replace(batch, first=batch.first[:1], second=batch.second[:1], label=batch.label[:1])
    inside, outside = (Table(torch.tensor([p], dtype=torch.float64).log()) for p in ([0.5, 0.5, 1e-9], [0.1, 0.1, 0.8]))
    plain, biased = (PairwisePreference(score=SequenceScore(), bias=bias) for bias in (1.0, 0.5))
    assert plain(inside, seen).value.item() == pytest.approx(math.log(2))
    assert plain(outside, seen).value.item() == pytest.approx(math.log(2))
    assert biased(inside, seen).value < biased(outside, seen).value - 0.1


STATES, GOAL, ALPHA = 5, 4, 0.2


def chain(state: int, action: int) -> int:
    """Left, right or stay on a line of five states."""
    return min(max(state + (-1, 1, 0)[action], 0), STATES - 1)


def soft_solution(reward: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """A* [horizon, states, actions] and V* [horizon + 1, states] of maximum entropy control with a finite horizon."""
    values, advantages = [torch.zeros(STATES, dtype=torch.float64)], []
    following = torch.tensor([[chain(s, a) for a in range(3)] for s in range(STATES)])
    for _ in range(horizon):
        q = reward + values[0][following]
        values.insert(0, ALPHA * (q / ALPHA).logsumexp(1))
        advantages.insert(0, q - values[0].unsqueeze(1))
    return torch.stack(advantages), torch.stack(values)


def paths(start: int, length: int) -> list[tuple[list[int], list[int]]]:
    """All action sequences from a state: the states seen and the actions."""
    found = []
    for actions in itertools.product(range(3), repeat=length):
        states = [start]
        for action in actions:
            states.append(chain(states[-1], action))
        found.append((states, list(actions)))
    return found


def test_regret_labels_and_cpl_recover_the_soft_optimal_policy() -> None:
    """A line with a reward at its end, segments of two steps from every time and state."""
    horizon, length = 4, 2
    reward = torch.zeros(STATES, 3, dtype=torch.float64)
    reward[GOAL] = 1.0
    advantage, value = soft_solution(reward, horizon)
    observations, actions, regret, partial = [], [], [], []
    for time, start in itertools.product(range(horizon - length + 1), range(STATES)):
        for seen, done in paths(start, length):
            observations.append([(time + k) * STATES + seen[k] for k in range(length)])
            actions.append(done)
            own = sum(advantage[time + k, seen[k], done[k]].item() for k in range(length))
            earned = sum(reward[seen[k], done[k]].item() for k in range(length))
            telescoped = value[time + length, seen[-1]].item() - value[time, start].item() + earned
            assert own == pytest.approx(telescoped, abs=1e-8)
            regret.append(own)
            partial.append(earned)
    score, returns = torch.tensor(regret, dtype=torch.float64), torch.tensor(partial, dtype=torch.float64)
    segments = sequences(
        torch.ones(len(score), length, dtype=torch.bool),
        observation=torch.tensor(observations),
        action=torch.tensor(actions),
    )
    batch = all_pairs(segments, score)
    tied = all_pairs(segments, returns).weight
    assert batch.weight is not None
    assert tied is not None
    assert (tied == 0).double().mean() > 0.3  # the return cannot tell most segments apart
    assert (batch.weight == 0).double().mean() < 0.15
    toward, away = (
        actions.index(each, 9) for each in ([1, 1], [0, 0])
    )  # from the second state, out of the goal's reach
    assert returns[toward] == returns[away] == 0
    assert score[toward] > score[away] + 0.1

    labels = (score[batch.second] - score[batch.first]).sigmoid()
    soft = dataclasses.replace(batch, label=labels, weight=None)
    policy = minimized(build("cpl", alpha=ALPHA, bias=1.0), soft, states=horizon * STATES, arms=3)
    optimal = (advantage / ALPHA).reshape(horizon * STATES, 3)
    seen_states = sorted(set(itertools.chain.from_iterable(observations)))
    found = policy.logits.detach().log_softmax(1)[seen_states]
    assert (found.exp() - optimal[seen_states].exp()).abs().max() < 1e-3
