"""Denoising and regression losses: which tokens count, against formulas written out."""

import dataclasses
from typing import Any

import pytest
import torch
from gymnasium import spaces

from decisionrl.experience.context_windows import ContextBatch
from decisionrl.learner import GradientLearner
from decisionrl.objectives.denoising import denoising, regression
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, DiffusionPolicy, DiffusionSettings
from decisionrl.policies.diffusion_network import DiffusionTransformerSizes

pytest.importorskip("diffusers")

TO, FUTURE, DO, DA, BATCH = 4, 3, 3, 2, 6
TOKENS = TO - 1 + FUTURE
SETTINGS = dataclasses.replace(
    CPU, network=DiffusionTransformerSizes(width=8, layers=1, heads=2, dropout=0.0), inference_steps=2
)


def policy(*, observations: int = TO, settings: DiffusionSettings = SETTINGS, **options: Any) -> DiffusionPolicy:
    return DiffusionPolicy(
        spaces.Box(-torch.inf, torch.inf, (DO,)),
        spaces.Box(-4, 4, (DA,)),
        context=Context(observations=observations, future=FUTURE),
        settings=settings,
        generator=torch.Generator().manual_seed(0),
        **options,
    ).double()


def batch(observations: int = TO, *, seed: int = 1) -> ContextBatch:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    tokens = observations - 1 + FUTURE
    return ContextBatch(
        observation=normal(BATCH, observations, DO),
        action=normal(BATCH, tokens, DA).clamp(-4, 4),
        noise=normal(BATCH, tokens, DA),
        level=torch.rand(BATCH, generator=rng, dtype=torch.float64),
    )


def watched(objective: Any, made: DiffusionPolicy, what: ContextBatch) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The loss, the network's output, and the gradient of the loss in it."""
    outputs: list[torch.Tensor] = []
    hook = made.network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    loss = objective(made, what)
    hook.remove()
    (gradient,) = torch.autograd.grad(loss.value, outputs[0])
    return loss, outputs[0].detach(), gradient


def trained(gradient: torch.Tensor) -> list[bool]:
    return (gradient != 0).any(2).any(0).tolist()


@pytest.mark.parametrize(("head", "objective"), [("diffusion", denoising), ("regression", regression)])
@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"past_tokens": "predict"}, 0),
        ({"past_tokens": "predict", "past_steps": 2}, TO - 3),
        ({"past_tokens": "predict", "past_steps": TO - 1}, 0),
        ({"past_tokens": "unsupervised"}, TO - 1),
    ],
)
def test_only_trained_tokens_have_a_gradient(head: str, objective: Any, options: dict[str, Any], first: int) -> None:
    _, output, gradient = watched(objective, policy(head=head, **options), batch())
    assert output.shape == (BATCH, TOKENS, DA)
    assert trained(gradient) == [j >= first for j in range(TOKENS)]
    torch.testing.assert_close(gradient[:, :first], torch.zeros(BATCH, first, DA, dtype=torch.float64), rtol=0, atol=0)


def test_absent_past_tokens_leave_the_future_ones() -> None:
    _, output, gradient = watched(denoising, policy(past_tokens="absent"), batch())
    assert output.shape == (BATCH, FUTURE, DA)
    assert trained(gradient) == [True] * FUTURE


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("mode", ["predict", "unsupervised", "absent"])
def test_the_loss_is_the_formula(prediction: Any, mode: Any) -> None:
    made, what = policy(past_tokens=mode, settings=dataclasses.replace(SETTINGS, prediction=prediction)), batch()
    loss = denoising(made, what)

    betas = []  # the squared cosine schedule, written out
    for k in range(100):
        cosines = [torch.cos((torch.tensor(t, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2 for t in
                   (k / 100, (k + 1) / 100)]  # fmt: skip
        betas.append(min(1 - float(cosines[1] / cosines[0]), 0.999))
    kept = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    own = slice(TO - 1, None) if mode == "absent" else slice(None)
    actions, noise = (what.action / 4)[:, own], what.noise[:, own]
    step = (100 * what.level).long()
    abar = kept[step][:, None, None]
    noisy = abar.sqrt() * actions + (1 - abar).sqrt() * noise
    output = made.network(noisy, step, made.network.encode(what.observation))
    error = (output - (noise if prediction == "epsilon" else actions)) ** 2
    first = TO - 1 if mode == "unsupervised" else 0
    torch.testing.assert_close(loss.value, error[:, first:].mean(), rtol=1e-5, atol=1e-6)


def test_past_and_future_tokens_weigh_the_same() -> None:
    loss = denoising(policy(), batch())
    total = (TO - 1) * loss.metrics["past_error"] + FUTURE * loss.metrics["future_error"]
    torch.testing.assert_close(loss.value * TOKENS, total)


def test_the_metrics_are_the_same_whichever_tokens_are_trained() -> None:
    both = [denoising(policy(past_tokens=mode), batch()).metrics for mode in ("predict", "unsupervised")]
    assert set(both[0]) == set(both[1]) == {"past_error", "future_error"}
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert "past_error" not in denoising(policy(past_tokens="absent"), batch()).metrics


@pytest.mark.parametrize(("head", "objective"), [("diffusion", denoising), ("regression", regression)])
def test_with_one_observation_there_is_no_difference(head: str, objective: Any) -> None:
    losses = {
        objective(policy(observations=1, past_tokens=mode, head=head), batch(1)).value.item()
        for mode in ("predict", "unsupervised", "absent")
    }
    assert len(losses) == 1


def test_regression_reads_zeros_at_step_zero() -> None:
    made, what = policy(head="regression"), batch()
    memory = made.network.encode(what.observation)
    output = made.network(torch.zeros_like(what.action), torch.zeros(BATCH, dtype=torch.long), memory)
    torch.testing.assert_close(regression(made, what).value, (output - what.action / 4).square().mean())
    other = dataclasses.replace(what, noise=what.noise + 1, level=1 - what.level)
    assert torch.equal(regression(made, other).value, regression(made, what).value)


@pytest.mark.parametrize(("head", "objective"), [("diffusion", denoising), ("regression", regression)])
def test_training_lowers_the_loss(head: str, objective: Any) -> None:
    made, what = policy(head=head), batch()
    optimizer = torch.optim.AdamW(made.parameter_groups(), 3e-3)
    learner = GradientLearner(made, objective, optimizer)
    losses = [float(learner.update(what).metrics["loss"]) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_head_has_its_own_loss() -> None:
    with pytest.raises(ValueError, match="head = 'regression'; valid for denoising: head = 'diffusion'"):
        denoising(policy(head="regression"), batch())
    with pytest.raises(ValueError, match="head = 'diffusion'; valid for regression: head = 'regression'"):
        regression(policy(), batch())
