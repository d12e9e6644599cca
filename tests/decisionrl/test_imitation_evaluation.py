"""Errors of sampled tokens: an oracle makes none, and all windows at once are the windows one by one."""

import dataclasses
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from decisionrl.evaluation.imitation import token_errors
from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experience.store import EpisodeStore, store_episodes
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, DiffusionPolicy
from decisionrl.policies.diffusion_network import DiffusionTransformerSizes
from decisionrl.seeding import generator

pytest.importorskip("diffusers")

LENGTHS, DA = (5, 1, 8, 3), 2
CONTEXT = Context(observations=3, future=2, stride=2)
ACTIONS = spaces.Box(-4, 4, (DA,))
SETTINGS = dataclasses.replace(
    CPU, network=DiffusionTransformerSizes(width=8, layers=1, heads=2, dropout=0.0), inference_steps=2
)


def episodes(observations: torch.Tensor | None = None) -> EpisodeStore:
    """Random actions; of every step one row of ``observations`` is seen, by default of random ones."""
    rng = torch.Generator().manual_seed(1)
    if observations is None:
        observations = torch.randn(sum(LENGTHS), 3, generator=rng)
    made = [
        {
            "observation": torch.cat([seen, seen[-1:]]),
            "action": 3 * torch.rand(len(seen), DA, generator=rng) - 1,
            "reward": torch.zeros(len(seen)),
            "terminated": torch.zeros(len(seen), dtype=torch.bool),
            "truncated": torch.zeros(len(seen), dtype=torch.bool),
        }
        for seen in observations.split(LENGTHS)
    ]
    space = spaces.Box(-torch.inf, torch.inf, observations.shape[1:])
    return store_episodes(made, observation_space=space, action_space=ACTIONS)


def policy(recorded: EpisodeStore, context: Context = CONTEXT, **options: Any) -> DiffusionPolicy:
    made = DiffusionPolicy(
        recorded.observation_space,
        ACTIONS,
        context=context,
        generator=torch.Generator().manual_seed(0),
        **{"settings": SETTINGS, **options},
    ).double()
    made.action_normalizer.fit(recorded.action)
    with torch.no_grad():
        for parameter in made.parameters():  # so that observations matter
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return made


class Oracle(nn.Module):
    """Says the actions that the last observation spells out, each token with a mistake of its own."""

    def __init__(self, made: DiffusionPolicy, mistake: torch.Tensor) -> None:
        super().__init__()
        self.answer = lambda seen: made.action_tokens(seen.view(len(seen), -1, DA)) + mistake[:, None]

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, -1]

    def forward(self, noisy: torch.Tensor, step: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.answer(memory)


@pytest.mark.parametrize("head", ["diffusion", "regression"])
@pytest.mark.parametrize(("past_tokens", "past"), [("predict", 2), ("unsupervised", 2), ("absent", 0)])
def test_an_oracle_makes_no_error_but_its_mistakes(head: str, past_tokens: str, past: int) -> None:
    hidden = episodes()
    _, actions = ContextWindows(episodes=hidden, context=CONTEXT, size=1).windows(torch.arange(hidden.num_steps))
    revealed = dataclasses.replace(
        hidden,
        observation=episodes(actions.flatten(1)).observation,
        observation_space=spaces.Box(-torch.inf, torch.inf, actions.flatten(1).shape[1:]),
    )
    windows = ContextWindows(episodes=revealed, context=CONTEXT, size=4)
    made = policy(revealed, head=head, past_tokens=past_tokens)
    mistake = torch.zeros(made.tokens, dtype=torch.float64)
    made.network = Oracle(made, mistake)  # type: ignore[assignment]
    errors = token_errors(made, windows)
    assert errors["executed"] == pytest.approx(0, abs=1e-9)
    assert errors["past"] == (pytest.approx(0, abs=1e-9) if past else None)
    if head == "regression":  # diffusion clips its samples to [-1, 1], and some of the mistakes with them
        mistake.copy_(torch.tensor([0.1, 0.3, 0.2, 9.0])[2 - past :])
        errors = token_errors(made, windows)
        assert errors["executed"] == pytest.approx(0.2**2)
        assert errors["past"] == (pytest.approx((0.1**2 + 0.3**2) / 2) if past else None)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {"past_tokens": "predict", "candidates": 3},
        {"past_tokens": "predict", "past_steps": 1},
        {"past_tokens": "unsupervised"},
        {"past_tokens": "absent"},
        {"head": "regression"},
    ],
)
def test_all_windows_at_once_are_the_windows_one_by_one(size: int, options: dict[str, Any]) -> None:
    recorded = episodes()
    made = policy(recorded, **options).eval()
    windows = ContextWindows(episodes=recorded, context=CONTEXT, size=size)
    seeds = made.sample_noise((len(windows),), generator(5, "token_errors"))
    executed, past = [], []
    for i in range(len(windows)):
        observation, action = windows.windows(torch.tensor([i]))
        with torch.no_grad():
            tokens = made.sample(made.features(observation), seeds[i : i + 1])[0, 0]
        errors = (tokens - made.action_normalizer(action[0, CONTEXT.tokens - made.tokens :].double())).square()
        executed += errors[made.present].tolist()
        past += errors[: made.present].flatten().tolist()
    found = token_errors(made, windows, seed=5)
    assert found["executed"] == pytest.approx(sum(executed) / len(executed))
    assert found["past"] == (pytest.approx(sum(past) / len(past)) if past else None)
    assert len(executed) == recorded.num_steps * DA


def test_one_observation_has_no_past() -> None:
    recorded = episodes()
    context = Context(observations=1, future=2)
    windows = ContextWindows(episodes=recorded, context=context, size=4)
    assert token_errors(policy(recorded, context), windows)["past"] is None


def test_dropout_is_off_meanwhile_and_the_seed_decides() -> None:
    recorded = episodes()
    network = DiffusionTransformerSizes(width=8, layers=1, heads=2, dropout=0.5, embedding_dropout=0.5)
    made = policy(recorded, settings=dataclasses.replace(SETTINGS, network=network)).train()
    windows = ContextWindows(episodes=recorded, context=CONTEXT, size=4)
    first = token_errors(made, windows, seed=1)
    assert made.training
    assert all(module.training for module in made.network.modules())
    assert token_errors(made, windows, seed=1) == first
    assert token_errors(made, windows, seed=2) != first
    assert token_errors(made.eval(), windows, seed=1) == first
    assert not made.training


def test_windows_of_another_context_are_refused() -> None:
    recorded = episodes()
    windows = ContextWindows(episodes=recorded, context=dataclasses.replace(CONTEXT, stride=1), size=4)
    with pytest.raises(ValueError, match=r"windows: Context\(.*stride=1.*\); valid: Context\(.*stride=2"):
        token_errors(policy(recorded), windows)
