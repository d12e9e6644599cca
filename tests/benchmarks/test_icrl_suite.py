"""The suite of in-context learning: its cases, small runs from histories to a report, and what its rows say."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from decisionrl.benchmarks import icrl
from decisionrl.benchmarks.executors import Measurement
from decisionrl.benchmarks.icrl import (
    BACKBONES,
    ENVIRONMENTS,
    EVALUATION_SEED,
    PLANNING,
    SENSITIVITY,
    HistoryData,
    InContextCase,
    RuleCase,
    cases,
)
from decisionrl.benchmarks.suite import Case, CaseContext, run_suite
from decisionrl.cli import SUITES
from decisionrl.envs.gridworld import darkroom, made_family
from decisionrl.evaluation.in_context import InContextEvaluator
from decisionrl.evaluation.results import config_hash, read_results
from decisionrl.evaluation.series import read_series
from decisionrl.evaluation.statistics import Estimate
from decisionrl.experience.histories import open_histories
from decisionrl.experience.history_windows import HistoryWindows
from decisionrl.pipeline.history_filter import HistoryFilter
from decisionrl.recipes import recipe
from decisionrl.recipes.in_context import ONE_EPISODE, InContextOptions
from decisionrl.recipes.signatures import parameters
from decisionrl.recording.histories import HistoryPlan, histories
from decisionrl.recording.tabular_sources import random_streams
from decisionrl.seeding import generator

ROOM: Mapping[str, Any] = {"env_options": {"size": 4, "horizon": 4}, "streams": 10, "steps": 32, "noise": 0.3}
TINY: Mapping[str, Any] = {
    "sizes": "cpu",
    "context_episodes": 2,
    "every": 2,
    "steps": 4,
    "batch": 4,
    "warmup": 1,
    "learning_rate": 0.01,
    "evaluation_episodes": 5,
}

RETURNS = ["mean_return", "first_return", "last_return"]
ABOUT = ["random_share", "data_return"]
SECONDS = ["training_seconds", "cpu_seconds", "evaluation_seconds"]


def number(row: Measurement) -> float:
    return row.estimate.value if isinstance(row.estimate, Estimate) else float(row.estimate)


# -------------------------------------------------------------------------------------------------- the cases


BANDITS = "bandit-mixture"


def every_case() -> list[tuple[Case, InContextCase]]:
    """Those with learning histories."""
    found = []
    for case in cases("full", None):
        if case.name != BANDITS:
            assert isinstance(case.run, InContextCase)
            found.append((case, case.run))
    return found


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_cases_have_names_of_their_own(profile: str) -> None:
    titles = [case.title for case in cases(profile, None)]
    assert len(titles) == len(set(titles))
    assert SUITES["icrl"] == "decisionrl.benchmarks.icrl"


def test_every_backbone_is_there_with_and_without_the_filter() -> None:
    for profile in ("quick", "full"):
        made = [case for case in cases(profile, None) if case.name != BANDITS]
        made = [case for case in made if case.method.partition("_lhf_")[2] == ""]
        names = {case.name for case in made}
        for name in names:
            methods = {case.method for case in made if case.name == name}
            plain = {each for each in methods if not each.endswith("_lhf")}
            assert methods == plain | {f"{each}_lhf" for each in plain}
            assert {"ad", "dpt"} <= plain <= set(BACKBONES)
    titles = {case.title for case, _ in every_case()}
    for env in ENVIRONMENTS:
        for data in ("clean", "noise30", "half", "light"):
            assert {f"{env}-{data}/{method}" for method in ("ad", "dpt_lhf", "dicp", "dicp_lhf")} <= titles
    for variant in ("lambda0", "lambda0.5", "lambda2", "lambda1000", "alpha0.0625", "alpha1", "weight", "multinomial"):
        assert f"darkroom-noise30/ad_lhf_{variant}" in titles


def test_methods_of_a_case_share_their_histories_and_differ_in_their_filter_only() -> None:
    found: dict[str, list[InContextCase]] = {}
    for case, run in every_case():
        found.setdefault(case.name, []).append(run)
        assert run.arguments["filter"] == ("lhf" if "_lhf" in case.method else "none")
        assert case.method.split("_")[0] == run.recipe
    for runs in found.values():
        assert all(run.data == runs[0].data for run in runs)
        for name in BACKBONES:
            plain, filtered = (
                next(run.arguments for run in runs if run.recipe == name and run.arguments["filter"] == kind)
                for kind in ("none", "lhf")
            )
            assert {**plain, "filter": "lhf"} == filtered


def test_variants_of_the_filter_are_what_they_are_called() -> None:
    runs = {case.method: run for case, run in every_case() if case.name == "darkroom-noise30"}
    for backbone, named in (("ad", SENSITIVITY), ("dicp", PLANNING)):
        for name, arguments in named.items():
            assert runs[f"{backbone}_lhf_{name}"].arguments == {**runs[f"{backbone}_lhf"].arguments, **arguments}
    assert runs["ad_lhf_lambda0.5"].arguments["stability_weight"] == 0.5
    assert runs["ad_lhf_alpha0.125"].arguments["alpha"] == 0.125
    assert runs["ad_lhf_weight"].arguments["filter_mode"] == "weight"
    default = {"stability_weight": 1.0, "alpha": None, "filter_mode": "resample"}
    variants = [default | dict(each) for each in SENSITIVITY.values()]
    assert all(each != default for each in variants)


def test_data_are_what_they_are_called() -> None:
    for case, run in every_case():
        env, kind = case.name.split("-")
        plan = HistoryPlan(**{"streams": icrl.STREAMS, **run.data.arguments})
        wanted = {"permuted": "darkroom_permuted", "large": "darkroom_large", "key_to_door": "dark_key_to_door"}
        assert plan.env == wanted.get(env, "darkroom")
        assert plan.noise == (0.3 if kind == "noise30" else 0)
        assert run.arguments.get("share", 1.0) == (0.5 if kind == "half" else 1.0)
        assert (run.arguments["sizes"] == "light") == (kind == "light")
        assert (plan.rates is not None) == (kind == "mixed")
        episodes, share = plan.episodes, run.arguments.get("share", 1.0)
        span = 3 * run.arguments["every"] + 1  # windows of four episodes
        assert span <= round(share * episodes), case.title


def test_all_arguments_are_those_of_their_recipes_and_of_the_maker() -> None:
    common = InContextOptions.__optional_keys__ | InContextOptions.__required_keys__
    for profile in ("quick", "full"):
        for case in cases(profile, None):
            run = case.run
            assert isinstance(run, InContextCase | RuleCase)
            if isinstance(run, InContextCase):
                assert set(run.arguments) <= parameters(recipe(run.recipe)).keys() | common, case.title
            assert set(run.data.arguments) <= set(inspect.signature(histories).parameters)


def test_a_configuration_is_known_again_by_its_hash_and_another_is_not() -> None:
    case = InContextCase(data=HistoryData(arguments=ROOM), recipe="ad", arguments=TINY)
    others = [
        dataclasses.replace(case, recipe="dpt"),
        dataclasses.replace(case, arguments={**TINY, "filter": "lhf"}),
        dataclasses.replace(case, data=HistoryData(arguments={**ROOM, "noise": 0.0})),
    ]
    again = InContextCase(data=HistoryData(arguments=dict(ROOM)), recipe="ad", arguments=dict(TINY))
    assert config_hash({"run": again}) == config_hash({"run": case})
    assert len({config_hash({"run": each}) for each in (case, *others)}) == 4
    every = [config_hash({"run": run}) for _, run in every_case()]
    assert len(every) == len(set(every))


# ----------------------------------------------------------------------------------------------- small runs


def test_a_suite_leaves_the_documented_rows_and_a_report(tmp_path: Path) -> None:
    data = HistoryData(arguments=ROOM)
    methods: dict[str, tuple[str, Mapping[str, Any]]] = {
        "ad": ("ad", {}),
        "ad_lhf": ("ad", {"filter": "lhf"}),
        "dpt": ("dpt", {}),
        "dicp_lhf": ("dicp", {"filter": "lhf", "beams": 2, "depth": 2}),
    }
    chosen = [
        Case("room-noise30", method, InContextCase(data=data, recipe=name, arguments={**TINY, **arguments}))
        for method, (name, arguments) in methods.items()
    ]
    assert run_suite("icrl", chosen, seeds=2, out=tmp_path) == 0
    rows = {(row.method, row.seed, row.metric): row for row in read_results(tmp_path)}
    assert {metric for _, _, metric in rows} == {*RETURNS, *ABOUT, *SECONDS}
    for (method, seed, metric), row in rows.items():
        assert row.value is not None, (method, seed, metric)
        assert math.isfinite(row.value)
    for seed in (0, 1):
        _, test = darkroom(size=4, horizon=4).split(seed or None)
        optimum = darkroom(size=4, horizon=4).max_return[test].mean().item()
        for method in methods:
            for metric in RETURNS:
                row = rows[method, seed, metric]
                assert row.value is not None
                assert (row.n, row.reference_kind) == (len(test), "exact")
                assert row.reference == pytest.approx(optimum)
                assert 0 <= row.value <= optimum
            for metric in SECONDS:
                assert rows[method, seed, metric].value > 0  # type: ignore[operator]
        assert rows["ad", seed, "random_share"].value == pytest.approx(0.3)
        assert rows["ad_lhf", seed, "random_share"].value < 0.3  # type: ignore[operator]
        assert rows["ad", seed, "data_return"].value == rows["dpt", seed, "data_return"].value
        assert rows["ad_lhf", seed, "data_return"].value > rows["ad", seed, "data_return"].value  # type: ignore[operator]
    (root,) = (tmp_path / "data").iterdir()
    made = sorted(path for path in root.iterdir() if path.is_dir())
    assert [path.name for path in made] == [f"darkroom-ppo-noise0.3-train-seed{seed}" for seed in (0, 1)]
    first, second = (open_histories(path) for path in made)
    assert (first.info["split_seed"], second.info["split_seed"]) == (None, 1), "the published split comes first"
    curve = read_series(tmp_path)["room-noise30", "ad"].curve
    assert curve is not None
    assert list(curve.x) == [1, 2, 3, 4, 5]
    assert (tmp_path / "report.html").exists()


def context(directory: Path) -> CaseContext:
    return CaseContext("quick", 0, "cpu", None, directory / "work" / "case", lambda fraction, message: None)


def test_rows_are_those_of_the_trained_policy_and_of_what_it_learned_from(tmp_path: Path) -> None:
    case = InContextCase(data=HistoryData(arguments=ROOM), recipe="ad", arguments={**TINY, "filter": "lhf"})
    result = case(context(tmp_path))
    found = {row.metric: number(row) for row in result.rows}

    made = open_histories(case.data(context(tmp_path)))
    returns = made.episode_returns()
    index = HistoryFilter()(returns, made.max_return, generator(0, "filter")).index
    random = random_streams(made.task, 10, share=0.3, seed=0)
    shares = [float(random[task, history]) for task, row in enumerate(index.tolist()) for history in row]
    assert found["random_share"] == pytest.approx(sum(shares) / len(shares))
    chosen = [returns[task, history].mean().item() for task, row in enumerate(index.tolist()) for history in row]
    assert found["data_return"] == pytest.approx(sum(chosen) / len(chosen))

    experiment = recipe("ad")(data=str(case.data(context(tmp_path))), seed=0, **case.arguments)
    for _ in range(4):
        experiment.learner.update(experiment.source.sample())
    assert isinstance(experiment.evaluate, InContextEvaluator)
    played = experiment.evaluate.returns(experiment.policy, seed=EVALUATION_SEED)  # type: ignore[arg-type]
    assert found["mean_return"] == pytest.approx(played.mean().item())
    assert found["first_return"] == pytest.approx(played[..., 0].mean().item())
    assert found["last_return"] == pytest.approx(played[..., -3:].mean().item())
    assert result.series is not None
    assert result.series.curve is not None
    assert list(result.series.curve.y) == pytest.approx(played.mean((0, 1)).tolist())


def test_weights_count_as_shares(tmp_path: Path) -> None:
    data = HistoryData(arguments=ROOM)(context(tmp_path))
    experiment = recipe("ad")(data=str(data), **TINY, filter="lhf", filter_mode="weight")
    windows = experiment.source.draw  # type: ignore[attr-defined]
    assert isinstance(windows, HistoryWindows)
    assert windows.weight is not None
    made = open_histories(data)
    random, returns = random_streams(made.task, 10, share=0.3, seed=0), made.episode_returns().mean(-1)
    weight, on_random, earned = 0.0, 0.0, 0.0
    for task in range(made.num_tasks):
        for history in range(10):
            each = windows.weight[task, history].item()
            weight, earned = weight + each, earned + each * returns[task, history].item()
            on_random += each * random[task, history].item()
    rows = {row.metric: number(row) for row in icrl._about(windows)}
    assert rows["random_share"] == pytest.approx(on_random / weight)
    assert rows["data_return"] == pytest.approx(earned / weight)
    assert rows["random_share"] < 0.3


def test_bandits_beside_rules_that_know_them(tmp_path: Path) -> None:
    made = {**icrl.BANDITS, "env_options": {"tasks": 200, "horizon": 12}, "steps": 12}
    data = HistoryData(arguments=made)
    trained = InContextCase(data=data, recipe="dpt", arguments={**ONE_EPISODE, "steps": 2, "batch": 4})
    family = made_family("bandit", made["env_options"])
    _, test = family.split()
    optimum = family.max_return[test].mean().item()
    found = {}
    for name, case in {"dpt": trained, "ucb": RuleCase(data=data, rule="ucb")}.items():
        found[name] = {row.metric: row for row in case(context(tmp_path)).rows}
        returned, regret = found[name]["mean_return"], number(found[name]["regret"])
        assert returned.reference == pytest.approx(optimum)
        assert number(returned) + regret == pytest.approx(optimum)
    assert 0 < number(found["ucb"]["regret"]) < number(found["dpt"]["regret"]), "two updates teach nothing"
    assert "first_return" not in found["dpt"], "there is a single episode"


def test_histories_are_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = HistoryData(arguments=ROOM)
    path = data(context(tmp_path))
    assert path == tmp_path / "data" / config_hash(dict(ROOM)) / "darkroom-ppo-noise0.3-train-seed0"
    monkeypatch.setattr(icrl, "histories", None)
    assert data(context(tmp_path)) == path
    assert torch.equal(open_histories(path).task, darkroom(size=4).split()[0])
