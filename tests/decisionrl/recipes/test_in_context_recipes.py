"""The recipes on learning histories: learn, resume bit for bit, agree in their limits, and refuse nonsense by name."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decisionrl.callbacks import Checkpoint
from decisionrl.checkpoint import save_weights
from decisionrl.envs.gridworld import GridFamily, dark_key_to_door, darkroom, hidden_reach
from decisionrl.evaluation.in_context import InContextEvaluator
from decisionrl.experience.data import HISTORIES, open_histories_of
from decisionrl.experience.histories import HistoryLayout, LearningHistories, Transitions, write_histories
from decisionrl.experience.history_windows import HistoryWindows, InContextBatch
from decisionrl.experience.store import DatasetError
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.names import UnknownNameError
from decisionrl.objectives.in_context import action_nll
from decisionrl.pipeline.history_filter import HistoryFilter
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy
from decisionrl.recipes import ON_HISTORIES, metadata, recipe
from decisionrl.recipes.in_context import SMALL
from decisionrl.recipes.offline import cosine
from decisionrl.recipes.saved import load_run
from decisionrl.recipes.signatures import parameters
from decisionrl.run import FINAL
from decisionrl.seeding import generator
from decisionrl.trainer import Trainer

H, EPISODES = 4, 8
FAMILY = darkroom(size=3, horizon=H)

ROOM: dict[str, Any] = {"env_options": {"size": 3, "horizon": H}, "streams": 6, "steps": EPISODES * H}
LABS: dict[str, dict[str, Any]] = {
    "lab/tiny-room": ROOM,
    "lab/tiny-mixed": {**ROOM, "rates": [0.001, 0.3], "noise": 0.3, "split_seed": 5},
    "lab/tiny-doors": {**ROOM, "env": "dark_key_to_door", "env_options": {"size": 2, "horizon": H}, "streams": 2},
    "lab/tiny-permuted": {**ROOM, "env": "darkroom_permuted", "streams": 2},
}

TINY: dict[str, Any] = {
    "data": "lab/tiny-room",
    "context_episodes": 2,
    "every": 2,
    "batch": 4,
    "steps": 50,
    "warmup": 2,
    "learning_rate": 0.01,
    "evaluation_episodes": 3,
    "seed": 1,
}

LHF: dict[str, Any] = {"filter": "lhf", "data": "lab/tiny-mixed"}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ad", {}),
    ("ad", {"positions": "last"}),
    ("ad", LHF),
    ("ad", {**LHF, "filter_mode": "weight"}),
    ("ad", {**LHF, "filter_mode": "multinomial", "alpha": 0.25, "max_return": "data", "stability_weight": 0.5}),
    ("ad", {**LHF, "filter_mode": "shuffled", "share": 0.5, "every": 1}),
    ("ad", {"sizes": "paper", "embedding": "linear", "context_episodes": 1}),
    ("ad", {"data": "lab/tiny-permuted", "sizes": "light", "embedding": "cell"}),
    ("dpt", {}),
    ("dpt", {"data": "lab/tiny-doors", "positions": "last", "filter": "lhf"}),
    ("dicp", {}),
    ("dicp", {**LHF, "target": "label", "model_weight": 0.5, "beams": 2, "depth": 1, "filter_mode": "weight"}),
    ("dicp", {"data": "lab/tiny-doors"}),
    ("dicp", {**LHF, "filter_mode": "weight", "filter_model": False}),
]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in arguments.items())]) for name, arguments in CASES]
every = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)


@pytest.fixture(autouse=True)
def _labs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arguments in LABS.items():
        monkeypatch.setitem(HISTORIES, name, arguments)  # type: ignore[misc]


def tiny(name: str = "ad", **arguments: Any) -> Experiment:
    return recipe(name)(**{**TINY, **arguments})


def windows_of(experiment: Experiment) -> HistoryWindows:
    draw = experiment.source.draw  # type: ignore[attr-defined]
    assert isinstance(draw, HistoryWindows)
    return draw


def evaluator_of(experiment: Experiment) -> InContextEvaluator:
    assert isinstance(experiment.evaluate, InContextEvaluator)
    return experiment.evaluate


def updates(experiment: Experiment, count: int) -> list[dict[str, Tensor]]:
    return [experiment.learner.update(experiment.source.sample()).metrics for _ in range(count)]


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def gradients(experiment: Experiment, batch: InContextBatch) -> Tensor:
    """Of the experiment's loss on a batch."""
    learner = experiment.learner
    assert isinstance(learner, GradientLearner)
    loss = learner._objective(learner.policy, batch).value
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(learner.policy.parameters()))])


