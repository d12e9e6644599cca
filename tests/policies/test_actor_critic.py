"""ActorCritic on all kinds of spaces: act, value and evaluate agree; padding changes nothing; seeds decide weights."""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decisionrl import checkpoint
from decisionrl.policies.actor_critic import ActorCritic
from decisionrl.policies.evaluation import Observation

BOX = spaces.Box(-1, 1, (3,))
OBSERVATIONS = {
    "box": BOX,
    "box 2d": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(4, start=2),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(5),
    "dict": spaces.Dict({"b": spaces.Discrete(3), "a": BOX}),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=1),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(2),
    "box": spaces.Box(-1, 1, (2, 2)),
}


@dataclass(frozen=True)
class Experience:
    observation: Observation
    action: torch.Tensor
    mask: torch.Tensor
    state: torch.Tensor | None = None
    start: torch.Tensor | None = None


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(space: spaces.Space, *shape: int) -> Observation:
    space.seed(0)
    drawn = [space.sample() for _ in range(int(np.prod(shape)))]
    if isinstance(space, spaces.Dict):
        return {key: torch.as_tensor(np.stack([x[key] for x in drawn])).unflatten(0, shape) for key in space.spaces}
    return torch.as_tensor(np.stack(drawn)).unflatten(0, shape)


def each(function, observation: Observation) -> Observation:
    if isinstance(observation, dict):
        return {key: function(value) for key, value in observation.items()}
    return function(observation)


@pytest.mark.parametrize("observation_space", OBSERVATIONS)
@pytest.mark.parametrize("action_space", ACTIONS)
def test_act_value_and_evaluate_agree(observation_space, action_space):
    space = OBSERVATIONS[observation_space]
    policy = ActorCritic(space, ACTIONS[action_space], hidden=(16, 8), generator=rng())
    observation = samples(space, 4, 2)
    noise = policy.sample_noise((2, 4), rng(1))
    actions, values = [], []
    for t in range(2):
        now = each(lambda x, t=t: x[:, t], observation)
        with torch.inference_mode():
            action, state = policy.act(now, noise=noise[t])
            values.append(policy.value(now))
        assert state is None
        assert action.shape == (4, *ACTIONS[action_space].shape)
        actions.append(action)
    batch = Experience(observation, torch.stack(actions, 1).clone(), torch.ones(4, 2, dtype=torch.bool))
    evaluation = policy.evaluate(batch)
    torch.testing.assert_close(evaluation.value, torch.stack(values, 1))
    assert evaluation.log_prob.shape == evaluation.entropy.shape == (4, 2)
    flat = each(lambda x: x.flatten(0, 1), observation)
    outputs = torch.nn.functional.linear(
        policy.decision.towers.only(0, policy.encoder(flat)), policy.decision.actor.weight, policy.decision.actor.bias
    )
    head = policy.decision.head
    torch.testing.assert_close(evaluation.log_prob.flatten(), head.log_prob(outputs, batch.action.flatten(0, 1)))
    torch.testing.assert_close(evaluation.entropy.flatten(), head.entropy(outputs))
    assert torch.equal(policy.act(flat)[0], head.mode(outputs))


