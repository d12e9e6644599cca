"""The control suite: what its cases are and measure, the exact answers, the peer, and the page made from results."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from decisionrl.benchmarks import results_page
from decisionrl.benchmarks.control import (
    EVALUATION_SEED,
    OTHERS,
    UNBIASED,
    BanditCase,
    ControlCase,
    cases,
    gradient_cosine,
    probabilities,
)
from decisionrl.benchmarks.control_peer import PEER, peer, peer_policy
from decisionrl.benchmarks.control_training import Record, train
from decisionrl.benchmarks.inventory_control import InventoryCase, OrdersOfActions
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.benchmarks.tabular import TabularModel
from decisionrl.envs.bandit import PromptBandit
from decisionrl.envs.inventory.env import order_limits
from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.envs.make import make_world
from decisionrl.evaluation.results import Row, write_results
from decisionrl.evaluation.statistics import Estimate
from decisionrl.recipes import recipe
from decisionrl.recipes.ppo import ppo
from decisionrl.recipes.presets import CARTPOLE

TINY_PPO = {"num_envs": 2, "horizon": 16, "minibatch": 16, "epochs": 2}
TINY_SAMPLE = {"scenarios": 16, "measured_periods": 20, "warmup": 10}


def run(case: ControlCase | BanditCase | InventoryCase, directory: Path) -> CaseResult:
    return case(CaseContext("quick", 0, "cpu", None, directory, lambda fraction, message: None))


def value(row: Measurement) -> float:
    return row.estimate.value if isinstance(row.estimate, Estimate) else float(row.estimate)


# -------------------------------------------------------------------------------------------------- the cases


def test_quick_has_the_peer_beside_ppo_and_no_case_twice() -> None:
    titles = [case.title for case in cases("quick", None)]
    assert len(titles) == len(set(titles))
    for needed in ("cartpole/ppo", f"cartpole/{PEER}", "cartpole/grpo", "bandit/rloo", "frozen_lake/reinforce"):
        assert needed in titles


def test_full_has_every_recipe_on_cartpole_and_every_setting_beside_hdpo() -> None:
    titles = {case.title for case in cases("full", None)}
    assert {f"cartpole/{name}" for name in ("ppo", PEER, *OTHERS)} <= titles
    assert {
        "hopper/ppo",
        f"half_cheetah/{PEER}",
        "inventory_one_store_lost/hdpo",
        "inventory_serial_system/grpo",
    } <= titles


def test_presets_are_left_as_they_are_and_others_get_the_environments_arguments() -> None:
    arguments = {case.title: case.run.arguments for case in cases("full", None)}  # type: ignore[attr-defined]
    assert arguments["cartpole/ppo"] == arguments[f"cartpole/{PEER}"] == CARTPOLE["ppo"]
    assert arguments["cartpole/grpo"] == CARTPOLE["grpo"]
    assert arguments["acrobot/grpo"]["learning_rate"] == 3e-3


# ------------------------------------------------------------------------------------------ training, measuring


@pytest.mark.parametrize("name", ["ppo", PEER])
def test_ppo_and_the_peer_measure_the_same_things(name: str, tmp_path: Path) -> None:
    case = ControlCase(recipe=name, env="CartPole-v1", steps=300, arguments=TINY_PPO, threshold=10.0, episodes=3)
    result = run(case, tmp_path)
    rows = {row.metric: row for row in result.rows}
    assert list(rows) == [
        "mean_return",
        "return_of_training",
        "threshold_reached",
        "steps_to_threshold",
        "wall_seconds",
        "cpu_seconds",
        "steps_per_second",
    ]
    main = rows["mean_return"].estimate
    assert isinstance(main, Estimate)
    assert main.n == 3
    assert EVALUATION_SEED not in range(100), "training seeds must not be the evaluation's"
    assert main.low is not None
    assert main.low <= main.value <= 500
    assert value(rows["threshold_reached"]) == 1.0
    assert 0 < value(rows["steps_to_threshold"]) <= 320  # ten windows of 32 steps reach 300
    assert value(rows["steps_per_second"]) * value(rows["wall_seconds"]) == pytest.approx(320)
    curve, over_time = result.series.curve, result.series.curves["wall_time"]
    assert curve is not None
    assert curve.x[-1] == 320
    assert curve.target == 10.0
    assert curve.y == over_time.y
    assert curve.y[-1] == value(rows["return_of_training"])
    assert list(over_time.x) == sorted(over_time.x)
    assert over_time.x[-1] <= value(rows["wall_seconds"])


def test_a_threshold_that_is_not_reached_has_no_step(tmp_path: Path) -> None:
    case = ControlCase(recipe="reinforce", env="CartPole-v1", steps=50, threshold=501.0, episodes=2)
    rows = {row.metric: row for row in run(case, tmp_path).rows}
    assert value(rows["threshold_reached"]) == 0.0
    assert "steps_to_threshold" not in rows


def test_the_record_holds_the_return_of_training_after_every_update() -> None:
    experiment = ppo(env="CartPole-v1", steps=128, **TINY_PPO)
    record = train(experiment, 128, lambda fraction, message: None)
    assert [steps for steps, _, _ in record.at] == [32, 64, 96, 128][-len(record.at) :]
    assert record.last == pytest.approx(float(experiment.source.sample().metrics["episode_return"]), rel=0.5)
    assert 0 < record.clock.wall < 60


def test_curves_are_thinned_and_keep_the_end() -> None:
    record = Record()
    for step in range(1000):
        record.add(step, float(step))
    curve, over_time = record.curves("return")
    assert len(curve.x) == len(over_time.x) <= 250
    assert curve.x[-1] == 999
    assert record.steps_to(500.0) == 500
    assert record.steps_to(1000.0) is None


# ------------------------------------------------------------------------------------------------- the peer


def test_the_peer_has_the_recipes_hyperparameters() -> None:
    model = peer(ppo(env="CartPole-v1", hidden=[8, 8], seed=3).config)
    assert (model.n_envs, model.n_steps, model.batch_size, model.n_epochs) == (8, 32, 256, 20)
    assert (model.gamma, model.gae_lambda, model.ent_coef, model.vf_coef) == (0.98, 0.8, 0.0, 0.5)
    assert model.clip_range(1.0) == 0.2
    assert [model.lr_schedule(left) for left in (1.0, 0.25)] == pytest.approx([1e-3, 2.5e-4])
    group = model.policy.optimizer.param_groups[0]
    assert group["eps"] == 1e-5
    ours = ppo(env="CartPole-v1", hidden=[8, 8]).policy
    assert sum(p.numel() for p in model.policy.parameters()) == sum(p.numel() for p in ours.parameters())


def test_the_peers_policy_sees_what_its_environment_shows() -> None:
    config = ppo(env="Pendulum-v1", **TINY_PPO, normalize_observations=True, steps=64).config
    model = peer(config)
    model.learn(64)
    policy = peer_policy(model)
    observation = torch.tensor([[0.5, -0.5, 2.0], [1.0, 0.0, -7.0]])
    normalized = model.get_vec_normalize_env().normalize_obs(observation.numpy())
    expected, _ = model.predict(normalized, deterministic=True)
    action, _ = policy.act(observation)
    np.testing.assert_allclose(np.clip(action.detach().numpy(), -2, 2), expected, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"recurrent": True}, {"squash": True}, {"shared": True}])
def test_what_the_peer_cannot_do_is_refused(arguments: dict[str, bool]) -> None:
    config = {**ppo(env="Pendulum-v1", num_envs=1).config, **arguments}
    with pytest.raises(ValueError, match="valid beside Stable-Baselines3's PPO"):
        peer(config)


# -------------------------------------------------------------------------------------------- exact answers


def test_the_optimum_of_a_table_is_the_best_of_all_clocked_policies() -> None:
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(3), size=(2, 2))[..., :2]  # what is left over ends the episode
    model = TabularModel(transition, rng.normal(size=(2, 2)), np.array([0.3, 0.7]), horizon=3)

    def of(plan: tuple[tuple[int, ...], ...]) -> float:
        """Of a plan that names an action for each step and state, by following all paths."""
        total, mass = 0.0, model.start
        for actions in plan:
            total += sum(mass[s] * model.reward[s, actions[s]] for s in range(2))
            mass = sum(mass[s] * model.transition[s, actions[s]] for s in range(2))
        return total

    rules = list(itertools.product(range(2), repeat=2))
    assert model.optimal_return() == pytest.approx(max(of(plan) for plan in itertools.product(rules, repeat=3)))
    for rule in rules:
        assert model.expected_return(np.eye(2)[list(rule)]) == pytest.approx(of((rule,) * 3))


def test_frozen_lake_pays_what_its_table_says() -> None:
    model = TabularModel.of("FrozenLake-v1")
    assert model.horizon == 100
    assert model.optimal_return() == pytest.approx(0.744190, abs=1e-6)
    safe = [0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0]  # the well-known rule: best without a clock
    expected = model.expected_return(np.eye(4)[safe])
    assert expected == pytest.approx(0.740165, abs=1e-6)
    env = gymnasium.make("FrozenLake-v1")
    won = 0.0
    for episode in range(1500):
        state, _ = env.reset(seed=episode)
        over = False
        while not over:
            state, reward, terminated, truncated, _ = env.step(safe[int(state)])
            won += float(reward)
            over = terminated or truncated
    assert won / 1500 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 1500))


def test_frozen_lake_is_measured_exactly_against_the_optimum(tmp_path: Path) -> None:
    case = ControlCase(recipe="ppo", env="FrozenLake-v1", steps=200, arguments=TINY_PPO, exact=True)
    result = run(case, tmp_path)
    main = result.rows[0]
    assert (main.metric, main.reference_kind, main.better) == ("mean_return", "exact", "higher")
    assert main.reference == pytest.approx(0.744190, abs=1e-6)
    assert 0 <= value(main) <= 0.7442
    assert result.series.curve is not None
    assert result.series.curve.target == main.reference


def test_probabilities_of_a_policy_are_those_it_samples_with() -> None:
    experiment = recipe("reinforce")(env="decisionrl.envs.bandit:PromptBandit", initial_log_std=0.0, seed=1)
    policy = experiment.policy
    with torch.no_grad():
        table = probabilities(policy, 8, 6)
    torch.testing.assert_close(table.sum(1), torch.ones(8))
    with torch.no_grad():
        noise = policy.sample_noise((40_000,), torch.Generator().manual_seed(0))
        action, _ = policy.act(torch.full((40_000,), 3), noise=noise)
    share = torch.bincount(action, minlength=6) / 40_000
    torch.testing.assert_close(share, table[3], atol=4 * 0.5 / math.sqrt(40_000), rtol=0.0)


def test_the_bandit_is_measured_exactly(tmp_path: Path) -> None:
    result = run(BanditCase(recipe="rloo", steps=300, gradient_batches=2), tmp_path)
    rows = {row.metric: row for row in result.rows}
    optimum = PromptBandit().optimal_value
    assert next(iter(rows)) == "value"
    for metric in ("value", "greedy_value"):
        assert rows[metric].reference == optimum
        assert rows[metric].reference_kind == "exact"
        assert 0 < value(rows[metric]) <= optimum + 1e-6
    assert -1 <= value(rows["gradient_cosine"]) <= 1
    curve = result.series.curve
    assert curve is not None
    assert curve.reference == optimum
    assert curve.y[-1] == value(rows["value"])


@pytest.mark.parametrize("name", list(UNBIASED))
def test_mean_gradients_point_where_the_exact_gradient_does(name: str) -> None:
    experiment = recipe(name)(env="decisionrl.envs.bandit:PromptBandit", seed=0, **UNBIASED[name])
    before = [parameter.detach().clone() for parameter in experiment.policy.parameters()]
    assert gradient_cosine(experiment, PromptBandit(), batches=150) > 0.9
    assert all(torch.equal(old, new) for old, new in zip(before, experiment.policy.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ inventory


@pytest.mark.parametrize("name", ["one_store_lost", "serial_system"])
def test_orders_are_those_of_the_world_the_policy_was_trained_in(name: str) -> None:
    setting = load_setting(name)
    simulator = make_simulator(setting)
    world = make_world(f"inventory/{name}", num_envs=3)
    experiment = recipe("ppo")(setting=name, steps=1, num_envs=3, horizon=4, minibatch=4, initial_log_std=0.5)
    policy = experiment.policy
    with torch.no_grad():
        policy.decision.actor.weight.normal_(generator=torch.Generator().manual_seed(0))
    acting = OrdersOfActions(policy, setting, simulator)
    observation, high = world.reset([1, 2, 3]), torch.as_tensor(order_limits(setting), dtype=torch.float32)
    with torch.no_grad():
        for _ in range(6):
            wanted = acting(world.env.observation())
            action, _ = policy.act(observation)
            step = world.env.step((action.clamp(-1, 1) + 1) / 2 * high)
            torch.testing.assert_close(wanted, step[4]["orders"])
            observation = step[0]


def test_settings_that_show_more_than_stock_are_refused() -> None:
    setting = load_setting("one_store_real_data_lost_demand")
    with pytest.raises(ValueError, match=r"past_demand\[store,16\].*valid: stock alone"):
        OrdersOfActions(torch.nn.Identity(), setting, make_simulator(setting))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ppo", {"num_envs": 4, "horizon": 10, "minibatch": 20, "normalize_observations": True}),
        ("grpo", {"num_envs": 4, "groups": 2, "group_size": 2}),
        ("hdpo", {"batch": 4, "periods": 16}),
    ],
)
def test_inventory_is_measured_against_the_exact_optimum(name: str, arguments: dict[str, int], tmp_path: Path) -> None:
    case = InventoryCase(recipe=name, setting="one_store_lost", periods=200, arguments=arguments, **TINY_SAMPLE)
    result = run(case, tmp_path)
    main = result.rows[0]
    assert (main.metric, main.reference_kind) == ("cost", "exact")
    assert main.reference == pytest.approx(6.83594, abs=1e-5)
    assert value(main) > 5.0
    curve = result.series.curve
    assert curve is not None
    assert curve.reference == main.reference
    assert 190 <= curve.x[-1] <= 400  # hdpo: three updates of 64 periods
    assert result.series.path is not None


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_shows_control_over_seeds_beside_the_peer(tmp_path: Path) -> None:
    def row(method: str, metric: str, value: float, seed: int) -> Row:
        return Row.build(
            suite="control", case="cartpole", method=method, seed=seed, metric=metric, value=value, better="higher"
        )

    rows = []
    for seed, (ours, theirs) in enumerate([(500.0, 480.0), (490.0, 470.0), (480.0, 460.0)]):
        rows += [row("ppo", "mean_return", ours, seed), row("ppo", "cpu_seconds", 10.0, seed)]
        rows += [row(PEER, "mean_return", theirs, seed), row(PEER, "cpu_seconds", 20.0, seed)]
        rows += [row("ppo", "threshold_reached", float(seed > 0), seed)]
    rows += [row("ppo", "steps_to_threshold", steps, seed) for seed, steps in ((1, 50_000), (2, 70_000))]
    write_results(tmp_path / "control-full", rows)
    page = results_page.page(tmp_path)
    line = next(line for line in page.splitlines() if line.startswith("| cartpole | ppo |"))
    assert "490" in line
    assert "60,000 (2 of 3)" in line
    assert any(line.startswith(f"| cartpole | {PEER} |") and "470" in line for line in page.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("full", None), ids=lambda case: case.title)
def test_every_case_of_the_full_profile_runs(case: Case, tmp_path: Path) -> None:
    about = case.run
    if isinstance(about, InventoryCase):
        tiny = dataclasses.replace(about, periods=10_000, **TINY_SAMPLE)
    elif isinstance(about, BanditCase):
        tiny = dataclasses.replace(about, steps=300, gradient_batches=min(2, about.gradient_batches))
    else:
        assert isinstance(about, ControlCase)
        tiny = dataclasses.replace(about, steps=500, episodes=2)
    assert all(math.isfinite(value(row)) for row in run(tiny, tmp_path).rows)