def assert_equal(first: Any, second: Any) -> None:
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


# ------------------------------------------------------------------------------------------- hand-made histories


def played(family: Any, tasks: Tensor, action: Any, *, histories: int, episodes: int) -> Transitions:
    """What comes of ``action(state, task, episode)``."""
    task, columns = tasks[:, None].expand(-1, histories), []
    for episode in range(episodes):
        state = family.start(torch.zeros(*task.shape, family.start_draws))
        for _ in range(family.horizon):
            done = action(state, task, episode)
            following, reward = family.step(state, done, task)
            columns.append((family.observation(state), done, reward, family.observation(following)))
            state = following
    return Transitions(*(torch.stack(each, 2) for each in zip(*columns, strict=True)))


def directory(path: Path, family: Any = FAMILY, action: Any = None, **changes: Any) -> str:
    """Histories in which actions are random, or of somebody else; changes: of the layout."""
    discrete = isinstance(family, GridFamily)
    train, _ = family.split()
    wanted: dict[str, Any] = {
        "task": train.tolist(),
        "max_return": family.max_return[train].tolist(),
        "histories": 3,
        "episodes": EPISODES,
        "horizon": family.horizon,
        "observation_shape": family.observation_space.shape,
        "action_shape": family.action_space.shape,
        "observation_dtype": "uint8" if discrete else "float32",
        "action_dtype": "uint8" if discrete else "float32",
        "info": {"env": "darkroom", "env_options": {"size": 3, "horizon": H}},
    }
    layout = HistoryLayout(**{**wanted, **changes})
    random = torch.Generator().manual_seed(0)

    def acted(state: Tensor, task: Tensor, episode: int) -> Tensor:
        if action is not None:
            return action(state, task, episode)  # type: ignore[no-any-return]
        if discrete:
            return torch.randint(5, task.shape, generator=random)
        return 0.1 * torch.rand(*task.shape, 3, generator=random) - 0.05

    def source(tasks: Tensor) -> list[Transitions]:
        return [played(family, tasks, acted, histories=layout.histories, episodes=layout.episodes)]

    write_histories(path, layout, source)
    return str(path)


# ------------------------------------------------------------------------------------------------- every mode


