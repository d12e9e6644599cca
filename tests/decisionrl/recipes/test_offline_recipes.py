"""Every recipe on recorded data: learns on the labs, resumes bit for bit, and refuses what it does not fit."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from decisionrl.callbacks import Checkpoint
from decisionrl.composition import ChainedLearner, PhasedLearner
from decisionrl.experience.arrays import write_npz
from decisionrl.experience.d4rl import save_d4rl
from decisionrl.experience.data import open_data, open_segments
from decisionrl.experience.datasets import DensePairs, Pairs, Shortened
from decisionrl.experience.hindsight import FutureReturnPairs, LabeledAndUnlabeled
from decisionrl.experience.preference_formats import save_pairs
from decisionrl.experience.preferences import PreferencePairs, all_pairs
from decisionrl.experience.store import DatasetError
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.names import UnknownNameError
from decisionrl.objectives.hindsight import hindsight_matching
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.objectives.preference_methods import METHODS, build
from decisionrl.policies.hindsight import HUMAN, REFERENCE, SMALL, HindsightPolicy
from decisionrl.recipes import ON_RECORDED_DATA, metadata, recipe
from decisionrl.recipes.offline import Offline, check_spaces, rising
from decisionrl.recipes.offline_presets import CLONES, LABS, MUJOCO, offline_preset
from decisionrl.recipes.signatures import parameters
from decisionrl.trainer import Trainer

TINY = {
    "data": "lab/point",
    "steps": 50,
    "hidden": [8],
    "batch": 4,
    "dropout": 0.25,
    "learning_rate": 0.01,
    "seed": 1,
    "cloning_steps": 2,
    "reward_steps": 2,
    "warmup": 3,
    "width": 8,
    "layers": 1,
    "window": 4,
    "sizes": "small",
}

CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in ON_RECORDED_DATA],
    *[(name, {"data": "lab/gridworld"}) for name in ON_RECORDED_DATA if name not in ("dt", "oppo", "oppo_human")],
    ("bc", {"fraction": 0.1, "length": 5}),
    ("cpl", {"pairs": 20, "flip": 0.2, "teacher": "return"}),
    ("dpo_control", {"follow_every": 2}),
    ("dpo_control", {"method": "beta_dpo", "data": "lab/two-modes"}),
    ("p_iql", {"reward": "transformer"}),
    ("dt", {"horizon": 5}),
    ("oppo", {"horizon": 5, "joint": False}),
    ("oppo", {"data": "lab/two-modes", "joint": False}),
    ("oppo_human", {"data": "lab/two-modes", "pairs": None}),
]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in arguments.items())]) for name, arguments in CASES]
every = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)

WITH_CLONING = ("sft", "cpl", "cpl_bc", "cpl_kl", "dpo_control")


def tiny(name: str, **arguments: Any) -> Experiment:
    """The recipe with networks and batches as small as can be, and changes of phase after two updates."""
    known = parameters(recipe(name))
    return recipe(name)(**{**{key: value for key, value in TINY.items() if key in known}, **arguments})


def updates(experiment: Experiment, count: int) -> list[dict[str, Tensor]]:
    return [experiment.learner.update(experiment.source.sample()).metrics for _ in range(count)]


def weights(experiment: Experiment) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in experiment.policy.parameters()])


def assert_equal(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if dataclasses.is_dataclass(first):
        first, second = vars(first), vars(second)
    if isinstance(first, Mapping):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


# ------------------------------------------------------------------------------------------------ every recipe


@every
def test_learns(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    before = weights(experiment)
    for metrics in updates(experiment, 4):
        assert all(value.isfinite().all() for value in metrics.values())
    assert not torch.equal(weights(experiment), before)
    assert experiment.evaluate is not None
    result = experiment.evaluate(experiment.policy, episodes=2)
    assert result["episodes"] == 2
    episodes = open_data(experiment.config["data"])
    assert result["normalized_score"] == episodes.normalized_score(result["mean_return"])
    assert result["score_low"] <= result["normalized_score"] <= result["score_high"]


@every
def test_the_config_says_it_all(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    config = json.loads(json.dumps(experiment.config))
    assert config.pop("recipe") == name
    assert config["env"].startswith("decisionrl/")
    again = recipe(name)(**config)
    assert again.config == experiment.config
    for _ in range(3):
        batch = experiment.source.sample()
        assert_equal(again.source.sample(), batch)
        found = []
        for each in (again, experiment):
            torch.manual_seed(0)  # of dropout
            found.append(each.learner.update(batch).metrics)
        assert_equal(*found)


@every
def test_a_resumed_run_is_bit_identical(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """Cut before, at and after the change of phase, and between the turns of a chain."""
    whole = Trainer(tiny(name, **arguments), seed=0)
    whole.fit(5)
    for cut in (1, 2, 3):
        for steps in (cut, 5):
            trainer = Trainer(
                tiny(name, **arguments),
                callbacks=[Checkpoint(every=1)],
                out=tmp_path / str(cut),
                seed=0,
                resume=steps == 5,
            )
            assert trainer.step == (0 if steps == cut else cut)
            trainer.fit(steps)
        assert_equal(dict(trainer.policy.state_dict()), dict(whole.policy.state_dict()))
        assert_equal(trainer.metrics, whole.metrics)


@every
def test_dropout_is_off_where_the_policy_is_measured(name: str, arguments: dict[str, Any]) -> None:
    dropout = {"dropout": 0.5} if "dropout" in parameters(recipe(name)) else {}
    experiment = tiny(name, **arguments, **dropout)
    updates(experiment, 1)
    assert experiment.policy.training
    assert experiment.evaluate is not None
    state = torch.get_rng_state()
    first = experiment.evaluate(experiment.policy, episodes=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert experiment.policy.training
    assert experiment.evaluate(experiment.policy.eval(), episodes=2) == first


@pytest.mark.parametrize("name", ON_RECORDED_DATA)
def test_metadata(name: str) -> None:
    about = metadata(name)
    assert about.keys() == {"title", "arxiv", "changes", "limit", "kinds"}
    assert all(about[key] for key in ("title", "changes", "limit", "kinds"))
    assert tiny(name).metadata == about


# ----------------------------------------------------------------------------------------------------- presets


def test_presets_are_arguments_of_their_recipes() -> None:
    for presets in (LABS, CLONES, MUJOCO):
        for name, preset in presets.items():
            assert preset.keys() <= parameters(recipe(name)).keys()
    assert LABS.keys() == CLONES.keys() == set(ON_RECORDED_DATA)


def test_presets_apply_and_what_is_given_wins(tmp_path: Path) -> None:
    config = recipe("cpl")().config
    assert config["data"] == "lab/point"
    assert {key: config[key] for key in LABS["cpl"]} == LABS["cpl"]
    given = recipe("cpl")(data="lab/gridworld", hidden=[8], steps=7).config
    assert (given["hidden"], given["steps"], given["warmup"]) == ([8], 7, LABS["cpl"]["warmup"])
    save_d4rl(dataclasses.replace(open_data("lab/point"), info={}), tmp_path / "plain.npz")
    assert offline_preset("bc", str(tmp_path / "plain.npz")) == {}
    config = recipe("bc")(data=str(tmp_path / "plain.npz")).config
    assert (config["steps"], config["hidden"], config["env"]) == (500_000, [512, 512], None)


def test_defaults_are_the_papers() -> None:
    for name in ("cpl", "cpl_bc", "cpl_kl", "sft"):
        assert inspect.signature(recipe(name)).parameters["cloning_steps"].default == 200_000
    assert inspect.signature(recipe("cpl")).parameters["bias"].default == 0.5
    assert inspect.signature(recipe("cpl_kl")).parameters["bias"].default == 0.75
    human = inspect.signature(recipe("oppo_human")).parameters
    found = [human[name].default for name in ("sizes", "preference_weight", "context_learning_rate", "matching_every")]
    assert found == ["human", 10.0, 1e-2, 2]


# ------------------------------------------------------------------------------------------------------ phases


def phases(experiment: Experiment) -> list[GradientLearner]:
    assert isinstance(experiment.learner, PhasedLearner)
    found = [phase.learner for phase in experiment.learner.phases]
    assert all(isinstance(each, GradientLearner) for each in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("name", WITH_CLONING)
def test_cloning_counts_among_the_steps(name: str) -> None:
    experiment = tiny(name)
    trainer = Trainer(experiment)
    trainer.fit(5)
    assert trainer.step == 5
    assert [learner.steps for learner in phases(experiment)] == [2, 3]
    assert "preference_loss" in trainer.metrics or name == "sft"


def test_cpl_is_behavior_cloning_first_and_begins_afresh_with_a_rising_rate() -> None:
    experiment = tiny("cpl", dropout=0.0)
    cloning, method = phases(experiment)
    cpl = build("cpl", alpha=0.1, bias=0.5)
    for update in range(6):
        batch = experiment.source.sample()
        before = weights(experiment)
        expected = (BehaviorCloning() if update < 2 else cpl)(experiment.policy, batch).value
        rate = method.optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(0.01 * min(1, max(0, update - 2) / 3))
        assert torch.equal(experiment.learner.update(batch).metrics["loss"], expected)
        assert torch.equal(weights(experiment), before) == (update == 2), "only the first rate of the warm-up is 0"
    counts = [next(iter(each.optimizer.state.values()))["step"].item() for each in (cloning, method)]
    assert counts == [2, 4], "moments of their own"
    assert cloning.optimizer.param_groups[0]["lr"] == 0.01


def test_sft_clones_what_was_preferred_with_the_same_optimizer() -> None:
    experiment = tiny("sft", dropout=0.0)
    for update in range(4):
        batch = experiment.source.sample()
        which = "all" if update < 2 else "preferred"
        expected = BehaviorCloning(which=which)(experiment.policy, batch).value  # type: ignore[arg-type]
        assert torch.equal(experiment.learner.update(batch).metrics["loss"], expected)
    first, second = phases(experiment)
    assert first.optimizer is second.optimizer
    assert next(iter(first.optimizer.state.values()))["step"].item() == 4


@pytest.mark.parametrize("cloning_steps", [0, 2])
def test_the_reference_of_cpl_kl_is_the_cloned_policy(cloning_steps: int) -> None:
    experiment = tiny("cpl_kl", dropout=0.0, cloning_steps=cloning_steps)
    assert isinstance(experiment.learner, PhasedLearner)
    updates(experiment, cloning_steps)
    cloned = copy.deepcopy(dict(experiment.policy.named_parameters()))
    for _ in range(2):  # the first update has rate 0
        metrics = updates(experiment, 1)[0]
        assert float(metrics["loss"]) == pytest.approx(math.log(2), abs=1e-6)
        assert float(metrics["accuracy"]) == 0
        assert float(metrics["gradient_norm"]) > 1e-4
    updates(experiment, 2)
    learner = phases(experiment)[-1]
    reference: Any = learner.components["reference"]
    for name, parameter in reference.module.named_parameters():
        assert torch.equal(parameter, cloned[name])
        assert parameter.grad is None
    assert not torch.equal(torch.cat([each.flatten() for each in cloned.values()]), weights(experiment))
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.01)


def test_a_rising_rate() -> None:
    assert [rising(4)(done) for done in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert rising(0)(0) == 1


def test_a_batch_of_ties_teaches_nothing() -> None:
    experiment = tiny("cpl", cloning_steps=0, warmup=0)
    assert isinstance(experiment.source.draw, DensePairs)  # type: ignore[attr-defined]
    segments = experiment.source.draw.segments  # type: ignore[attr-defined]
    batch = all_pairs(segments.rows(torch.arange(4)), torch.ones(4))
    before = weights(experiment)
    metrics = experiment.learner.update(batch).metrics
    assert float(metrics["loss"]) == 0
    assert all(value.isfinite().all() for value in metrics.values())
    assert torch.equal(weights(experiment), before)


# ------------------------------------------------------------------------------------- teachers, pairs, labels


def draw(experiment: Experiment) -> Any:
    return experiment.source.draw  # type: ignore[attr-defined]


def test_the_first_score_is_the_default_teacher() -> None:
    for data, teacher in (("lab/point", "regret"), ("lab/two-modes", "good"), ("lab/gridworld", "regret")):
        found = draw(tiny("cpl", data=data)).segments
        assert torch.equal(found.score, open_segments(data, score=teacher).score)
    assert torch.equal(
        draw(tiny("cpl", teacher="return")).segments.score, open_segments("lab/point", score="return").score
    )


def test_pairs_are_labeled_by_the_teacher_and_some_wrongly() -> None:
    right, wrong, some = (draw(tiny("cpl", pairs=400, flip=flip)) for flip in (0.0, 1.0, 0.25))
    assert isinstance(right, Pairs)
    assert right.size == 4
    score = open_segments("lab/point", score="regret").score
    assert score is not None
    assert torch.equal(right.pairs.label, (score[right.pairs.second] > score[right.pairs.first]).to(score))
    assert torch.equal(wrong.pairs.label, 1 - right.pairs.label)
    share = float((some.pairs.label != right.pairs.label).double().mean())
    assert 0.15 < share < 0.35
    assert torch.equal(draw(tiny("cpl", pairs=400)).pairs.first, right.pairs.first), "drawn from the seed"
    assert not torch.equal(draw(tiny("cpl", pairs=400, seed=2)).pairs.first, right.pairs.first)


def labels(path: Path, *, length: int = 10) -> PreferencePairs:
    """Three comparisons in a file, by somebody."""
    segments = dataclasses.replace(open_segments("lab/point"), length=length)
    row = torch.arange(3)
    pairs = PreferencePairs(segments=segments, first=row, second=row + 3, label=torch.tensor([1.0, 0.0, 0.5]))
    save_pairs(path, pairs)
    return pairs


@pytest.mark.parametrize("name", ["sft", "cpl", "p_iql", "oppo", "oppo_human"])
def test_labels_of_a_person(name: str, tmp_path: Path) -> None:
    wanted = labels(tmp_path / "labels.npz", length=6)
    experiment = tiny(name, pairs=str(tmp_path / "labels.npz"))
    found = draw(experiment)
    while not isinstance(found, Pairs):
        found = found.pairs if isinstance(found, LabeledAndUnlabeled) else found.draw
    assert torch.equal(found.pairs.label, wanted.label)
    for side in ("first", "second"):
        own, other = getattr(found.pairs, side), getattr(wanted, side)
        assert torch.equal(found.pairs.segments.start[own], wanted.segments.start[other])
        assert torch.equal(found.pairs.segments.episode[own], wanted.segments.episode[other])
    updates(experiment, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cpl", {"data": "lab/piont"}, "unknown data 'lab/piont'; did you mean 'lab/point'"),
        ("cpl", {"teacher": "regert"}, "score = 'regert'; valid: distance, regret, return"),
        ("cpl", {"flip": 0.1}, "flip = 0.1; valid with pairs = a number"),
        ("cpl", {"flip": 1.1, "pairs": 9}, "flip = 1.1; valid: 0 to 1"),
        ("cpl", {"pairs": 0}, "pairs = 0; valid: a whole number >= 1"),
        ("cpl", {"pairs": "none.npz"}, "pairs = 'none.npz': there is no such file"),
        ("cpl", {"pairs": "a.npz", "teacher": "regret"}, "teacher = 'regret'; valid with pairs = 'a.npz'"),
        ("cpl", {"batch": 501}, "size = 501; valid: 2 to 500"),
        ("cpl", {"batch": 0}, "batch = 0; valid: a whole number >= 1"),
        ("cpl", {"learning_rate": 0.0}, "learning_rate = 0.0; valid: a positive number"),
        ("bc", {"fraction": 0.0}, "fraction = 0.0; valid: above 0"),
        ("bc", {"env": "Pendulum-v1"}, r"observation_space of lab/point is Box.*; valid: Box.*, that of Pendulum-v1"),
        ("bc", {"env": "CartPole-v1", "data": "lab/gridworld"}, r"lab/gridworld is Discrete\(25\); valid: Box"),
        ("p_iql", {"reward": "tree"}, "reward = 'tree'; valid: mlp, transformer"),
        ("cpl_kl", {"cloning_steps": -1}, "cloning_steps = -1; valid: a whole number >= 0"),
        ("sft", {"cloning_steps": -1}, "cloning_steps = -1; valid: a whole number >= 0"),
        ("cpl_kl", {"rate_after": 0.0}, "rate_after = 0.0; valid: a positive number"),
        ("cpl", {"warmup": -1}, "warmup = -1; valid: a whole number >= 0"),
        ("p_iql", {"reward_steps": 0}, "reward_steps = 0; valid: a whole number >= 1"),
        ("oppo", {"warmup": -1}, "warmup = -1; valid: a whole number >= 0"),
        ("oppo", {"context_learning_rate": -1.0}, "context_learning_rate = -1.0; valid: a positive number"),
        ("oppo_human", {"context_learning_rate": 0.0}, "context_learning_rate = 0.0; valid: a positive number"),
        ("oppo", {"sizes": "large"}, "unknown sizes 'large'"),
        ("oppo", {"horizon": 0}, "horizon = 0; valid: a whole number >= 1"),
        ("oppo_human", {"matching_every": 0}, "matching_every = 0; valid: a whole number >= 1"),
        *[
            (
                name,
                {"data": "lab/gridworld"},
                r"observation_space of lab/gridworld is Discrete\(25\); valid for .*: a Box",
            )
            for name in ("dt", "oppo", "oppo_human")
        ],
        ("p_iql", {"data": "lab/gridworld", "reward": "transformer"}, "valid for a preference transformer: a Box"),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((DatasetError, UnknownNameError, ValueError), match=message):
        tiny(name, **arguments)


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    labels(path := tmp_path / "labels.npz")
    with np.load(path) as file:
        good = dict(file)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"label": np.array([0.0, 1.5, 1.0])}, "pair 1: label = 1.5; valid: 0 to 1"),
        ({"label": np.array([0.0, np.nan, 1.0])}, "pair 1: label = nan; valid: 0 to 1"),
        ({"start_2": good["start_2"] + 900}, "of episode .*, which has 40 steps"),
        ({"episode_1": good["episode_1"] - 400}, "episode = -.*; valid: 0 to 299"),
        ({"steps": np.asarray(7)}, "made for data of 7 steps; these have 12000"),
    ]
    for change, message in wrong:
        write_npz(path, {**good, **change})
        with pytest.raises(DatasetError, match=message):
            tiny("cpl", pairs=str(path))


# ------------------------------------------------------------------------------------- where it is measured


def with_info(path: Path, **info: Any) -> str:
    """The lab's episodes in a file with other information."""
    save_d4rl(dataclasses.replace(open_data("lab/point"), info=info), path)
    return str(path)


