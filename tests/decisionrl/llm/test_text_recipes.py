"""Every recipe on environments trains a language model, by the same function that trains a controller."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from decisionrl.checkpoint import save_weights
from decisionrl.envs.text import TextTask, TextTaskDefaults, make_task
from decisionrl.llm.warm_start import warm_started
from decisionrl.pipeline.weights import ConflictWeights
from decisionrl.policies.language import LanguagePolicy
from decisionrl.recipes import ON_ENVIRONMENTS, recipe
from decisionrl.recipes.presets import preset
from decisionrl.recipes.saved import load_run
from decisionrl.run import FINAL
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


@dataclass(frozen=True)
class Doubling(TextTaskDefaults):
    """``3=`` is answered by ``3`` ``factor`` times."""

    factor: int = 2

    name = "doubling"
    alphabet = "0123456789="
    num_prompts = 10
    best_reward = 1.0

    @property
    def max_tokens(self) -> int:
        return self.factor + 1

    def prompt(self, index: int, /) -> str:
        return f"{index}="

    def reward(self, index: int, response: str, /) -> float:
        return float(response == str(index) * self.factor)

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        return str(index) * self.factor


def test_small_models_of_tasks_of_ones_own_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISIONRL_CACHE", str(tmp_path / "models"))

    def kept() -> int:
        return len(list((tmp_path / "models").iterdir()))

    once = recipe("grpo")(env=Doubling(factor=1))
    assert kept() == 1
    twice = recipe("grpo")(env=Doubling(factor=2))
    assert kept() == 2
    recipe("rloo")(env=Doubling(factor=2))
    assert kept() == 2
    assert once.evaluate is not None
    assert twice.evaluate is not None
    assert once.evaluate(once.policy)["pass_1"] > 0.15
    assert twice.evaluate(twice.policy)["pass_1"] > 0.15


def test_a_run_on_a_task_of_ones_own_is_loaded_with_the_task(model: Path, tmp_path: Path) -> None:
    task = make_task(TASK, modulus=5)
    arguments = {"env": task, "model": str(model), "groups": 2, "group_size": 2, "num_envs": 4}
    experiment = recipe("grpo")(**arguments)
    trainer = Trainer(experiment, out=tmp_path / "run")
    trainer.fit(8)
    save_weights(experiment.policy, tmp_path / "run" / FINAL)
    with pytest.raises(ValueError, match=r"env = 'task object text/modular-addition'.*load_run\(directory, env=task\)"):
        load_run(tmp_path / "run")
    loaded = load_run(tmp_path / "run", env=task)
    assert loaded.source.world.num_starts == 25
    for one, two in zip(loaded.policy.parameters(), experiment.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match=r"env_options = {'modulus': 7}; valid with a task that has been made: none"):
        recipe("grpo")(**arguments, env_options={"modulus": 7})


def test_a_folder_of_models_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DECISIONRL_CACHE", str(tmp_path / "file" / "models"))
    with pytest.raises(ValueError, match=r"DECISIONRL_CACHE = '.*models': Not a directory; valid: a folder"):
        recipe("grpo")(env=TASK)


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
        ({"supervision": "steps"}, "supervision = 'steps'; valid: outcome, process"),
        ({"kl_coefficient": -0.1}, r"coefficient of the KL penalty = -0\.1; valid: a number >= 0"),
        ({"minibatch": 0}, "minibatch = 0; valid: a whole number >= 1, or None"),
        ({"max_steps": 0}, "max_steps = 0; valid: a whole number >= 1, or None"),
        ({"lora_rank": 0}, "lora_rank = 0; valid: a whole number >= 1, or None"),
        ({"held_out": 1.0}, r"held_out = 1\.0; valid: from 0 to below 1"),
        ({"held_out": 0.001}, r"held_out = 0\.001 of 49 prompts; valid: a share that leaves prompts to train on"),
        ({"env": "text/sorting", "env_options": {}, "held_out": 0.1}, r"held_out = 0\.1; valid with text/sorting: 0"),
        ({"env_options": {"modulus": 7, "rest": 1}}, "has no option 'rest'"),
        ({"seed": -1}, "seed = -1; valid: a whole number >= 0"),
        ({"prefix_attention": "flex"}, "prefix_attention = 'flex'; valid without share_prompts: 'sdpa'"),
        ({"max_steps": 200}, "prompt 0 has 4 tokens, and a response up to 200; valid: at most 66 in all"),
        ({"env": "text/sorting", "env_options": {}}, "character '>' at position . of '.*>' has no token; valid: "),
        ({"env": "modular-addition"}, "Did you mean 'text/modular-addition'"),
    ],
)
def test_a_wrong_argument_is_named(model: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("grpo")(**{"env": TASK, "env_options": OPTIONS, "model": str(model), **arguments})