@every
def test_learns(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    before = weights(experiment.policy)
    model = {"reward_nll", "next_observation_nll"} if name == "dicp" else set()
    for metrics in updates(experiment, 3):
        assert {"loss", "action_nll"} | model <= metrics.keys()
        assert all(value.isfinite().all() for value in metrics.values())
    assert not torch.equal(weights(experiment.policy), before)
    result = evaluator_of(experiment)(experiment.policy)  # type: ignore[arg-type]
    assert result["episodes"] == 3
    assert 0 <= result["mean_return"] <= result["reference"]


@every
def test_the_config_says_it_all(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    config = json.loads(json.dumps(experiment.config))
    assert config.pop("recipe") == name
    assert config.keys() == parameters(recipe(name)).keys() - {"device"}
    assert all(config[key] == value for key, value in {**TINY, **arguments}.items())
    again = recipe(name)(**config)
    assert again.config == experiment.config
    for _ in range(2):
        batch = experiment.source.sample()
        assert_equal(again.source.sample(), batch)
        found = []
        for each in (again, experiment):
            torch.manual_seed(0)  # of dropout
            found.append(each.learner.update(batch).metrics)
        assert_equal(*found)
    assert torch.equal(weights(again.policy), weights(experiment.policy))


@every
def test_a_resumed_run_is_bit_identical_and_so_is_its_evaluation(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    whole = Trainer(tiny(name, **arguments), seed=0)
    whole.fit(4)
    for steps in (2, 4):
        experiment, out = tiny(name, **arguments), tmp_path / "cut"
        trainer = Trainer(experiment, callbacks=[Checkpoint(every=1)], out=out, seed=0, resume=steps == 4)
        assert trainer.step == (0 if steps == 2 else 2)
        trainer.fit(steps)
    assert_equal(trainer.policy.state_dict(), whole.policy.state_dict())
    assert_equal(trainer.metrics, whole.metrics)
    result = evaluator_of(experiment)(trainer.policy)  # type: ignore[arg-type]
    for final in (False, True):
        if final:
            save_weights(trainer.policy, out / FINAL)
        loaded = load_run(out)
        assert evaluator_of(loaded)(loaded.policy) == result  # type: ignore[arg-type]


def test_the_loss_falls() -> None:
    for name in ON_HISTORIES:
        found = updates(tiny(name, batch=32, warmup=0, context_episodes=4, every=1), 40)
        first, last = (sum(each["loss"].item() for each in part) / 5 for part in (found[:5], found[-5:]))
        assert last < 0.9 * first, name


def test_metadata() -> None:
    for name in ON_HISTORIES:
        about = metadata(name)
        assert about.keys() == {"title", "arxiv", "changes", "limit", "kinds"}
        assert all(about.values())
        assert tiny(name).metadata == about


# ------------------------------------------------------------------------------------------- what the options do


@pytest.mark.parametrize(
    ("sizes", "wanted"), [("paper", (4, 4, 32, 128)), ("light", (2, 2, 16, 64)), ("cpu", (2, 4, 32, 128))]
)
def test_sizes_are_those_of_the_papers(sizes: str, wanted: tuple[int, ...]) -> None:
    for name in ON_HISTORIES:
        policy = tiny(name, sizes=sizes).policy
        base = policy.base if isinstance(policy, PlanningPolicy) else policy
        assert isinstance(base, InContextPolicy)
        found = base.network.sizes
        assert (found.layers, found.heads, found.width, found.feedforward) == wanted
        assert base.context == 2 * H


def test_the_optimizer_is_that_of_the_paper() -> None:
    learner = tiny(steps=12, warmup=2, weight_decay=0.25).learner
    assert isinstance(learner, GradientLearner)
    (group,) = learner.optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["initial_lr"]) == ((0.9, 0.99), 0.25, 0.01)
    batch, rates = tiny().source.sample(), []
    for _ in range(13):
        rates.append(group["lr"])
        learner.update(batch)
    assert rates == pytest.approx([0.01 * cosine(12, warmup=2)(done) for done in range(13)])


def test_windows_are_as_asked_for() -> None:
    windows = windows_of(tiny(context_episodes=3, every=2, batch=7))
    assert (windows.size, windows.episodes, windows.every, windows.steps) == (7, 3, 2, 3 * H)
    assert windows.histories is not None
    assert windows.teacher is None
    assert windows_of(tiny("dpt")).teacher is not None
    assert windows_of(tiny("dicp")).teacher is None
    assert windows_of(tiny("dicp", target="label")).teacher is not None


def test_it_is_measured_in_the_test_tasks_of_the_datas_split() -> None:
    for data, seed in (("lab/tiny-room", None), ("lab/tiny-mixed", 5)):
        measure = evaluator_of(tiny(data=data))
        train, test = FAMILY.split(seed)
        assert torch.equal(measure.tasks, test)
        assert torch.equal(open_histories_of(data).task, train)
        assert (measure.family.name, measure.family.horizon, measure.family.num_tasks) == ("darkroom", H, 9)
        assert measure.episodes == 3


@pytest.mark.parametrize("mode", ["resample", "shuffled", "multinomial"])
@pytest.mark.parametrize("alpha", [None, 0.125])
def test_the_filter_chooses_what_is_trained_on(mode: str, alpha: float | None) -> None:
    made = open_histories_of("lab/tiny-mixed")
    experiment = tiny(**LHF, filter_mode=mode, alpha=alpha, stability_weight=0.5)
    lhf = HistoryFilter(stability_weight=0.5, alpha=alpha, mode=mode)  # type: ignore[arg-type]
    wanted = lhf(made.episode_returns(), made.max_return, generator(1, "filter"))
    windows = windows_of(experiment)
    assert windows.weight is None
    assert torch.equal(windows.histories.index, wanted.index)
    dead = (wanted.probability == 0).nonzero().tolist()
    assert len(dead) >= made.num_tasks
    assert all(history not in windows.histories.index[task] for task, history in dead)
    before = made.episode_returns().mean()
    assert windows.histories.episode_returns().mean() > before
    other = windows_of(tiny(**LHF, filter_mode=mode, alpha=alpha, stability_weight=0.5, seed=2))
    assert not torch.equal(other.histories.index, wanted.index)


def test_weights_are_on_the_loss_and_nothing_is_drawn_anew() -> None:
    made = open_histories_of("lab/tiny-mixed")
    experiment = tiny(**LHF, filter_mode="weight", batch=200)
    windows = windows_of(experiment)
    assert torch.equal(windows.histories.index, made.index)
    assert windows.weight is not None
    torch.testing.assert_close(windows.weight.mean(1), torch.ones(made.num_tasks))
    assert (windows.weight.amin(1) == 0).all()
    batch = experiment.source.sample()
    assert batch.weight is not None
    assert set(batch.weight.tolist()) <= set(windows.weight.flatten().tolist())
    plain = dataclasses.replace(batch, weight=None)
    assert not torch.allclose(gradients(experiment, batch), gradients(experiment, plain))
    heavy = batch.weight > 0
    kept = InContextBatch(**{key: None if each is None else each[heavy] for key, each in vars(batch).items()})
    torch.testing.assert_close(gradients(experiment, batch), gradients(experiment, kept))


def test_without_a_filter_its_options_do_nothing() -> None:
    plain = tiny(data="lab/tiny-mixed")
    others: list[dict[str, Any]] = [{"stability_weight": 1000.0}, {"alpha": 0.1}, {"filter_mode": "weight"}]
    batch = plain.source.sample()
    for options in (*others, {"max_return": "data"}):
        assert_equal(tiny(data="lab/tiny-mixed", **options).source.sample(), batch)
    assert batch.weight is None
    assert torch.equal(windows_of(plain).histories.index, open_histories_of("lab/tiny-mixed").index)
    filtered = tiny(**LHF).source.sample()
    assert not torch.equal(filtered.observation, batch.observation)


def slow(state: Tensor, task: Tensor, episode: int) -> Tensor:
    """Learns late, and the higher its number the later; the best return is half of the possible one."""
    optimal = FAMILY.optimal_action(state, task)
    learned = episode >= 2 * torch.arange(task.shape[1]).expand(task.shape)
    return torch.where(learned, optimal, 4)


def test_the_largest_return_may_be_that_of_the_data(tmp_path: Path) -> None:
    data = directory(tmp_path / "slow", action=slow, max_return=[40.0] * 8)
    made = open_histories_of(data)
    for largest, r_max in (("task", made.max_return), ("data", made.episode_returns().amax((1, 2)))):
        windows = windows_of(tiny(data=data, filter="lhf", alpha=0.5, filter_mode="weight", max_return=largest))
        lhf = HistoryFilter(alpha=0.5, mode="weight")
        wanted = lhf(made.episode_returns(), r_max, generator(1, "filter")).weight
        assert windows.weight is not None
        torch.testing.assert_close(windows.weight, wanted)
    task, given = (
        windows_of(tiny(data=data, filter="lhf", alpha=0.5, filter_mode="weight", max_return=each)).weight
        for each in ("task", "data")
    )
    assert task is not None
    assert given is not None
    assert not torch.allclose(task, given)


def test_of_half_histories_the_second_half_is_never_drawn(tmp_path: Path) -> None:
    def marked(state: Tensor, task: Tensor, episode: int) -> Tensor:
        return torch.full_like(task, 1 if episode < EPISODES // 2 else 3)

    data = directory(tmp_path / "marked", action=marked)
    for name in ON_HISTORIES:
        experiment = tiny(name, data=data, share=0.5, every=1, batch=64)
        assert all((experiment.source.sample().action == 1).all() for _ in range(5))
    assert (tiny(data=data, batch=64).source.sample().action == 3).any()

    def forgetful(state: Tensor, task: Tensor, episode: int) -> Tensor:
        return slow(state, task, episode) if episode < EPISODES // 2 else torch.full_like(task, 4)

    first, second = directory(tmp_path / "first", action=forgetful), directory(tmp_path / "second", action=slow)
    halves = [tiny(data=each, filter="lhf", share=0.5, every=1) for each in (first, second)]
    assert torch.equal(*(windows_of(each).histories.index for each in halves)), "nor does the filter see it"
    assert_equal(halves[0].source.sample(), halves[1].source.sample())
    wholes = [windows_of(tiny(data=each, filter="lhf", filter_mode="weight")).weight for each in (first, second)]
    assert not torch.allclose(*wholes)  # type: ignore[arg-type]


def test_decision_pretrained_from_an_optimal_source_is_distilled(tmp_path: Path) -> None:
    families: dict[str, tuple[GridFamily, dict[str, Any]]] = {
        "darkroom": (FAMILY, {"size": 3, "horizon": H}),
        "dark_key_to_door": (dark_key_to_door(size=2, horizon=H), {"size": 2, "horizon": H}),
    }
    for env, (family, options) in families.items():
        about = {"info": {"env": env, "env_options": options}}
        optimal = directory(
            tmp_path / env, family, lambda state, task, _, family=family: family.optimal_action(state, task), **about
        )
        ad, dpt = tiny("ad", data=optimal), tiny("dpt", data=optimal)
        assert torch.equal(weights(ad.policy), weights(dpt.policy))
        for _ in range(3):
            plain, labeled = ad.source.sample(), dpt.source.sample()
            assert torch.equal(labeled.label, plain.action)
            torch.manual_seed(0)
            first = gradients(ad, plain)
            torch.manual_seed(0)
            assert torch.equal(gradients(dpt, labeled), first)
            torch.manual_seed(0)
            metrics = ad.learner.update(plain).metrics
            torch.manual_seed(0)
            assert_equal(dpt.learner.update(labeled).metrics, metrics)
        assert torch.equal(weights(ad.policy), weights(dpt.policy))
    ad, dpt = tiny("ad", data="lab/tiny-room"), tiny("dpt", data="lab/tiny-room")
    assert not torch.equal(gradients(ad, ad.source.sample()), gradients(dpt, dpt.source.sample()))


def test_planning_without_its_model_is_distilled() -> None:
    ad, dicp = tiny("ad"), tiny("dicp", model_weight=0.0)
    assert isinstance(dicp.policy, PlanningPolicy)
    assert torch.equal(weights(dicp.policy.base), weights(ad.policy))
    batch = ad.source.sample()
    assert_equal(dicp.source.sample(), batch)
    torch.testing.assert_close(dicp.learner.update(batch).metrics["loss"], action_nll(ad.policy, batch).value.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "depth"),
    [
        (darkroom(), 8),
        (darkroom(size=10, horizon=100), 10),
        (darkroom(size=10, horizon=100, start="corner"), 18),
        (darkroom(start="random"), 16),
        (darkroom(reward_once=True), 16),
        (dark_key_to_door(), 16),
    ],
    ids=["center", "even", "corner", "random", "once", "key_to_door"],
)
def test_plans_are_as_deep_as_the_way_is_long(family: GridFamily, depth: int, tmp_path: Path) -> None:
    def stay(state: Tensor, task: Tensor, episode: int) -> Tensor:
        return torch.full_like(task, 4)

    data = directory(tmp_path / "few", family, stay, task=[0, 1], max_return=[1.0, 1.0], episodes=4, histories=1)
    dicp = recipe("dicp")(data=data, family=family, batch=1, steps=1)
    assert isinstance(dicp.policy, PlanningPolicy)
    assert (dicp.policy.depth, dicp.policy.horizon, dicp.policy.beams) == (depth, family.horizon, 10)
    assert dicp.config["depth"] == depth
    if family.start_at == "center" and not family.once:
        cell = family.start(torch.zeros(2))[:2]
        assert depth == (family.goals[:, 0] - cell).abs().sum(1).max()


# ----------------------------------------------------------------------------------------------------- presets


def test_the_preset_is_of_the_makers_data_and_what_is_given_wins(tmp_path: Path) -> None:
    chosen = {"every": 1, "steps": 7}
    for name in ON_HISTORIES:
        assert SMALL.keys() <= parameters(recipe(name)).keys()
        config = recipe(name)(data="lab/tiny-room", **chosen).config
        assert {key: config[key] for key in SMALL} == {**SMALL, **chosen}
        elsewhere = recipe(name)(data=directory(tmp_path / name)).config
        wanted = {
            "sizes": "paper",
            "steps": 50_000,
            "batch": 512,
            "learning_rate": 1e-2,
            "warmup": 0,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "every": 1,
            "context_episodes": 4,
            "evaluation_episodes": 100,
            "filter": "none",
            "stability_weight": 1.0,
            "alpha": None,
            "positions": "all",
        }
        assert {key: elsewhere[key] for key in wanted} == wanted
    default = inspect.signature(recipe("dicp")).parameters
    assert (default["beams"].default, default["model_weight"].default, default["depth"].default) == (10, 1.0, None)


# ------------------------------------------------------------------------------------------- what it works on


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mine(GridFamily):
    """A family of somebody else, whose experts never move."""

    def optimal_action(self, state: Tensor, task: Tensor) -> Tensor:
        return torch.full(torch.broadcast_shapes(state.shape[:-1], task.shape), 4)


def mine() -> Mine:
    given = {each.name: getattr(FAMILY, each.name) for each in dataclasses.fields(FAMILY)}
    return Mine(**{**given, "name": "mine"})


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    data = directory(tmp_path / "mine", info={})
    for name in ON_HISTORIES:
        experiment = tiny(name, data=data, family=mine())
        assert experiment.config["family"] == "mine"
        assert evaluator_of(experiment).family.name == "mine"
        assert torch.equal(evaluator_of(experiment).tasks, FAMILY.split()[1])
        updates(experiment, 1)
    assert (tiny("dpt", data=data, family=mine()).source.sample().label == 4).all()

    trainer = Trainer(experiment, out=tmp_path / "run", seed=0)
    trainer.fit(2)
    save_weights(trainer.policy, tmp_path / "run" / FINAL)
    result = evaluator_of(experiment)(trainer.policy)  # type: ignore[arg-type]
    loaded = load_run(tmp_path / "run", family=mine())
    assert evaluator_of(loaded)(loaded.policy) == result  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"family = 'mine'; valid: darkroom, .*hidden_reach"):
        load_run(tmp_path / "run")


def test_a_family_by_name_takes_the_place_of_the_datas(tmp_path: Path) -> None:
    data = directory(tmp_path / "nine", darkroom(), info={}, episodes=2, histories=1)
    experiment = tiny(data=data, family="darkroom", every=1)
    assert experiment.config["family"] == "darkroom"
    assert recipe("ad")(**{k: v for k, v in experiment.config.items() if k != "recipe"}).config == experiment.config


def test_points_that_are_reached_are_learned_from_but_not_planned_for(tmp_path: Path) -> None:
    family = hidden_reach(tasks=10, horizon=3)
    about = {"info": {"env": "hidden_reach", "env_options": {"tasks": 10, "horizon": 3}}}
    data = directory(tmp_path / "reach", family, **about)
    for name in ("ad", "dpt"):
        experiment = tiny(name, data=data, embedding="linear")
        assert all(metrics["loss"].isfinite() for metrics in updates(experiment, 3))
        assert evaluator_of(experiment)(experiment.policy)["reference"] > 0  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="valid for embedding = 'axis': a Box of integers with bounds"):
            tiny(name, data=data)
    with pytest.raises(DatasetError, match="reach is of hidden_reach; valid for planning: tasks on a grid"):
        tiny("dicp", data=data, embedding="linear")