def garbage_padding(batch: Experience, columns: int) -> Experience:
    """More columns, masked, holding what would be an error or NaN if anyone looked."""

    def pad(x: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.cat([x, torch.full((x.shape[0], columns, *x.shape[2:]), fill).to(x.dtype)], 1)

    observation = each(lambda x: pad(x, torch.nan if x.is_floating_point() else 77), batch.observation)
    action = pad(batch.action, torch.nan if batch.action.is_floating_point() else 77)
    return replace(batch, observation=observation, action=action, mask=pad(batch.mask, 0))


@pytest.mark.parametrize("action_space", ACTIONS)
def test_padding_changes_neither_values_nor_gradients(action_space):
    policy = ActorCritic(OBSERVATIONS["dict"], ACTIONS[action_space], hidden=(8,), generator=rng()).double()
    observation = each(lambda x: x.double() if x.is_floating_point() else x, samples(OBSERVATIONS["dict"], 4, 3))
    action = samples(ACTIONS[action_space], 4, 3)
    batch = Experience(
        observation, action.double() if action.is_floating_point() else action, torch.ones(4, 3, dtype=torch.bool)
    )

    def results(batch: Experience) -> list[torch.Tensor]:
        policy.zero_grad()
        e = policy.evaluate(batch)
        (e.log_prob + 2 * e.entropy + 3 * e.value)[batch.mask].sum().backward()
        u = torch.ones_like(e.head.score)
        found = [e.log_prob, e.entropy, e.value, e.head.hidden, e.head.score, e.head.fisher(u)]
        assert all(x[~batch.mask].eq(0).all() for x in found)
        return [x[batch.mask] for x in found] + [p.grad.clone() for p in policy.parameters()]

    torch.testing.assert_close(results(garbage_padding(batch, 2)), results(batch))


def test_nothing_but_padding_has_a_graph_and_no_gradient():
    policy = ActorCritic(BOX, ACTIONS["discrete"], generator=rng())
    batch = Experience(
        torch.full((2, 3, 3), torch.nan), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
    )
    evaluation = policy.evaluate(batch)
    (evaluation.log_prob.sum() + evaluation.value.sum()).backward()
    assert evaluation.log_prob.eq(0).all()
    assert all(not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("action_space", ["discrete", "box"])
def test_head_gives_the_gradient_of_the_last_layer(action_space):
    """d log_prob / dW = score hidden^T."""
    policy = ActorCritic(BOX, ACTIONS[action_space], hidden=(5,), generator=rng()).double()
    observation, action = samples(BOX, 3, 2).double(), samples(ACTIONS[action_space], 3, 2)
    batch = Experience(observation, action, torch.ones(3, 2, dtype=torch.bool))
    evaluation = policy.evaluate(batch)
    head = evaluation.head
    assert not head.hidden.requires_grad
    assert not head.score.requires_grad
    for b, t in ((0, 0), (2, 1)):
        (gradient,) = torch.autograd.grad(evaluation.log_prob[b, t], policy.decision.actor.weight, retain_graph=True)
        torch.testing.assert_close(torch.outer(head.score[b, t], head.hidden[b, t]), gradient)


def test_critics():
    batch = Experience(samples(BOX, 4, 1), torch.ones(4, 1, dtype=torch.int64), torch.ones(4, 1, dtype=torch.bool))
    made = {
        critic: ActorCritic(BOX, ACTIONS["discrete"], critic=critic, generator=rng())
        for critic in ("separate", "shared", None)
    }
    assert made[None].value(batch.observation[:, 0]) is None
    assert made[None].evaluate(batch).value is None
    for critic, moves_the_actor in (("separate", False), ("shared", True)):
        policy = made[critic]
        policy.evaluate(batch).value.sum().backward()
        assert bool(policy.decision.towers.weight_0.grad[0].any()) == moves_the_actor
        assert policy.decision.actor.weight.grad is None


def test_initialization():
    policy = ActorCritic(BOX, spaces.Box(-1, 1, (2,)), std="dependent", initial_log_std=-1.0, generator=rng())
    actor, critic = policy.decision.actor, policy.decision.critic
    torch.testing.assert_close(actor.weight @ actor.weight.T, 1e-4 * torch.eye(4), atol=1e-8, rtol=0)
    torch.testing.assert_close(critic.weight.norm(), torch.tensor(1.0))
    assert actor.bias.tolist() == [0, 0, -1, -1]
    assert critic.bias.tolist() == [0]


def test_the_generator_alone_decides_the_weights():
    space = OBSERVATIONS["image"]
    before = torch.get_rng_state()
    first, same, other = (ActorCritic(space, ACTIONS["box"], generator=rng(seed)).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["encoder.layers.0.weight"], other["encoder.layers.0.weight"])
    assert not torch.equal(first["decision.actor.weight"], other["decision.actor.weight"])


def test_weights_and_statistics_survive_a_file(tmp_path):
    space = OBSERVATIONS["dict"]
    made = [
        ActorCritic(space, spaces.Box(-1, 2, (2,)), squash=True, normalize_observations=True, generator=rng(i))
        for i in range(2)
    ]
    observation = samples(space, 6)
    made[0].update_normalizer(observation)
    made[0].decision.head.gaussian.log_std.data.fill_(-0.7)
    checkpoint.save_weights(made[0], tmp_path / "weights.safetensors")
    checkpoint.load_weights(made[1], tmp_path / "weights.safetensors")
    noise = made[0].sample_noise((6,), rng())
    assert torch.equal(made[0].act(observation, noise=noise)[0], made[1].act(observation, noise=noise)[0])
    assert torch.equal(made[0].value(observation), made[1].value(observation))


def test_copies_and_substituted_weights_are_what_acts():
    policy = ActorCritic(BOX, spaces.Box(-1, 1, (2,)), generator=rng())
    observation = samples(BOX, 4)
    twin = copy.deepcopy(policy)
    before = policy.act(observation)[0]
    zeros = {name: torch.zeros_like(p) for name, p in policy.named_parameters()}
    with torch.no_grad():
        for p in policy.parameters():
            p.zero_()
    assert not policy.act(observation)[0].any()
    assert torch.equal(twin.act(observation)[0], before)

    class Acting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = twin

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.policy.act(x)[0]

    substituted = {f"policy.{name}": value for name, value in zeros.items()}
    assert not torch.func.functional_call(Acting(), substituted, observation).any()


def test_normalization_changes_only_through_update():
    policy = ActorCritic(BOX, ACTIONS["discrete"], normalize_observations=True, generator=rng())
    observation = 50 + 10 * torch.randn(4, 2, 3, generator=rng())
    batch = Experience(observation, torch.ones(4, 2, dtype=torch.int64), torch.ones(4, 2, dtype=torch.bool))
    before = policy.evaluate(batch).value
    policy.act(observation[:, 0])
    assert torch.equal(policy.evaluate(batch).value, before)
    policy.update_normalizer(observation, batch.mask)
    assert not torch.equal(policy.evaluate(batch).value, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic": "twin"}, "critic = 'twin'; valid: separate, shared, None"),
        ({"activation": "sin"}, "activation = 'sin'; valid: tanh, relu, elu"),
        ({"hidden": (0,)}, r"hidden = \(0,\)"),
        ({"std": "none"}, "std = 'none'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ActorCritic(BOX, spaces.Box(-1, 1, (2,)), **options)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
        spaces.Box(-1, 1, (2, 2), np.float32),
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (3,), np.float32)}),
    ],
)
def test_a_batch_without_a_step_of_its_own(space):
    """As when every group of a batch was dropped: nothing to learn, and a graph all the same."""
    policy = ActorCritic(space, spaces.Discrete(2))
    sampled = [space.sample() for _ in range(6)]
    stacked = (
        {key: torch.as_tensor(np.stack([each[key] for each in sampled])) for key in space.spaces}
        if isinstance(space, spaces.Dict)
        else torch.as_tensor(np.stack(sampled))
    )
    shaped = (
        {key: value.unflatten(0, (2, 3)) for key, value in stacked.items()}
        if isinstance(stacked, dict)
        else stacked.unflatten(0, (2, 3))
    )
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    batch = SimpleNamespace(observation=shaped, action=torch.zeros(2, 3, dtype=torch.int64), mask=nothing)
    evaluation = policy.evaluate(batch)
    assert evaluation.log_prob.shape == (2, 3)
    (evaluation.log_prob.sum() + evaluation.value.sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())
