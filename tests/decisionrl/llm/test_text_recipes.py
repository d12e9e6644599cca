"""Every recipe on environments trains a language model, by the same function that trains a controller."""

from pathlib import Path
from typing import Any

import pytest
import torch

from decisionrl.envs.text import TextTask, make_task
from decisionrl.llm.warm_start import warm_started
from decisionrl.pipeline.weights import ConflictWeights
from decisionrl.policies.language import LanguagePolicy
from decisionrl.recipes import ON_ENVIRONMENTS, recipe
from decisionrl.recipes.presets import preset
from decisionrl.trainer import Trainer

pytest.importorskip("transformers")

TASK, OPTIONS = "text/modular-addition", {"modulus": 7}

GROUPS = {"groups": 4, "group_size": 4}
STARTS = {"num_starts": 49}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("grpo", "rloo", "dapo", "gspo", "sapo", "bapo", "capo", "d3s", "hapo", "gtpo", "ares"), GROUPS),
    **{name: {**GROUPS, **STARTS} for name in ("vade", "dcpo")},
    "xrpo": {"groups": 4, "budget": 16, **STARTS},
    "spo": {"episodes": 16, **STARTS},
    **{name: {"episodes": 16} for name in ("reinforce", "remax")},
    "riskpo": {"episodes": 20},
    "segment_spo": {"episodes": 8, "interval": 1, "rollouts": 2},
    "ppo": {"num_envs": 16, "minibatch": 16, "epochs": 2},
    "tppo": {"num_envs": 16, "horizon": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has imitated a little."""
    return warm_started(make_task(TASK, **OPTIONS), tmp_path_factory.mktemp("models") / "warm", seed=0)


def trained(name: str, model: Path, *, updates: int = 2, env: str | TextTask = TASK, **arguments: Any) -> Any:
    given = {**OWN.get(name, {}), "steps": 10**6, **arguments}
    options = OPTIONS if isinstance(env, str) else {}
    experiment = recipe(name)(env=env, env_options=options, model=str(model), **given)
    trainer = Trainer(experiment)
    for _ in range(updates):
        trainer.fit(trainer.step + 1)
    return trainer


@pytest.mark.parametrize("name", ON_ENVIRONMENTS)
def test_it_trains_a_language_model(name: str, model: Path) -> None:
    trainer = trained(name, model)
    policy = trainer.policy
    assert isinstance(policy, LanguagePolicy)
    before = recipe(name)(env=TASK, env_options=OPTIONS, model=str(model), steps=1).policy.model.state_dict()
    after = policy.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert 0 <= float(trainer.metrics["episode_return"]) <= 1
    assert 1 <= float(trainer.metrics["episode_length"]) <= 3


REMEMBERING = ["dcpo", "vade", "xrpo", "spo"]
"""Recipes that remember each prompt."""


@pytest.mark.parametrize("name", REMEMBERING)
def test_presets_ask_for_all_prompts_there_are(name: str) -> None:
    few = preset(name, {"env": "text/prompt-bandit"})
    assert few["num_starts"] == few.get("groups", few.get("episodes")) == 8
    half = preset(name, {"env": "text/countdown", "held_out": 0.5})
    assert half["num_starts"] == 264
    assert preset(name, {"env": "text/modular-addition"})["num_starts"] == 529
    assert preset(name, {"env": "text/modular-addition", "env_options": {"modulus": 5}})["num_starts"] == 25
    assert preset(name, {"env": "text/key-token-chain"})["num_starts"] == 1760
    assert preset(name, {"env": "text/sorting"})["num_starts"] == 529, "there is no end of prompts"


@pytest.mark.parametrize("name", REMEMBERING)
def test_all_prompts_of_ones_own_model_are_trained_on(model: Path, name: str) -> None:
    experiment = recipe(name)(env=TASK, env_options={"modulus": 11}, model=str(model))
    assert experiment.source.starts.num_starts == experiment.source.world.num_starts == 121
    endless = recipe(name)(env="CartPole-v1")
    assert endless.source.starts.num_starts == 64


def test_presets_of_tppo_have_windows_as_long_as_responses() -> None:
    assert preset("tppo", {"env": "text/modular-addition"})["horizon"] == 8
    assert preset("tppo", {"env": "text/key-token-chain"})["horizon"] == 13
    assert preset("tppo", {"env": "text/key-token-chain", "max_steps": 20})["horizon"] == 20


def test_gtpo_takes_equal_tokens_for_equal_steps_on_text(model: Path) -> None:
    experiment = recipe("gtpo")(env=TASK, env_options=OPTIONS, model=str(model), groups=2, group_size=2)
    (conflicts,) = (step for step in experiment.source.pipeline if isinstance(step, ConflictWeights))
    assert conflicts.key is None
    experiment = recipe("gtpo")(env="CartPole-v1", groups=2, group_size=2)
    (conflicts,) = (step for step in experiment.source.pipeline if isinstance(step, ConflictWeights))
    assert conflicts.key is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 2, "group_size": 1}, "group_size = 1; valid: at least 2"),
        ({"model": "nowhere"}, "model = 'nowhere': nowhere is no directory; valid: a directory as save_pretrained"),
    ],
)
def test_a_wrong_argument_is_named(model: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("grpo")(**{"env": TASK, "env_options": OPTIONS, "model": str(model), **arguments})