def test_one_history_of_each_task_is_kept_whatever_the_filter(tmp_path: Path) -> None:
    data = directory(tmp_path / "one", histories=1)
    plain = tiny(data=data).source.sample()
    for mode in ("resample", "shuffled", "multinomial", "weight"):
        experiment = tiny(data=data, filter="lhf", filter_mode=mode, alpha=0.5)
        windows = windows_of(experiment)
        assert (windows.histories.index == 0).all()
        assert windows.weight is None or (windows.weight == 1).all()
        assert torch.equal(experiment.source.sample().observation, plain.observation)


def test_a_batch_of_histories_without_weight_teaches_nothing(tmp_path: Path) -> None:
    data = directory(tmp_path / "two", action=slow, histories=2, task=[0], max_return=[3.0])
    experiment = tiny(data=data, filter="lhf", filter_mode="weight", batch=1, warmup=0, weight_decay=0.0)
    weight = windows_of(experiment).weight
    assert weight is not None
    assert sorted(weight[0].tolist()) == [0, 2]
    moved = set()
    for _ in range(12):
        batch = experiment.source.sample()
        found = gradients(experiment, batch)
        assert found.isfinite().all()
        assert found.any() == (batch.weight > 0).item()
        moved.add(found.any().item())
        assert experiment.learner.update(batch).metrics["loss"].isfinite()
    assert moved == {True, False}


