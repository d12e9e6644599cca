"""The recipes of diffusion policies: learn in every mode, resume bit for bit, act with the average, refuse nonsense."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.callbacks import Checkpoint
from decisionrl.composition import AveragedLearner
from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experience.d4rl import save_d4rl
from decisionrl.experience.data import open_data
from decisionrl.experience.minari import save_minari
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.names import UnknownNameError
from decisionrl.objectives.denoising import denoising, regression
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import DiffusionPolicy
from decisionrl.policies.diffusion_network import DiffusionTransformer
from decisionrl.policies.diffusion_unet import DiffusionUnet
from decisionrl.recipes import ON_DEMONSTRATIONS, metadata, recipe
from decisionrl.recipes.offline import cosine
from decisionrl.recipes.offline_presets import DEMONSTRATIONS, offline_preset
from decisionrl.recipes.signatures import parameters
from decisionrl.trainer import Trainer

TINY: dict[str, Any] = {
    "data": "lab/return-side",
    "sizes": "cpu",
    "observations": 3,
    "future": 3,
    "batch": 4,
    "steps": 50,
    "warmup": 3,
    "learning_rate": 0.01,
    "max_steps": 6,
    "seed": 1,
}
UNET: dict[str, Any] = {"network": "unet", "future": 4}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ptp", {}),
    ("ptp", {"data": "lab/count-visits"}),
    ("ptp", {"data": "lab/point"}),
    ("ptp", {"past_steps": 1}),
    ("ptp", {"past_tokens": "unsupervised"}),
    ("ptp", {"past_tokens": "absent"}),
    ("ptp", UNET),
    ("ptp", {**UNET, "past_tokens": "absent"}),
    ("ptp", {"head": "regression"}),
    ("ptp", {"stride": 2}),
    ("ptp", {"stride": 2, "spread": "mixed"}),
    ("ptp", {"candidates": 3}),
    ("ptp", {"observations": 1}),
    ("diffusion_policy", {"action_steps": 1}),
    ("diffusion_policy", {**UNET, "action_steps": 4}),
    ("diffusion_policy", {"data": "lab/point", "action_steps": 2, "network": "transformer"}),
]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in arguments.items())]) for name, arguments in CASES]
every = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)


def tiny(name: str = "ptp", **arguments: Any) -> Experiment:
    """The recipe with a network, a context and batches as small as can be."""
    return recipe(name)(**{**TINY, **arguments})


def parts(experiment: Experiment) -> tuple[AveragedLearner, GradientLearner, DiffusionPolicy]:
    """The learner, the one in it, and the policy that the latter trains."""
    learner = experiment.learner
    assert isinstance(learner, AveragedLearner)
    assert isinstance(learner.learner, GradientLearner)
    assert isinstance(learner.learner.policy, DiffusionPolicy)
    return learner, learner.learner, learner.learner.policy


def updates(experiment: Experiment, count: int) -> list[dict[str, Tensor]]:
    return [experiment.learner.update(experiment.source.sample()).metrics for _ in range(count)]


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def assert_equal(first: Any, second: Any) -> None:
    if dataclasses.is_dataclass(first):
        first, second = vars(first), vars(second)
    if isinstance(first, Mapping):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    else:
        assert torch.equal(first, second)


def changed(episodes: EpisodeStore, path: Path, **changes: Any) -> str:
    """Demonstrations that are different in some field, in a file."""
    save_d4rl(dataclasses.replace(episodes, **changes), path)
    return str(path)


# ------------------------------------------------------------------------------------------------- every mode


@every
def test_learns(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    before = weights(experiment.policy)
    for metrics in updates(experiment, 4):
        assert {"loss", "future_error"} <= metrics.keys()
        assert all(value.isfinite().all() for value in metrics.values())
        has_past = experiment.config["observations"] > 1 and experiment.config.get("past_tokens") != "absent"
        assert ("past_error" in metrics) == has_past
    assert not torch.equal(weights(experiment.policy), before)
    assert experiment.evaluate is not None
    result = experiment.evaluate(experiment.policy, episodes=2)
    assert result["episodes"] == 2
    assert result["mean_length"] <= 6
    assert result["normalized_score"] == open_data(experiment.config["data"]).normalized_score(result["mean_return"])
    assert result.get("success_rate") == (None if arguments.get("data") == "lab/point" else result["mean_return"])


@every
def test_the_config_says_it_all(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    config = json.loads(json.dumps(experiment.config))
    assert config.pop("recipe") == name
    assert config.keys() == parameters(recipe(name)).keys() - {"device"}, "what is not used is not there"
    assert all(config[key] == value for key, value in {**TINY, **arguments}.items())
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
    assert torch.equal(weights(again.policy), weights(experiment.policy))


WITH_DROPOUT = {"sizes": "paper", "head": "regression"}


@pytest.mark.parametrize(("name", "arguments"), [*CASES, ("ptp", WITH_DROPOUT)], ids=[*IDS, "ptp with dropout"])
def test_a_resumed_run_is_bit_identical(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = Trainer(tiny(name, **arguments), seed=0)
    whole.fit(5)
    for steps in (2, 5):
        trainer = Trainer(
            tiny(name, **arguments), callbacks=[Checkpoint(every=1)], out=tmp_path / "cut", seed=0, resume=steps == 5
        )
        assert trainer.step == (0 if steps == 2 else 2)
        trainer.fit(steps)
    assert_equal(trainer.policy.state_dict(), whole.policy.state_dict())
    assert_equal(trainer.metrics, whole.metrics)


def test_the_options_are_those_of_the_policy_and_its_data() -> None:
    experiment = tiny(
        stride=2, spread="mixed", past_steps=1, candidates=3, action_steps=2, weight_decay=0.5, data="lab/count-visits"
    )
    _, inner, policy = parts(experiment)
    assert policy.context == Context(observations=3, future=3, stride=2, spread="mixed")
    assert (policy.candidates, policy.action_steps, policy.present - policy.first_trained) == (3, 2, 1)
    assert isinstance(policy.network, DiffusionTransformer)
    assert isinstance(parts(tiny(**UNET))[2].network, DiffusionUnet)
    draw = experiment.source.draw  # type: ignore[attr-defined]
    assert isinstance(draw, ContextWindows)
    assert (draw.size, draw.context) == (4, policy.context)
    assert len(draw) == open_data("lab/count-visits").num_steps, "every step is the present one of one window"
    assert inner.optimizer.param_groups[0]["weight_decay"] == 0.5
    batch = experiment.source.sample()
    for head, objective in (("diffusion", denoising), ("regression", regression)):
        _, inner, policy = parts(tiny(head=head))
        expected = objective(policy, batch).value  # type: ignore[arg-type]
        assert torch.equal(inner.update(batch).metrics["loss"], expected)


@pytest.mark.parametrize("past_tokens", ["predict", "unsupervised", "absent"])
def test_with_one_observation_it_is_the_short_diffusion_policy(past_tokens: str) -> None:
    long = tiny(observations=1, past_tokens=past_tokens)
    short = tiny("diffusion_policy", observations=1, network="transformer", action_steps=1)
    for _ in range(3):
        batch = short.source.sample()
        assert_equal(long.source.sample(), batch)
        assert_equal(long.learner.update(batch).metrics, short.learner.update(batch).metrics)
    assert torch.equal(weights(long.policy), weights(short.policy))


def test_regression_of_one_action_is_cloning_with_the_squared_error() -> None:
    experiment = tiny(
        "diffusion_policy", head="regression", network="transformer", observations=1, future=1, action_steps=1
    )
    policy = parts(experiment)[2]
    batch = experiment.source.sample()
    with torch.no_grad():
        action = policy.eval().act(batch.observation[:, 0])[0]
    low, high = (getattr(open_data("lab/return-side").action, bound)(0) for bound in ("amin", "amax"))
    inside = (action > low) & (action < high)
    assert inside.all(), "acting clips"
    expected = (2 * (action - batch.action[:, 0]) / (high - low)).square().mean()
    found = experiment.learner.update(batch).metrics["loss"]
    torch.testing.assert_close(found, expected)


def test_normalizers_are_those_of_the_data() -> None:
    policy = parts(tiny())[2]
    episodes = open_data("lab/return-side")
    normalized = policy.action_normalizer(episodes.action)
    torch.testing.assert_close(normalized.amin(0), torch.full((2,), -1.0))
    torch.testing.assert_close(normalized.amax(0), torch.full((2,), 1.0))
    encoded = policy.encoder(episodes.observation)
    torch.testing.assert_close(encoded.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded.std(0), torch.ones(2), atol=1e-2, rtol=0)


def test_metadata() -> None:
    for name in ON_DEMONSTRATIONS:
        about = metadata(name)
        assert about.keys() == {"title", "arxiv", "changes", "limit", "kinds"}
        assert all(about.values())
        assert tiny(name, action_steps=1).metadata == about


# ------------------------------------------------------------------------------------- what trains, what acts


@pytest.mark.parametrize("arguments", [{}, WITH_DROPOUT], ids=["without", "with"])
def test_the_average_acts_and_without_dropout(arguments: dict[str, Any]) -> None:
    experiment = tiny(**arguments)
    learner, _, trained = parts(experiment)
    assert experiment.policy is learner.average.module
    updates(experiment, 4)
    assert not torch.equal(weights(experiment.policy), weights(trained))
    assert trained.training
    assert not any(module.training for module in experiment.policy.modules())
    assert experiment.evaluate is not None
    state = torch.get_rng_state()
    first = experiment.evaluate(experiment.policy, episodes=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert experiment.evaluate(experiment.policy, episodes=2) == first
    assert trained.training
    batch = experiment.source.sample()
    objective: Any = regression if arguments else denoising
    losses = {objective(trained, batch).value.item() for _ in range(3)}
    assert len(losses) == (3 if arguments else 1), "dropout where it is trained, if there is any"
    assert objective(experiment.policy, batch).value == objective(experiment.policy, batch).value


def test_the_rate_rises_and_falls() -> None:
    factor = cosine(12, warmup=2)
    assert [factor(done) for done in (0, 1, 2, 7, 12, 40)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert [cosine(4)(done) for done in range(6)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0])
    experiment = tiny(steps=12, warmup=2)
    _, inner, _ = parts(experiment)
    rates = []
    for _ in range(13):
        rates.append(inner.optimizer.param_groups[0]["lr"])
        updates(experiment, 1)
    assert rates == pytest.approx([0.01 * factor(done) for done in range(13)])


def test_the_first_update_of_a_warm_up_changes_nothing() -> None:
    experiment = tiny(warmup=3)
    before = weights(experiment.policy)
    updates(experiment, 1)
    assert torch.equal(weights(experiment.policy), before)
    experiment = tiny(warmup=0)
    updates(experiment, 1)
    assert not torch.equal(weights(experiment.policy), before)


@pytest.mark.parametrize(("network", "betas"), [("transformer", (0.9, 0.95)), ("unet", (0.95, 0.999))])
def test_matrices_decay_and_the_rest_does_not(network: str, betas: tuple[float, float]) -> None:
    _, inner, policy = parts(tiny(network=network, future=4, weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in inner.optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in inner.optimizer.param_groups) == len(decay) == len(trained)
    for name, parameter in trained.items():
        assert decay[id(parameter)] == (0.5 if parameter.dim() > 1 and "position" not in name else 0.0), name
    assert {group["betas"] for group in inner.optimizer.param_groups} == {betas}


class Pictures(gymnasium.Env[Any, Any]):
    """Pictures of nothing, whatever is done."""

    observation_space = spaces.Dict(
        {"picture": spaces.Box(0, 255, (36, 36, 1), np.uint8), "place": spaces.Box(-1, 1, (2,))}
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, **_: Any) -> Any:
        return {"picture": np.zeros((36, 36, 1), np.uint8), "place": np.zeros(2, np.float32)}, {}

    def step(self, _: Any) -> Any:
        return self.reset()[0], 0.0, False, False, {}


def pictures(directory: Path, **info: Any) -> str:
    """Two demonstrations with pictures, as a Minari dataset."""
    rng = torch.Generator().manual_seed(0)
    ends = torch.tensor([False, False, True, False, False, False, True])
    episodes = EpisodeStore(
        observation={
            "picture": torch.randint(256, (9, 36, 36, 1), generator=rng, dtype=torch.uint8),
            "place": torch.rand(9, 2, generator=rng),
        },
        action=2 * torch.rand(7, 2, generator=rng) - 1,
        reward=torch.zeros(7),
        terminated=ends,
        truncated=torch.zeros(7, dtype=torch.bool),
        length=torch.tensor([3, 4]),
        observation_space=Pictures.observation_space,
        action_space=Pictures.action_space,
        info=info,
    )
    return str(save_minari(episodes, directory))


def test_the_encoder_has_a_decay_of_its_own(tmp_path: Path) -> None:
    experiment = tiny(data=pictures(tmp_path / "pictures"), env=Pictures, weight_decay=0.5, encoder_decay=0.25)
    _, inner, policy = parts(experiment)
    decay = {id(p): group["weight_decay"] for group in inner.optimizer.param_groups for p in group["params"]}
    encoder = list(policy.encoder.parameters())
    assert {decay[id(p)] for p in encoder if p.dim() > 1} == {0.25}
    assert {decay[id(p)] for p in encoder if p.dim() == 1} == {0.0}
    before = weights(policy.encoder)
    assert all(value.isfinite() for metrics in updates(experiment, 2) for value in metrics.values())
    assert not torch.equal(weights(policy.encoder), before)
    assert experiment.evaluate is not None
    assert experiment.evaluate(experiment.policy, episodes=2)["mean_length"] == 6


# ----------------------------------------------------------------------------------------------------- presets


def test_presets_are_arguments_of_their_recipes() -> None:
    assert set(ON_DEMONSTRATIONS) < DEMONSTRATIONS.keys()
    for name, preset in DEMONSTRATIONS.items():
        assert preset.keys() <= parameters(recipe(name)).keys()


@pytest.mark.parametrize("name", ON_DEMONSTRATIONS)
def test_presets_apply_and_what_is_given_wins(name: str, tmp_path: Path) -> None:
    config = recipe(name)().config
    assert (config["data"], config["env"]) == ("lab/return-side", "decisionrl/ReturnSide-v0")
    assert {key: config[key] for key in DEMONSTRATIONS[name]} == DEMONSTRATIONS[name]
    config = recipe(name)(data="lab/count-visits", steps=7, future=6).config
    assert (config["steps"], config["future"]) == (7, 6)
    assert (config["sizes"], config["warmup"]) == ("cpu", DEMONSTRATIONS[name]["warmup"])
    elsewhere = changed(open_data("lab/return-side"), tmp_path / "mine.npz", info={})
    assert offline_preset(name, elsewhere) == {}
    config = recipe(name)(data=elsewhere, **UNET, observations=1, action_steps=1).config
    assert (config["sizes"], config["learning_rate"], config["env"]) == ("paper", 1e-4, None)


def test_defaults_are_the_papers() -> None:
    def defaults(name: str) -> dict[str, Any]:
        return {key: each.default for key, each in inspect.signature(recipe(name)).parameters.items()}

    ptp, short = defaults("ptp"), defaults("diffusion_policy")
    assert (ptp["observations"], ptp["future"], ptp["action_steps"], ptp["network"]) == (16, 17, 1, "transformer")
    assert (ptp["past_tokens"], ptp["past_steps"], ptp["candidates"]) == ("predict", None, 1)
    assert (short["observations"], short["future"], short["action_steps"], short["network"]) == (2, 15, 8, "unet")


# --------------------------------------------------------------------------------------------- what it works on


def test_a_context_may_be_longer_than_every_demonstration() -> None:
    longest = int(open_data("lab/return-side").length.max())
    arguments = {"observations": 5, "stride": longest, "candidates": 2}
    experiment = tiny(**arguments)
    batch = experiment.source.sample()
    assert tuple(batch.action.shape) == (4, 7, 2)
    assert all(value.isfinite() for metrics in updates(experiment, 2) for value in metrics.values())
    assert experiment.evaluate is not None
    assert experiment.evaluate(experiment.policy, episodes=2)["episodes"] == 2


def test_without_padding_a_demonstration_must_be_as_long_as_the_window() -> None:
    episodes = open_data("lab/return-side")
    longest = int(episodes.length.max())
    for future, fits in ((longest - 2, True), (longest - 1, False)):
        context = Context(observations=3, future=future)
        if fits:
            windows = ContextWindows(episodes=episodes, context=context, size=2, pad_before=0, pad_after=0)
            assert len(windows) == int((episodes.length == longest).sum())
            continue
        message = (
            f"spans {longest + 1} steps, and with pad_before = 0 .* none fits the longest episode, of {longest} steps"
        )
        with pytest.raises(DatasetError, match=message):
            ContextWindows(episodes=episodes, context=context, size=2, pad_before=0, pad_after=0)


def still(path: Path) -> str:
    """Demonstrations in which the second action is always the same."""
    episodes = open_data("lab/return-side")
    action = episodes.action.clone()
    action[:, 1] = 0.25
    return changed(episodes, path, action=action)


def test_actions_that_never_change(tmp_path: Path) -> None:
    data = still(tmp_path / "still.npz")
    message = r"action of .*still.npz never changes in dimensions \[1\]; valid: .*, or constant_actions = 'center'"
    with pytest.raises(DatasetError, match=message):
        tiny(data=data)
    experiment = tiny(data=data, constant_actions="center")
    assert all(value.isfinite() for metrics in updates(experiment, 3) for value in metrics.values())
    policy = parts(experiment)[2]
    assert torch.equal(policy.action_normalizer(torch.tensor([[0.0, 0.25]]))[:, 1], torch.zeros(1))


def test_not_a_number_is_named_with_its_episode_and_step() -> None:
    episodes = open_data("lab/return-side")
    row = int(episodes.length[:2].sum()) + 3
    action, observation = episodes.action.clone(), copy.deepcopy(episodes.observation)
    action[row, 1] = torch.nan
    with pytest.raises(DatasetError, match="action is not finite in episode 2, step 3; valid: finite numbers"):
        dataclasses.replace(episodes, action=action)
    assert isinstance(observation, Tensor)
    observation[row + 2, 0] = torch.inf  # two episodes before have one observation more than steps
    with pytest.raises(DatasetError, match="observation is not finite in episode 2, step 3; valid: finite numbers"):
        dataclasses.replace(episodes, observation=observation)


class Renamed(Pictures):
    """The same under another name."""

    observation_space = spaces.Dict(
        {"image": Pictures.observation_space["picture"], "place": Pictures.observation_space["place"]}
    )


class Wider(Pictures):
    """A place of three numbers."""

    observation_space = spaces.Dict(
        {"picture": Pictures.observation_space["picture"], "place": spaces.Box(-1, 1, (3,))}
    )


def test_observations_of_another_environment(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures")
    with pytest.raises(
        DatasetError,
        match=r"observation_space of .*pictures has the keys picture, place; valid: image, place, those of .*Renamed.* "
        r"\(missing: image; too many: picture\)$",
    ):
        tiny(data=data, env=Renamed)
    with pytest.raises(
        DatasetError,
        match=r"observation_space\['place'\] of .*pictures is Box\(.*\(2,\).*; valid: Box\(.*\(3,\).*Wider",
    ):
        tiny(data=data, env=Wider)
    with pytest.raises(
        DatasetError, match=r"observation_space of .*pictures is Dict.*; valid: Box.*, that of Pendulum-v1"
    ):
        tiny(data=data, env="Pendulum-v1")


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    data = changed(open_data("lab/return-side"), tmp_path / "away.npz", info={"env": "Nowhere-v3"})
    with pytest.raises(DatasetError, match=r"away.npz is from an environment that cannot be made.*evaluation = false"):
        tiny(data=data)
    experiment = tiny(data=data, evaluation=False)
    assert experiment.evaluate is None
    updates(experiment, 1)


def elsewhere() -> gymnasium.Env[Any, Any]:
    """The same spaces, but rewards of every size."""
    env = gymnasium.make("decisionrl/ReturnSide-v0")
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) - 1.0)


def test_returns_of_another_environment_are_no_success_rates() -> None:
    experiment = tiny(env=elsewhere, head="regression")
    assert experiment.evaluate is not None
    result = experiment.evaluate(experiment.policy, episodes=2)
    assert result["mean_return"] < 0
    assert "success_rate" not in result


def test_whole_numbers_are_no_actions_of_a_diffusion(tmp_path: Path) -> None:
    episodes = open_data("lab/return-side")
    data = changed(
        episodes,
        tmp_path / "whole.npz",
        action=episodes.action.round().long(),
        action_space=spaces.Box(-1, 1, (2,), np.int64),
    )
    with pytest.raises(
        DatasetError, match=r"action_space of .*whole.npz is Box.*int64.*; valid for diffusion: a Box of"
    ):
        tiny(data=data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "lab/return-sied"}, "unknown data 'lab/return-sied'; did you mean 'lab/return-side'"),
        (
            {"data": "lab/gridworld"},
            r"action_space of lab/gridworld is Discrete\(4\); valid for diffusion: a Box of floats",
        ),
        (
            {"env": "Pendulum-v1"},
            r"observation_space of lab/return-side is Box.*\(2,\).*; valid: Box.*\(3,\).*Pendulum-v1",
        ),
        ({"observations": 0}, "observations = 0; valid: at least 1"),
        ({"future": 0}, "future = 0; valid: at least 1"),
        ({"stride": 0}, "stride = 0; valid: at least 1"),
        ({"spread": "odd"}, "spread = 'odd'; valid: even, mixed"),
        ({"spread": "mixed"}, "stride = 1; valid with spread = 'mixed' and 3 observations: at least 2"),
        ({"past_tokens": "some"}, "past_tokens = 'some'; valid: predict, unsupervised, absent"),
        ({"past_steps": 3}, "past_steps = 3; valid: None, or with past_tokens = 'predict' 1 to 2"),
        ({"past_steps": 0}, "past_steps = 0; valid: None, or with past_tokens = 'predict' 1 to 2"),
        ({"past_steps": 1, "past_tokens": "absent"}, "past_steps = 1; valid: None, or with past_tokens = 'predict'"),
        ({"head": "score"}, "head = 'score'; valid: diffusion, regression"),
        ({"network": "mlp"}, "network = 'mlp'; valid: transformer, unet"),
        ({"sizes": "big"}, "sizes = 'big'; valid: paper, medium, cpu"),
        ({"action_steps": 4}, "action_steps = 4; valid: 1 to future = 3"),
        ({"action_steps": 0}, "action_steps = 0; valid: 1 to future = 3"),
        ({"candidates": 0}, "candidates = 0; valid: 1, or more with"),
        (
            {"candidates": 2, "past_tokens": "absent"},
            "candidates = 2; valid: 1, or more with .* past_tokens = 'predict'",
        ),
        ({"candidates": 2, "head": "regression"}, "candidates = 2; valid: 1, or more with head = 'diffusion'"),
        ({"candidates": 2, "observations": 1}, "candidates = 2; .* at least two observations"),
        ({"constant_actions": "drop"}, "constant_actions = 'drop'; valid: error, center"),
        ({"warmup": -1}, "warmup = -1; valid: a whole number >= 0"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0; valid: a number >= 0"),
        ({"encoder_decay": float("nan")}, "encoder_decay = nan; valid: a number >= 0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; valid: a positive number"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; it must be positive"),
        ({"batch": 0}, "batch = 0; valid: a whole number >= 1"),
        ({"steps": 0}, "steps = 0; valid: a whole number >= 1"),
        (
            {"network": "unet"},
            r"observations = 3, future = 3: 5 action tokens; valid with network = 'unet', sizes = 'cpu': "
            r"observations - 1 \+ future is a multiple of 2",
        ),
        ({"network": "unet", "sizes": "paper", "future": 4}, "observations - 1 .* is a multiple of 4"),
        ({"network": "unet", "past_tokens": "absent"}, "3 action tokens; .*: future is a multiple of 2"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((DatasetError, UnknownNameError, ValueError), match=message):
        tiny(**arguments)


def test_options_of_perceptrons_are_no_options_of_diffusion() -> None:
    with pytest.raises(TypeError, match="hidden"):
        tiny(hidden=[8])
