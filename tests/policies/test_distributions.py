"""Action heads against torch.distributions, autograd and the frequencies of their own samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import distributions

from decisionrl.policies.distributions import (
    LOG_STD_RANGE,
    ActionHead,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
    head_for,
)

LOW, HIGH = np.array([-2.0, 0.0, -1.0], np.float32), np.array([3.0, 0.5, 1.0], np.float32)

HEADS = {
    "categorical": lambda: Categorical(4),
    "categorical from 3": lambda: Categorical(5, start=3),
    "multi": lambda: MultiCategorical(np.array([3, 2, 4])),
    "multi from": lambda: MultiCategorical(np.array([[3, 2], [1, 4]]), start=np.array([[1, 0], [-2, 5]])),
    "bernoulli": lambda: Bernoulli((3,)),
    "bernoulli 2d": lambda: Bernoulli((2, 2)),
    "gaussian": lambda: DiagonalGaussian((3,), initial_log_std=-0.3),
    "gaussian 2d": lambda: DiagonalGaussian((2, 2), initial_log_std=0.2),
    "gaussian 0d": lambda: DiagonalGaussian(()),
    "gaussian dependent": lambda: DiagonalGaussian((3,), std="dependent"),
    "squashed": lambda: SquashedGaussian(LOW, HIGH, initial_log_std=-0.5),
    "squashed dependent": lambda: SquashedGaussian(LOW, HIGH, std="dependent"),
}
DISCRETE = [name for name in HEADS if "gaussian" not in name and "squashed" not in name]


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> ActionHead:
    return HEADS[request.param]().double()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(head: ActionHead, *shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random outputs, and an action of each."""
    outputs = torch.randn(*shape, head.num_outputs, generator=rng(seed), dtype=torch.float64)
    return outputs, head.sample(outputs, head.noise(shape, generator=rng(seed + 1), dtype=torch.float64))


def gaussian_reference(head: DiagonalGaussian, outputs: torch.Tensor) -> distributions.Normal:
    mean, log_std = outputs.chunk(2, -1) if head.dependent else (outputs, head.log_std.detach())
    return distributions.Normal(mean, log_std.clamp(*LOG_STD_RANGE).exp() if head.dependent else log_std.exp())


