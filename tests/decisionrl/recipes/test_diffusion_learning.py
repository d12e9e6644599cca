"""What long contexts are for: who sees back to the side returns to it, who does not cannot, the oracle needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decisionrl.checkpoint import save_weights
from decisionrl.recipes import recipe
from decisionrl.recording.demonstrations import demonstrations
from decisionrl.trainer import Trainer

EPISODES = 200


def success(name: str = "ptp", **arguments: Any) -> float:
    experiment = recipe(name)(**arguments)
    Trainer(experiment).fit(experiment.config["steps"])
    assert experiment.evaluate is not None
    return float(experiment.evaluate(experiment.policy, episodes=EPISODES)["success_rate"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_past_tokens_and_a_long_context_solve_return_side() -> None:
    assert success(observations=8, seed=0) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("observations", [2, 4])
def test_a_short_context_is_bounded_by_the_coin(observations: int) -> None:
    """At most 1/2 in expectation; three standard deviations of 200 episodes above it."""
    assert success(observations=observations, seed=0) <= 0.5 + 3 * (0.25 / EPISODES) ** 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("env", ["ReturnSide", "CountVisits"])
def test_who_sees_what_is_hidden_needs_no_memory(env: str, tmp_path: Path) -> None:
    (data,) = demonstrations(env=f"decisionrl/{env}-v0", env_options={"oracle": True}, out=tmp_path)
    assert success(data=str(data), observations=2) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_encoder_of_short_contexts_serves_long_ones(tmp_path: Path) -> None:
    """Three stages on pixels: encoder, embeddings, head."""
    (data,) = demonstrations(env_options={"pixels": True}, out=tmp_path)
    short = recipe("diffusion_policy")(data=str(data), steps=1000, future=8)
    Trainer(short).fit(1000)
    save_weights(short.policy, tmp_path / "short.safetensors")
    arguments = {"encoder": str(tmp_path / "short.safetensors"), "cache": str(tmp_path / "cache.safetensors")}
    assert success(data=str(data), observations=8, **arguments) >= 0.8