def test_success_is_told_where_it_is_all_that_is_rewarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = Offline(
        data=with_info(tmp_path / "a.npz", env="decisionrl/PointReach-v0", env_options={"success_reward": True})
    )
    monkeypatch.setitem(vars(offline), "_evaluator", lambda policy, **how: {"mean_return": 0.5, "low": 0.25, "high": 1})
    assert offline.evaluate(None) == {"mean_return": 0.5, "low": 0.25, "high": 1, "success_rate": 0.5}


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    path = with_info(tmp_path / "a.npz", env="Nowhere-v3")
    with pytest.raises(DatasetError, match=r"a.npz is from an environment.*Nowhere.*evaluation = false"):
        tiny("bc", data=path)
    experiment = tiny("bc", data=path, evaluation=False)
    assert experiment.evaluate is None
    updates(experiment, 1)
    assert tiny("bc", data=path, env="decisionrl/PointReach-v0").evaluate is not None
    with pytest.raises(ValueError, match="env = 'Nowhere-v4'"):
        tiny("bc", data=path, env="Nowhere-v4")


def test_spaces_that_fit() -> None:
    episodes = open_data("lab/point")
    world = Offline().make_world(1)
    check_spaces("it", episodes, world)
    unbounded = dataclasses.replace(episodes, observation_space=type(episodes.observation_space)(-np.inf, np.inf, (4,)))
    check_spaces("it", unbounded, world)
    wide = dataclasses.replace(episodes, action_space=type(episodes.action_space)(-2, 2, (2,)))
    with pytest.raises(DatasetError, match=r"action_space of it is Box\(-2.0, 2.0.*; valid: Box\(-1.0, 1.0"):
        check_spaces("it", wide, world)


