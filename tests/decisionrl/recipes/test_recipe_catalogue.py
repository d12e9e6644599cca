"""Every recipe on environments: builds, learns, resumes bit for bit, and refuses what it does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_recipes import NAMES, WITH_CRITIC, tiny, updates

from decisionrl.callbacks import Callback, Checkpoint
from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.recipes import ON_ENVIRONMENTS, metadata, recipe
from decisionrl.recipes.gtpo import observation_and_action
from decisionrl.trainer import Trainer

CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in NAMES],
    *[(name, {"base": "critic"}) for name in WITH_CRITIC],
    ("grpo", {"kl_coefficient": 0.1}),
    ("dapo", {"overlong_length": 20, "overlong_buffer": 10}),
    ("riskpo", {"ratio": "sequence"}),
    ("ares", {"kl_coefficient": 0.1}),
]
IDS = [" ".join([name, *map(str, arguments.values())]) for name, arguments in CASES]

CONTINUOUS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("reinforce", "ppo", "grpo", "rloo", "dapo", "gspo", "sapo", "capo", "remax", "tppo")},
    **{name: {} for name in ("riskpo", "gtpo")},
    **{name: {"success": -1000.0} for name in ("spo", "vade", "xrpo", "ares")},
    "bapo": {"old_probability": False},
    "d3s": {"steps_first": 1.0, "steps_last": 1.0},
}

every = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)


class Stop(Callback):
    """Ends the training after so many updates."""

    name = "stop"

    def __init__(self, updates: int) -> None:
        self.left = updates

    def on_step(self, trainer: Trainer) -> None:
        self.left -= 1
        if not self.left:
            trainer.stop("enough")


def assert_learns(experiment: Experiment) -> None:
    before = [parameter.clone() for parameter in experiment.policy.parameters()]
    for metrics in updates(experiment, 2):
        assert all(value.isfinite().all() for value in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, experiment.policy.parameters(), strict=True))


def assert_equal(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, Trajectories):
        first, second = vars(first), vars(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


@every
def test_learns_from_discrete_actions(name: str, arguments: dict[str, Any]) -> None:
    assert_learns(tiny(name, **arguments))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_learns_from_continuous_actions(name: str) -> None:
    assert_learns(tiny(name, env="Pendulum-v1", **CONTINUOUS[name]))


def test_learns_from_the_rewards_of_single_steps() -> None:
    """Where they differ: on CartPole all are 1."""
    assert_learns(tiny("grpo", env="Pendulum-v1", supervision="process"))


@pytest.mark.parametrize("name", ["reinforce", "grpo", "dapo", "gspo", "spo", "tppo", "riskpo", "gtpo", "ares"])
def test_learns_with_memory(name: str) -> None:
    assert_learns(tiny(name, recurrent=True))


def test_conflicts_of_numbered_states_and_actions() -> None:
    """GTPO's keys for observations that are numbers, [batch, step], as on FrozenLake."""
    batch = tiny("gtpo", env="FrozenLake-v1").source.sample()
    key = observation_and_action(batch)
    pairs = torch.stack([batch.observation, batch.action], -1)
    same = (pairs[batch.mask][:, None] == pairs[batch.mask][None]).all(-1)
    assert torch.equal(key[batch.mask][:, None] == key[batch.mask][None], same)


@pytest.mark.parametrize("name", ON_ENVIRONMENTS)
def test_the_entropy_bonus_reaches_the_objective(name: str) -> None:
    learner: Any = recipe(name)(entropy_coefficient=0.125, steps=1000).learner
    objective = getattr(learner, "learner", learner)._objective
    assert objective.entropy_coefficient == 0.125


def test_which_recipes_take_continuous_actions() -> None:
    assert {*NAMES} - {*CONTINUOUS} == {"dcpo", "segment_spo", "hapo"}


@every
def test_the_config_says_it_all(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    config = json.loads(json.dumps(experiment.config))
    assert config.pop("recipe") == name
    again = recipe(name)(**config)
    assert json.loads(json.dumps(again.config)) == json.loads(json.dumps(experiment.config))
    batch = experiment.source.sample()
    assert_equal(again.source.sample(), batch)
    assert_equal(again.learner.update(batch).metrics, experiment.learner.update(batch).metrics)


@every
def test_a_resumed_run_is_bit_identical(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = Trainer(tiny(name, **arguments), callbacks=[Stop(3)])
    whole.fit(10_000)
    for resume in (False, True):
        trainer = Trainer(
            tiny(name, **arguments),
            callbacks=[Checkpoint(every=1), Stop(2 if resume else 1)],
            out=tmp_path,
            resume=resume,
        )
        trainer.fit(10_000)
    assert trainer.step == whole.step
    assert_equal(dict(trainer.policy.state_dict()), dict(whole.policy.state_dict()))
    assert_equal(trainer.metrics, whole.metrics)


@every
def test_metadata(name: str, arguments: dict[str, Any]) -> None:
    about = metadata(name)
    assert about.keys() == {"title", "arxiv", "changes", "limit", "kinds"}
    assert all(about[key] for key in ("title", "changes", "limit", "kinds"))
    assert tiny(name, **arguments).metadata == about


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        *[(name, {"env": "Pendulum-v1"}, "density") for name in ("bapo", "dcpo", "segment_spo", "hapo", "d3s")],
        *[(name, {"env": "Pendulum-v1"}, "success") for name in ("spo", "vade", "xrpo", "ares")],
        ("gtpo", {"env": "Pendulum-v1", "squash": True}, "squash"),
        ("ares", {"env": "Pendulum-v1", "squash": True, "success": 0.0}, "squash"),
        *[(name, {"base": "tree"}, "base = 'tree'; valid: group, critic") for name in WITH_CRITIC],
        ("segment_spo", {"recurrent": True}, "recurrent = True"),
        ("d3s", {"base": "critic", "recurrent": True}, "recurrent = True"),
        ("riskpo", {"ratio": "token"}, "ratio = 'token'; valid: step, sequence"),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(name, **arguments)


def test_the_page_on_control_has_every_recipe() -> None:
    page = (Path(__file__).parents[3] / "docs" / "control.md").read_text()
    for name in NAMES:
        assert f"| `{name}`" in page