def test_returns_beyond_the_largest_are_warned_of(tmp_path: Path) -> None:
    data = directory(tmp_path / "rich", action=slow, max_return=[1.0] * 8)
    made = open_histories_of(data)
    beyond = int((made.episode_returns() > 1).sum())
    assert beyond > 0
    with pytest.warns(UserWarning, match=rf"{beyond} of {8 * 3 * EPISODES} returns are outside \[0, R_max\]"):
        experiment = tiny(data=data, filter="lhf")
    updates(experiment, 1)
    tiny(data=data, filter="lhf", max_return="data")


def test_the_largest_return_must_be_above_nothing(tmp_path: Path) -> None:
    data = directory(tmp_path / "poor", max_return=[2.0] * 7 + [0.0])
    with pytest.raises(ValueError, match=r"r_max\[7\] = 0.0; valid: finite and above 0"):
        tiny(data=data, filter="lhf")
    tiny(data=data)
    still = directory(tmp_path / "still", action=lambda state, task, _: torch.full_like(task, 4), task=[0, 1, 2],
                      max_return=[1.0] * 3)  # fmt: skip
    with pytest.raises(ValueError, match=r"r_max\[0\] = 0.0 \(and 2 more\); valid: finite and above 0"):
        tiny(data=still, filter="lhf", max_return="data")
    experiment = tiny(data=still, filter="lhf")
    assert (windows_of(experiment).histories.index == torch.arange(3)).all(), "equal scores change nothing"


