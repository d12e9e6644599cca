"""BehaviorPolicy: its log-probability, units of the box, padding, a table, and how it acts."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.policies.behavior import BehaviorPolicy, MeanAction

BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
SEEN = spaces.Box(-np.inf, np.inf, (3,))


@dataclass(frozen=True)
class Experience:
    observation: Tensor
    action: Tensor
    mask: Tensor
    state: Tensor | None = None
    start: Tensor | None = None


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(actions: spaces.Space = BOX, seen: spaces.Space = SEEN, **options) -> BehaviorPolicy:
    options = {"hidden": (8, 8), "generator": rng(), **options}
    return BehaviorPolicy(seen, actions, **options).double()


def experience(batch: int = 3, steps: int = 4) -> Experience:
    unit = torch.rand(batch, steps, 2, generator=rng(1), dtype=torch.float64)
    return Experience(
        observation=torch.randn(batch, steps, 3, generator=rng(2), dtype=torch.float64),
        action=unit * torch.tensor([2.0, 4.0]) - torch.tensor([1.0, 0.0]),
        mask=torch.ones(batch, steps, dtype=torch.bool),
    )


def test_log_prob_is_the_squared_distance_in_units_of_the_box() -> None:
    policy, batch = made().eval(), experience()
    log_prob = policy.evaluate(batch).log_prob
    mean, _ = policy.act(batch.observation.flatten(0, 1))
    for i, (mu, action) in enumerate(zip(mean.tolist(), batch.action.flatten(0, 1).tolist(), strict=True)):
        expected = -((mu[0] - action[0]) ** 2) - ((mu[1] - action[1]) / 2) ** 2  # the second is 4 wide
        assert float(log_prob.flatten()[i].detach()) == pytest.approx(expected, abs=1e-12)


def test_network_is_the_one_that_is_written_down() -> None:
    policy, batch = made(normalize_observations=False).eval(), experience()
    first, second = policy.hidden.layers
    hidden = second(first(batch.observation).relu()).relu()
    expected = torch.tensor([0.0, 2.0]) + torch.tensor([1.0, 2.0]) * policy.last(hidden).tanh()
    torch.testing.assert_close(policy.act(batch.observation.flatten(0, 1))[0], expected.flatten(0, 1))


def test_dropout_is_for_evaluate_in_training_mode_alone() -> None:
    policy, batch = made(dropout=0.5), experience()
    torch.manual_seed(0)
    first, second = policy.evaluate(batch).log_prob, policy.evaluate(batch).log_prob
    assert not torch.equal(first, second)
    acted = policy.act(batch.observation[0])[0]
    assert torch.equal(policy.act(batch.observation[0])[0], acted)
    policy.eval()
    assert torch.equal(policy.act(batch.observation[0])[0], acted)
    assert torch.equal(policy.evaluate(batch).log_prob, policy.evaluate(batch).log_prob)


def test_padding_does_not_matter() -> None:
    policy, batch = made().eval(), experience()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    garbage = replace(
        batch,
        observation=torch.where(mask[..., None], batch.observation, torch.nan),
        action=torch.where(mask[..., None], batch.action, torch.inf),
        mask=mask,
    )
    found, whole = policy.evaluate(garbage).log_prob, policy.evaluate(batch).log_prob
    torch.testing.assert_close(found, torch.where(mask, whole, 0.0))
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_drawn_actions_have_that_deviation_and_stay_in_the_box() -> None:
    policy = made(noise=0.1)
    observation = torch.zeros(1, 3, dtype=torch.float64).expand(20_000, 3)  # its mean is the center of the box
    actions, _ = policy.act(observation, noise=policy.sample_noise((20_000,), rng()))
    torch.testing.assert_close(actions.mean(0), torch.tensor([0.0, 2.0]).double(), atol=5e-3, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.1, 0.2]).double(), rtol=0.03, atol=0)
    wide = made(noise=5.0)
    far, _ = wide.act(observation, noise=wide.sample_noise((20_000,), rng()))
    assert (far >= torch.tensor([-1.0, 0.0])).all()
    assert (far <= torch.tensor([1.0, 4.0])).all()
    still = made()
    torch.testing.assert_close(
        still.act(observation, noise=still.sample_noise((20_000,), rng()))[0], still.act(observation)[0]
    )


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_boxes_of_any_shape(shape: tuple[int, ...]) -> None:
    policy = made(spaces.Box(-2, 2, shape))
    observation = torch.randn(5, 3, dtype=torch.float64)
    action, state = policy.act(observation, noise=policy.sample_noise((5,), rng()))
    assert action.shape == (5, *shape)
    assert state is policy.initial_state(5) is policy.value(observation) is None
    batch = Experience(observation[:, None], action[:, None], torch.ones(5, 1, dtype=torch.bool))
    torch.testing.assert_close(
        policy.eval().evaluate(batch).log_prob, torch.zeros(5, 1).double(), atol=1e-12, rtol=0
    )  # without noise, it took its own mean


def test_one_hot_without_hidden_layers_is_a_table() -> None:
    policy = made(spaces.Discrete(3), spaces.Discrete(4), hidden=())
    table = torch.randn(4, 3, generator=rng(3))
    with torch.no_grad():
        policy.last.weight.copy_(table.T)
    states, actions = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij")
    batch = Experience(states, actions, torch.ones(4, 3, dtype=torch.bool))
    evaluation = policy.evaluate(batch)
    torch.testing.assert_close(evaluation.log_prob, table.double().log_softmax(1))
    p = table.double().softmax(1)
    torch.testing.assert_close(evaluation.entropy[:, 0], -(p * p.log()).sum(1))
    assert torch.equal(policy.act(torch.arange(4))[0], table.argmax(1))
    drawn = policy.act(torch.zeros(30_000, dtype=torch.long), noise=policy.sample_noise((30_000,), rng()))[0]
    torch.testing.assert_close(drawn.bincount(minlength=3) / 30_000, p[0].float(), atol=0.01, rtol=0)


def test_head_is_the_gradient_in_the_outputs() -> None:
    head = MeanAction(BOX)
    outputs = torch.randn(7, 2, generator=rng(), dtype=torch.float64, requires_grad=True)
    action = torch.rand(7, 2, generator=rng(1), dtype=torch.float64)
    log_prob, entropy = head.evaluate(outputs, action)
    assert entropy is None
    (expected,) = torch.autograd.grad(log_prob.sum(), outputs)
    torch.testing.assert_close(head.score(outputs.detach(), action), expected)
    unit = outputs.detach()[:1].tanh() + 0.5**0.5 * torch.randn(200_000, 2, generator=rng(2), dtype=torch.float64)
    score = head.score(outputs.detach()[:1].expand(200_000, 2), unit * head.radius + head.center)
    direction = torch.tensor([0.3, -2.0], dtype=torch.float64)
    torch.testing.assert_close(
        score.T @ (score @ direction) / 200_000, head.fisher(outputs.detach()[0])(direction), rtol=0.03, atol=0.01
    )


def test_normalizer_is_gathered_saved_and_used() -> None:
    policy, batch = made().eval(), experience()
    before = policy.act(batch.observation[0])[0]
    policy.update_normalizer(batch.observation * 3 + 1)
    assert not torch.equal(policy.act(batch.observation[0])[0], before)
    other = made(generator=rng(9)).eval()
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.act(batch.observation[0])[0], policy.act(batch.observation[0])[0])


@pytest.mark.parametrize(
    ("space", "options", "error", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), {}, ValueError, "finite low < high"),
        (spaces.Box(np.zeros(2, np.float32), np.array([1, 0], np.float32)), {}, ValueError, "finite low < high"),
        (spaces.Box(0, 5, (2,), np.int64), {}, TypeError, "Box of floats"),
        (BOX, {"noise": -1.0}, ValueError, r"noise = -1.0; valid: a finite number >= 0"),
        (BOX, {"dropout": 1.0}, ValueError, r"dropout = 1.0"),
        (spaces.Text(3), {}, TypeError, "valid: Discrete"),
    ],
)
def test_what_does_not_fit_is_named(space, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        made(space, **options)
