"""A policy on embeddings behind its encoder: it acts as the whole network would, and only its head learns."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from gymnasium import spaces

from decisionrl.ema import PowerAverage
from decisionrl.envs.make import make_world
from decisionrl.experience.acting import update_normalizer
from decisionrl.experience.context_windows import ContextBatch
from decisionrl.experience.episodes import Task, play
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import GradientLearner
from decisionrl.objectives.denoising import denoising
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, DiffusionPolicy
from decisionrl.policies.diffusion_network import DiffusionTransformerSizes
from decisionrl.policies.encoded import EncodedPolicy
from decisionrl.policies.encoders import Encoder, Flat
from decisionrl.policies.image_encoders import context_encoder

pytest.importorskip("diffusers")

CONTEXT = Context(observations=3, future=3, stride=2)
ACTIONS = spaces.Box(-1, 1, (2,))
SETTINGS = dataclasses.replace(
    CPU, network=DiffusionTransformerSizes(width=8, layers=1, heads=2, dropout=0.2), inference_steps=2
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def space(side: int = 12) -> spaces.Dict:
    return spaces.Dict({"camera": spaces.Box(0, 255, (1, side, side), "uint8"), "hand": spaces.Box(-9, 9, (2,))})


def seen(*rows: int, side: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    camera = torch.randint(256, (*rows, 1, side, side), generator=rng(seed), dtype=torch.uint8)
    return {"camera": camera, "hand": torch.randn(*rows, 2, generator=rng(seed))}


def at(observations: dict[str, torch.Tensor], t: int) -> dict[str, torch.Tensor]:
    return {key: value[:, t] for key, value in observations.items()}


def diffusion(observation_space: spaces.Space[Any], encoder: Encoder, **options: Any) -> DiffusionPolicy:
    made = DiffusionPolicy(
        observation_space,
        ACTIONS,
        context=CONTEXT,
        settings=SETTINGS,
        action_steps=2,
        candidates=3,
        encoder=encoder,
        generator=rng(),
        **options,
    )
    with torch.no_grad():
        for i, parameter in enumerate(made.network.parameters()):  # so that observations matter from the beginning
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng(i)))
    return made


def pair(observation_space: spaces.Space[Any]) -> tuple[DiffusionPolicy, EncodedPolicy]:
    """The whole network, and the same in two parts."""
    encoder = context_encoder(observation_space, features=5, crop=10, generator=rng(3))
    whole = diffusion(observation_space, encoder).eval()
    if isinstance(observation_space, spaces.Dict):
        whole.encoder.update(seen(20, seed=8))
    features = whole.encoder.features
    head = diffusion(spaces.Box(-torch.inf, torch.inf, (features,)), Flat((features,)))
    return whole, EncodedPolicy(whole.encoder, head).eval()


@pytest.mark.parametrize("noisy", [True, False])
def test_it_acts_as_the_whole_network(noisy: bool) -> None:
    whole, policy = pair(space())
    observations, actions = seen(4, 9), []
    states = [whole.initial_state(4), policy.initial_state(4)]
    noise = policy.sample_noise((4, 9), rng(5))
    assert torch.equal(noise, whole.sample_noise((4, 9), rng(5)))
    for t in range(9):
        for i, each in enumerate((whole, policy)):
            action, states[i] = each.act(at(observations, t), states[i], noise=noise[:, t] if noisy else None)
            actions.append(action.detach())
        assert torch.equal(*states)
        assert torch.equal(*actions[-2:])
    assert torch.stack(actions).std(0).min() > 1e-3


def test_chunks_and_selected_actions_are_those_of_the_whole_network() -> None:
    whole, policy = pair(space())
    contexts, noise = seen(4, 3), torch.arange(4)
    chunk = policy.predict_action_chunk(contexts, noise=noise)
    assert chunk.shape == (4, 3, 2)
    assert torch.equal(chunk, whole.predict_action_chunk(contexts, noise=noise))
    assert torch.equal(policy.predict_action_chunk(contexts), whole.predict_action_chunk(contexts))
    for generator in (None, 7):
        whole.reset()
        policy.train().reset()
        drawn = [None if generator is None else rng(generator) for _ in range(2)]
        for t in range(3):
            found = policy.select_action(at(contexts, t), generator=drawn[0])
            assert torch.equal(found, whole.select_action(at(contexts, t), generator=drawn[1]))
        assert not policy.training


def test_episodes_from_pixels_are_those_of_the_whole_network() -> None:
    world = make_world("decisionrl/ReturnSide-v0", num_envs=4, options={"pixels": True})
    whole, policy = pair(world.observation_space)
    tasks = [Task(seed) for seed in range(6)]
    for generator in (None, 3):
        found, expected = (
            play(world, each, tasks, generator=None if generator is None else rng(generator))
            for each in (policy, whole)
        )
        assert found.action.std() > 0.05
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.action, expected.action)
        assert torch.equal(found.observation, expected.observation)


def batch(rows: int = 6) -> ContextBatch:
    actions = (rows, CONTEXT.tokens, 2)
    return ContextBatch(
        torch.randn(rows, 3, 7, generator=rng(1)),
        torch.rand(actions, generator=rng(2)),
        torch.randn(actions, generator=rng(3)),
        torch.rand(rows, generator=rng(4)),
    )


@pytest.mark.parametrize("all_parameters", [True, False])
def test_training_changes_the_head_alone(all_parameters: bool) -> None:
    _, policy = pair(space())
    before = copy.deepcopy(policy.state_dict())
    average = PowerAverage(policy)
    optimizer = torch.optim.AdamW((policy if all_parameters else policy.head).parameters(), weight_decay=0.5)
    learner = GradientLearner(
        policy,
        lambda module, windows: denoising(module.head, windows),
        optimizer,
        components={"average": average},
        after_update=[average.follow],
    )
    policy.train()
    for _ in range(5):
        learner.update(batch())
    for name, value in policy.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, before[name])
            assert torch.equal(average.module.state_dict()[name], value)
    weights = [name for name, _ in policy.head.network.named_parameters(prefix="head.network")]
    assert any(not torch.equal(policy.state_dict()[name], before[name]) for name in weights)


def test_the_encoder_is_frozen_in_every_mode() -> None:
    whole, policy = pair(space())
    assert policy.train() is policy
    assert policy.training
    assert policy.head.training
    assert not any(module.training for module in policy.encoder.modules())
    observation = seen(3)
    embedding = policy.embed(observation)
    assert torch.equal(embedding, policy.embed(observation))  # crops would be random in training mode
    assert not embedding.requires_grad
    assert not any(parameter.requires_grad for parameter in policy.encoder.parameters())
    assert all(parameter.requires_grad for parameter in whole.encoder.parameters())
    with torch.no_grad():
        whole.encoder.encoders[0].layers[0].weight.zero_()
    assert torch.equal(embedding, policy.embed(observation))


def test_statistics_of_observations_are_frozen_too() -> None:
    _, policy = pair(space())
    before = copy.deepcopy(policy.state_dict())
    steps = torch.zeros(2, 3)
    update_normalizer(
        policy,
        Trajectories(
            observation=seen(2, 3),
            action=torch.zeros(2, 3, 2),
            reward=steps,
            mask=steps == 0,
            log_prob=steps,
            terminated=steps > 0,
            truncated=steps > 0,
        ),
    )
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_saved_weights_hold_both_parts() -> None:
    _, policy = pair(space())
    encoder = context_encoder(space(), features=5, crop=10, generator=rng(9))
    head = diffusion(spaces.Box(-torch.inf, torch.inf, (7,)), Flat((7,)))
    other = EncodedPolicy(encoder, head).eval()
    assert not torch.equal(other.embed(seen(3)), policy.embed(seen(3)))
    other.load_state_dict(policy.state_dict())
    for each in (other, copy.deepcopy(policy)):
        assert torch.equal(each.act(seen(3))[0], policy.act(seen(3))[0])
    assert {name.split(".")[0] for name in policy.state_dict()} == {"encoder", "head"}


def test_what_there_is_not() -> None:
    _, policy = pair(space())
    assert policy.value(seen(2)) is None
    with pytest.raises(TypeError, match="no log-probabilities"):
        policy.evaluate(None)
    with pytest.raises(ValueError, match=r"head.encoder.features = 6; valid: 7, as the encoder has"):
        EncodedPolicy(policy.encoder, diffusion(spaces.Box(-1, 1, (6,)), Flat((6,))))
