"""Unbiased gradients by exact enumeration of every outcome with its probability, in double precision.

The policy is a softmax over logits. With A without a graph, ``sum over outcomes of p A grad log p`` must be the
gradient of the exact expected reward.
"""

import itertools

import pytest
import torch
from advantage_batches import answers, steps
from torch import Tensor

from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.advantages import GreedyBaseline, MonteCarlo
from decisionrl.pipeline.group_advantages import GroupNormalized, LeaveOneOut
from decisionrl.pipeline.segments import SegmentMonteCarlo
from decisionrl.pipeline.trackers import SingleStream

ARMS, SAMPLES = 4, 3
REWARD = torch.tensor([1.0, 0.0, 0.3, -2.0], dtype=torch.float64)


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def exact_gradient(policy: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((policy.softmax(0) * REWARD).sum(), policy)
    return gradient


def expected_gradient(policy: Tensor, step: PipelineStep) -> Tensor:
    """E of the mean over the group's answers of A grad log p, over all groups of SAMPLES answers, one group each."""
    groups = torch.tensor(list(itertools.product(range(ARMS), repeat=SAMPLES)))
    log_prob = policy.log_softmax(0)[groups]
    probability = log_prob.sum(1).exp().detach()
    name = torch.arange(len(groups)).repeat_interleave(SAMPLES)
    batch = answers(
        REWARD[groups.flatten()],
        name,
        start_id=torch.zeros_like(name),
        extras={"greedy_return": REWARD[policy.argmax()].expand(len(name))},
    )
    advantage = step(batch).advantage
    assert advantage is not None
    value = (probability.unsqueeze(1) * advantage.view_as(log_prob) * log_prob).sum() / SAMPLES
    (gradient,) = torch.autograd.grad(value, policy)
    return gradient


def tracked() -> SingleStream:
    step = SingleStream(normalize=False)
    step.initialize(torch.tensor([0]), torch.tensor([0.37]))
    return step


@pytest.mark.parametrize("make", [MonteCarlo, GreedyBaseline, LeaveOneOut, tracked])
def test_bandit(make: type[LeaveOneOut]) -> None:
    policy = logits(ARMS)
    torch.testing.assert_close(expected_gradient(policy, make()), exact_gradient(policy), rtol=0, atol=1e-12)


def test_the_groups_own_mean_shrinks_the_gradient_and_its_deviation_bends_it() -> None:
    """What the test above would see: Dr. GRPO is (G - 1)/G of the gradient, GRPO is no multiple of it."""
    policy = logits(ARMS)
    exact = exact_gradient(policy)
    shrunk = expected_gradient(policy, GroupNormalized(scale="none"))
    torch.testing.assert_close(shrunk, exact * (SAMPLES - 1) / SAMPLES, rtol=0, atol=1e-12)
    bent = expected_gradient(policy, GroupNormalized())
    assert torch.cosine_similarity(bent, exact, 0) < 0.999


@pytest.mark.parametrize("whole", [False, True])
def test_segments_of_a_tree_of_two_steps(whole: bool) -> None:
    """Two actions in turn, a reward for each pair; V exact, a cut at every step or only at the first."""
    policy = logits(1 + ARMS, ARMS)
    reward = torch.randn(ARMS, ARMS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    root, then = policy[0].log_softmax(0), policy[1:].log_softmax(1)
    (exact,) = torch.autograd.grad((root.exp().unsqueeze(1) * then.exp() * reward).sum(), policy, retain_graph=True)

    pairs = torch.cartesian_prod(torch.arange(ARMS), torch.arange(ARMS))
    one, two = pairs.unbind(1)
    log_prob = torch.stack([root[one], then[one, two]], 1)
    middle = (then.exp() * reward).sum(1).detach()
    start = (root.exp() * middle).sum().detach()
    cut = torch.ones(len(pairs), 2, dtype=torch.bool)
    cut[:, 1] = not whole
    batch = steps(
        torch.stack([torch.zeros_like(middle[one]), reward[one, two]], 1),
        log_prob=log_prob.detach(),
        extras={"cut": cut, "state_value": torch.stack([start.expand(len(pairs)), middle[one]], 1)},
    )
    advantage = SegmentMonteCarlo(threshold=2.0, whiten=False)(batch).advantage
    assert advantage is not None
    probability = log_prob.sum(1, keepdim=True).exp().detach()
    (gradient,) = torch.autograd.grad((probability * advantage * log_prob).sum(), policy)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-12)