def test_many_copies_of_one_environment_are_not_enough() -> None:
    env = gymnasium.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(ValueError, match="CartPole-v1 is a VectorEnv; valid: an id, or a function"):
        Offline(env=env)
    env.close()


# -------------------------------------------------------------------------------------------------- dpo_control

FITTING: dict[str, dict[str, Any]] = {"kto": {"baseline": "zero"}, "wpo": {"key": None}}
NEEDS_MORE = ("sppo_soft", "tdpo1", "tdpo2")


@pytest.mark.parametrize("method", [method for method in METHODS if method not in NEEDS_MORE])
def test_every_method_that_segments_suffice_for(method: str) -> None:
    data = "lab/gridworld" if method == "orpo" else "lab/point"
    experiment = tiny("dpo_control", method=method, settings=FITTING.get(method), data=data, warmup=0, dropout=0.0)
    updates(experiment, 2)
    before = weights(experiment)
    for metrics in updates(experiment, 3):
        assert all(value.isfinite().all() for value in metrics.values())
    assert not torch.equal(weights(experiment), before)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("dop", {}, "unknown preference method 'dop'; did you mean 'dpop'"),
        ("dpo", {"settings": {"gama": 1.0}}, "dpo has no gama; valid: beta"),
        ("dpo", {"settings": {"beta": "high"}}, "settings.beta = 'high'; valid: a number"),
        ("dpo", {"settings": {"bias": 2.0}}, r"bias = 2.0; valid: in \[0, 1\]"),
        *[(method, {}, f"method = '{method}' needs .*; valid: another") for method in NEEDS_MORE],
        ("kto", {}, "method = 'kto' needs .*; valid: baseline = zero"),
        ("kto", {"settings": {"baseline": "mismatched"}}, "valid: baseline = zero"),
        ("wpo", {}, "method = 'wpo' needs .*; valid: key = null"),
        ("odpo", {"pairs": 10}, "method = 'odpo', pairs = 10; valid: pairs = null"),
        ("orpo", {}, r"method = 'orpo', actions in Box.*; valid: discrete actions"),
    ],
)
def test_methods_that_need_more(method: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("dpo_control", method=method, **arguments)


# --------------------------------------------------------------------------------------------------------- oppo


def test_sizes_and_draws_of_oppo() -> None:
    for sizes, shape in (("reference", REFERENCE), ("human", HUMAN), ("small", SMALL)):
        policy = tiny("oppo", sizes=sizes, horizon=5).policy
        assert isinstance(policy, HindsightPolicy)
        assert (policy.window, len(policy.context)) == (shape.window, shape.context)
    assert isinstance(draw(tiny("oppo", horizon=5)), FutureReturnPairs)
    assert isinstance(draw(tiny("oppo")), Shortened)
    assert draw(tiny("oppo", data="lab/point", sizes="reference")).length == 10, "no longer than a segment"


def test_oppo_human_learns_the_policy_from_windows_on_every_second_batch() -> None:
    experiment = tiny("oppo_human", warmup=0)
    policy = experiment.policy
    assert isinstance(policy, HindsightPolicy)
    assert policy.contextual.observation_head is not None
    assert isinstance(experiment.learner, ChainedLearner)
    for update in range(4):
        before = copy.deepcopy(policy.state_dict())
        updates(experiment, 1)
        moved = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
        assert {"context", "encoder.head.weight"} <= moved
        assert ("contextual.action_head.weight" in moved) == (update % 2 == 0)


def test_only_the_policys_rate_rises() -> None:
    experiment = tiny("oppo", joint=True, warmup=4, context_learning_rate=0.02)
    assert isinstance(experiment.learner, GradientLearner)
    updates(experiment, 1)
    assert [group["lr"] for group in experiment.learner.optimizer.param_groups] == [0.01 / 4, 0.01, 0.02]


@pytest.mark.slow
@pytest.mark.parametrize("flip", [0.0, 1.0], ids=["true labels", "reversed labels"])
def test_oppo_does_what_is_preferred(flip: float) -> None:
    torch.manual_seed(0)  # of dropout
    experiment = recipe("oppo")(
        data="lab/two-modes", pairs=400, flip=flip, batch=16, steps=300, warmup=20, learning_rate=1e-3,
        context_learning_rate=1e-2,
    )  # fmt: skip
    Trainer(experiment).fit(300)
    policy = experiment.policy
    assert isinstance(policy, HindsightPolicy)
    assert experiment.evaluate is not None
    score = experiment.evaluate(policy, episodes=20)["normalized_score"]
    assert (score > 80) if flip == 0 else (score < -60)
    segments = open_segments("lab/two-modes", score="good")
    batch = segments.rows(torch.arange(200))
    good = segments.score[:200] > 0.5  # type: ignore[index]
    with torch.no_grad():
        policy.eval()
        window = policy.reader(batch)
        z = policy.encoder(window)
        distance = (z - policy.context).norm(dim=-1)
        nearer = (distance[good][:, None] < distance[~good]).double().mean()
        assert (nearer > 0.9) if flip == 0 else (nearer < 0.1)
        shuffled = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))]
        own, others = (
            hindsight_matching(policy.contextual(window, each).action, window.action, None) for each in (z, shuffled)
        )
        assert own < 0.3 * others