def reference(
    head: ActionHead, outputs: torch.Tensor, action: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log_prob and entropy by torch.distributions."""
    lead = outputs.shape[:-1]
    if isinstance(head, Categorical):
        d = distributions.Categorical(logits=outputs)
        return d.log_prob(action - head.start), d.entropy()
    if isinstance(head, MultiCategorical):
        sizes = (~head.padding).sum(1).tolist()
        parts = [distributions.Categorical(logits=logits) for logits in outputs.split(sizes, -1)]
        choices = (action.reshape(*lead, -1) - head.start).unbind(-1)
        return (
            sum(part.log_prob(choice) for part, choice in zip(parts, choices, strict=True)),
            sum(part.entropy() for part in parts),
        )
    if isinstance(head, Bernoulli):
        d = distributions.Bernoulli(logits=outputs)
        return d.log_prob(action.reshape(*lead, -1).double()).sum(-1), d.entropy().sum(-1)
    if isinstance(head, DiagonalGaussian):
        d = gaussian_reference(head, outputs)
        return d.log_prob(action.reshape(*lead, -1)).sum(-1), d.entropy().sum(-1)
    assert isinstance(head, SquashedGaussian)
    transforms = [distributions.TanhTransform(), distributions.AffineTransform(head.center, head.radius)]
    d = distributions.TransformedDistribution(gaussian_reference(head.gaussian, outputs), transforms)
    return d.log_prob(action).sum(-1), None


def test_log_prob_and_entropy_are_those_of_torch_distributions(head):
    outputs, action = draw(head, 5, 7)
    log_prob, entropy = head.evaluate(outputs, action)
    expected_log_prob, expected_entropy = reference(head, outputs, action)
    torch.testing.assert_close(log_prob, expected_log_prob, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(head.log_prob(outputs, action), log_prob)
    assert log_prob.shape == (5, 7)
    if expected_entropy is None:
        assert entropy is None
        assert head.entropy(outputs) is None
    else:
        torch.testing.assert_close(entropy, expected_entropy, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(head.entropy(outputs), expected_entropy, atol=1e-12, rtol=1e-9)


def test_score_is_the_gradient_of_log_prob(head):
    outputs, action = draw(head, 6)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(head.log_prob(outputs, action).sum(), outputs)
    torch.testing.assert_close(head.score(outputs, action), gradient, atol=1e-12, rtol=1e-9)


def all_actions(head: ActionHead) -> torch.Tensor:
    if isinstance(head, Categorical):
        return head.start + torch.arange(head.num_outputs)
    if isinstance(head, MultiCategorical):
        ranges = [range(first, first + size) for first, size in zip(head.start, (~head.padding).sum(1), strict=True)]
    else:
        ranges = [range(2)] * head.num_outputs
    return torch.tensor(list(itertools.product(*ranges))).reshape(-1, *head.shape)


@pytest.mark.parametrize("name", DISCRETE)
def test_fisher_is_the_expected_square_of_the_score_and_probabilities_sum_to_one(name):
    head = HEADS[name]()
    outputs, u = torch.randn(2, 3, head.num_outputs, generator=rng(), dtype=torch.float64)
    expected, total = torch.zeros_like(u), 0.0
    for action in all_actions(head):
        action = action.expand(3, *action.shape)
        score, p = head.score(outputs, action), head.log_prob(outputs, action).exp()
        expected += p[:, None] * score * (score * u).sum(-1, keepdim=True)
        total = total + p
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(head.fisher(outputs)(u), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in DISCRETE])
def test_fisher_of_gaussians_is_the_expected_square_of_the_score(name):
    """By Gauss-Hermite quadrature over one dimension at a time; dimensions are independent with mean score 0."""
    head = HEADS[name]().double()
    gaussian = head.gaussian if isinstance(head, SquashedGaussian) else head
    outputs = 0.3 * torch.randn(gaussian.num_outputs, generator=rng(), dtype=torch.float64)
    nodes, weights = (torch.as_tensor(x) for x in np.polynomial.hermite_e.hermegauss(12))
    noise = nodes[:, None].expand(-1, gaussian.size)
    action = gaussian.sample(outputs.expand(12, -1), noise)
    score = gaussian.score(outputs.expand(12, -1), action)
    expected = (weights[:, None] * score.square()).sum(0) / math.sqrt(2 * math.pi)
    diagonal = torch.stack([head.fisher(outputs)(unit) for unit in torch.eye(len(outputs), dtype=torch.float64)])
    torch.testing.assert_close(diagonal, torch.diag(expected))


def test_clamped_log_std_has_no_score():
    head = DiagonalGaussian((1,), std="dependent")
    outputs = torch.tensor([[0.0, LOG_STD_RANGE[1] + 1], [0.0, LOG_STD_RANGE[0] - 1], [0.0, 0.0]], dtype=torch.float64)
    action = torch.full((3, 1), 0.5, dtype=torch.float64)
    assert (head.score(outputs, action)[:, 1] != 0).tolist() == [False, False, True]
    assert head.fisher(outputs)(torch.ones_like(outputs))[:, 1].tolist() == [0, 0, 2]
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(head.log_prob(outputs, action).sum(), outputs)
    torch.testing.assert_close(head.score(outputs, action), gradient)


@pytest.mark.parametrize("name", DISCRETE)
def test_samples_have_the_probabilities(name):
    head, n = HEADS[name](), 20_000
    outputs = torch.randn(head.num_outputs, generator=rng(5), dtype=torch.float64)
    samples = head.sample(outputs.expand(n, -1), head.noise((n,), generator=rng(6), dtype=torch.float64))
    actions = all_actions(head)
    p = head.log_prob(outputs.expand(len(actions), -1), actions).exp()
    counts = [(samples == action).reshape(n, -1).all(1).sum().item() for action in actions]
    assert sum(counts) == n
    assert stats.chisquare(counts, (n * p).tolist()).pvalue > 0.01


@pytest.mark.parametrize("name", ["gaussian", "gaussian dependent", "squashed", "squashed dependent"])
def test_continuous_samples_have_the_distribution(name):
    head, n = HEADS[name]().double(), 5_000
    outputs = 0.5 * torch.randn(head.num_outputs, generator=rng(5), dtype=torch.float64)
    samples = head.sample(outputs.expand(n, -1), head.noise((n,), generator=rng(6), dtype=torch.float64)).detach()
    gaussian = head.gaussian if isinstance(head, SquashedGaussian) else head
    if isinstance(head, SquashedGaussian):
        assert ((samples >= torch.tensor(LOW)) & (samples <= torch.tensor(HIGH))).all()
        samples = ((samples - head.center) / head.radius).atanh()
    d = gaussian_reference(gaussian, outputs)
    for i in range(3):
        cdf = stats.norm(d.mean[i].item(), d.stddev.expand(3)[i].item()).cdf
        assert stats.kstest(samples[:, i].numpy(), cdf).pvalue > 0.01


def test_one_draw_serves_a_whole_rollout(head):
    noise = head.noise((3, 2), generator=rng(), dtype=torch.float64)
    outputs, _ = draw(head, 3, 2)
    assert noise.shape == (3, 2, *head.noise_shape)
    together = head.sample(outputs, noise)
    for t in range(3):
        assert torch.equal(head.sample(outputs[t], noise[t]), together[t])


def test_no_other_action_is_more_probable_than_the_mode():
    for name in DISCRETE:
        head = HEADS[name]()
        outputs = torch.randn(1, head.num_outputs, generator=rng(2), dtype=torch.float64)
        log_probs = torch.stack([head.log_prob(outputs, action[None]) for action in all_actions(head)])
        assert head.log_prob(outputs, head.mode(outputs)) == log_probs.max()


def test_the_mode_of_a_gaussian_is_its_mean_and_squashing_maps_it():
    outputs = torch.tensor([[0.3, -1.0, 2.0]])
    assert torch.equal(DiagonalGaussian((3,)).mode(outputs), outputs)
    center, half = torch.tensor((HIGH + LOW) / 2), torch.tensor((HIGH - LOW) / 2)
    torch.testing.assert_close(SquashedGaussian(LOW, HIGH).mode(outputs), center + half * outputs.tanh())


def test_squashed_actions_on_the_border_have_a_finite_log_prob_and_gradient():
    head = SquashedGaussian(LOW, HIGH)
    outputs = torch.zeros(2, 3, requires_grad=True)
    log_prob = head.log_prob(outputs, torch.tensor(np.stack([LOW, HIGH])))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert outputs.grad.isfinite().all()


def test_extreme_logits_have_finite_entropy_and_gradient():
    outputs = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    log_prob, entropy = Categorical(3).evaluate(outputs, torch.tensor([0, 1]))
    (log_prob + entropy).sum().backward()
    torch.testing.assert_close(entropy.detach(), torch.tensor([0.0, math.log(3)]))
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([[3, 2], [4, 1]], start=[[1, 1], [0, 9]]),
        spaces.MultiBinary([2, 3]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(-1, 1, ()),
    ],
)
def test_actions_are_in_the_space(space):
    squash = isinstance(space, spaces.Box)
    for head in (head_for(space), head_for(space, squash=squash)):
        outputs = torch.randn(6, head.num_outputs, generator=rng())
        with torch.no_grad():
            actions = head.sample(outputs, head.noise((6,), generator=rng(1)))
        assert actions.shape == (6, *space.shape)
    assert all(space.contains(np.asarray(action, space.dtype)) for action in actions)


def test_initial_outputs_give_the_initial_standard_deviation():
    head = head_for(spaces.Box(-1, 1, (2,)), std="dependent", initial_log_std=-1.5)
    assert head.initial_outputs().tolist() == [0, 0, -1.5, -1.5]
    head = head_for(spaces.Box(-1, 1, (2,)), initial_log_std=-1.5)
    assert head.initial_outputs().tolist() == [0, 0]
    assert head.log_std.tolist() == [-1.5, -1.5]


@pytest.mark.parametrize(
    ("space", "options", "error", "message"),
    [
        (spaces.Text(3), {}, TypeError, "valid: Discrete, MultiDiscrete, MultiBinary, Box"),
        (spaces.Tuple([spaces.Discrete(2)]), {}, TypeError, "valid: Discrete"),
        (spaces.Box(0, 9, (2,), np.int64), {}, TypeError, "valid: a Box of floats"),
        (spaces.Box(-np.inf, 1, (2,)), {"squash": True}, ValueError, "unbounded; valid with squash = True: finite"),
        (spaces.Discrete(2), {"squash": True}, ValueError, "squash = True; valid only for a Box"),
        (spaces.Box(-1, 1, (2,)), {"std": "fixed"}, ValueError, "std = 'fixed'; valid: independent, dependent"),
        (spaces.Box(-1, 1, (2,)), {"initial_log_std": math.nan}, ValueError, "initial_log_std = nan; valid: finite"),
    ],
)
def test_what_cannot_be_is_refused(space, options, error, message):
    with pytest.raises(error, match=message):
        head_for(space, **options)