def test_histories_of_unequal_length_are_refused_where_they_are_read(tmp_path: Path) -> None:
    data = directory(tmp_path / "cut", tasks_per_shard=4)
    file = tmp_path / "cut" / "shard-00001" / "reward.npy"
    np.save(file, np.load(file)[:, :, : -2 * H])
    message = r"shard-00001/reward.npy is float32 of shape \[4, 3, 24\]; valid: float32 of shape \[4, 3, 32\]"
    with pytest.raises(DatasetError, match=message):
        tiny(data=data)
    file.unlink()
    with pytest.raises(DatasetError, match=r"reward.npy is missing"):
        tiny(data=data)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no env": ({"info": {}}, r"env of .* is None; valid: darkroom, .*, or family = one of yours"),
    "an env of somebody": ({"info": {"env": "maze"}}, r"env of .* is 'maze'; valid: darkroom, .*, or family = "),
    "ids of another family": (
        {"task": [3, 9], "max_return": [1.0, 1.0], "action": lambda state, task, _: torch.full_like(task, 4),
         "family": darkroom(size=4, horizon=H)},
        r"has tasks up to 9 and a horizon of 4; valid for darkroom: tasks below 9, a horizon of 4",
    ),
    "another horizon": (
        {"info": {"env": "darkroom", "env_options": {"size": 3, "horizon": 8}}},
        r"has tasks up to 8 and a horizon of 4; valid for darkroom: tasks below 9, a horizon of 8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_histories_of_tasks_that_are_not_known(wrong: str, tmp_path: Path) -> None:
    changes, message = REFUSED[wrong]
    data = directory(tmp_path / "data", **changes)
    for name in ON_HISTORIES:
        with pytest.raises(DatasetError, match=message):
            tiny(name, data=data)


NONSENSE: list[tuple[str, dict[str, Any], str]] = [
    ("ad", {"every": 8}, r"episodes = 2, every = 8: a window spans 9 episodes; valid: at most 8"),
    ("ad", {"context_episodes": 9, "every": 1}, r"a window spans 9 episodes; valid: at most 8"),
    ("ad", {"share": 0.25, "every": 3}, r"a window spans 4 episodes; valid: at most 2, those of a history"),
    ("ad", {"context_episodes": 0}, r"context = 0; valid: at least 1"),
    ("ad", {"every": 0}, r"every = 0; valid: a whole number >= 1"),
    ("ad", {"share": 0.0}, r"share = 0.0 of 8 episodes; valid: in \(0, 1\], at least one episode"),
    ("ad", {"share": 1.5}, r"share = 1.5 of 8 episodes"),
    ("ad", {"filter": "LHF"}, r"filter = 'LHF'; valid: none, lhf"),
    ("ad", {"max_return": "most"}, r"max_return = 'most'; valid: task, data"),
    ("ad", {"filter": "lhf", "filter_mode": "best"}, r"mode = 'best'; valid: resample, shuffled"),
    ("ad", {"filter": "lhf", "alpha": 0.0}, r"alpha = 0.0; valid: finite and above 0"),
    ("ad", {"filter": "lhf", "stability_weight": -1.0}, r"stability_weight = -1.0; valid: finite, 0 or more"),
    ("ad", {"sizes": "big"}, r"sizes = 'big'; valid: paper, light, cpu"),
    ("ad", {"embedding": "hash"}, r"embedding = 'hash'; valid: axis, linear, cell"),
    ("ad", {"steps": 0}, r"steps = 0; valid: a whole number >= 1"),
    ("ad", {"batch": 0}, r"batch = 0; valid: a whole number >= 1"),
    ("ad", {"warmup": -1}, r"warmup = -1; valid: a whole number >= 0"),
    ("ad", {"learning_rate": 0.0}, r"learning_rate = 0.0; valid: "),
    ("ad", {"evaluation_episodes": 0}, r"evaluation_episodes = 0; valid: a whole number >= 1"),
    ("ad", {"family": "maze"}, r"family = 'maze'; valid: darkroom, "),
    ("ad", {"family": "hidden_reach"}, r"a horizon of 4; valid for hidden_reach: tasks below 100, a horizon of 50"),
    ("ad", {"positions": "first"}, r"positions = 'first'; valid: all, last"),
    ("dpt", {"positions": "first"}, r"positions = 'first'; valid: all, last"),
    ("dicp", {"positions": "first"}, r"positions = 'first'; valid: all, last"),
    ("dicp", {"target": "best"}, r"target = 'best'; valid: action, label"),
    ("dicp", {"model_weight": -1.0}, r"model_weight = -1.0; valid: finite, at least 0"),
    ("dicp", {"model_weight": float("inf")}, r"model_weight = inf; valid: finite, at least 0"),
    ("dicp", {"beams": 0}, r"beams = 0; valid: at least 1"),
    ("dicp", {"depth": 0}, r"depth = 0; valid: at least 1"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), NONSENSE, ids=[f"{n} {a}" for n, a, _ in NONSENSE])
def test_nonsense_is_refused_when_the_recipe_is_called(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(name, **arguments)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lab/darkroom'"):
        tiny(data="lab/darkroon")
    with pytest.raises(DatasetError, match=r"nowhere has no manifest.json"):
        tiny(data=str(tmp_path / "nowhere"))
    (tmp_path / "begun").mkdir()
    with pytest.raises(DatasetError, match=r"begun has no manifest.json"):
        tiny(data=str(tmp_path / "begun"))


def test_histories_are_opened_once_and_shared() -> None:
    made = open_histories_of("lab/tiny-room")
    histories: LearningHistories = windows_of(tiny()).histories
    assert histories.blocks is made.blocks
