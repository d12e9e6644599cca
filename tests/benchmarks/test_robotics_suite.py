"""The robotics suite: its cases, small runs from data to report, what success counts, and the page with its figure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decisionrl.benchmarks import results_page, robotics
from decisionrl.benchmarks.executors import Measurement
from decisionrl.benchmarks.robotics import (
    EVALUATION_SEED,
    MODES,
    PIXELS,
    PRESET,
    RETURN_SIDE,
    VARIANTS,
    MemoryCase,
    MemoryData,
    PixelsCase,
    cases,
    played_episodes,
    several_candidates,
    success,
)
from decisionrl.benchmarks.robotics_page import Rung, context_ladder, robotics_sections
from decisionrl.benchmarks.suite import Case, CaseContext, run_suite
from decisionrl.cli import SUITES
from decisionrl.evaluation import predictability
from decisionrl.evaluation.results import Row, config_hash, read_results, write_results
from decisionrl.evaluation.series import read_series
from decisionrl.evaluation.statistics import Estimate
from decisionrl.experience.episodes import Played
from decisionrl.experiment import Experiment
from decisionrl.policies.diffusion import PastTokens
from decisionrl.recipes import ON_DEMONSTRATIONS, recipe
from decisionrl.recipes.diffusion import DiffusionOptions

FEW = {"episodes": 6, "measured": 4, "copies": 4}
TINY = {**PRESET, "observations": 3, "steps": 6, "warmup": 2, "batch": 8}
TINY_SHORT = {**TINY, "observations": 2, "network": "transformer", "action_steps": 1}

ALWAYS = ["success", "predictability", "validation_error", "latency_ms", "evaluation_seconds"]
COSTS = ["training_seconds", "cpu_seconds"]
REMEMBERED = ["success_5_candidates", "latency_ms_5_candidates"]


def number(row: Measurement) -> float:
    return row.estimate.value if isinstance(row.estimate, Estimate) else float(row.estimate)


# -------------------------------------------------------------------------------------------------- the cases


def every_case() -> list[Case]:
    return cases("full", None)


def trainings(case: Case) -> list[tuple[str, Mapping[str, Any]]]:
    """Recipes and their arguments."""
    run = case.run
    if isinstance(run, PixelsCase):
        return [("diffusion_policy", run.short), ("ptp", run.long)]
    assert isinstance(run, MemoryCase)
    return [(run.recipe, run.arguments)]


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_cases_have_names_of_their_own(profile: str) -> None:
    titles = [case.title for case in cases(profile, None)]
    assert len(titles) == len(set(titles))
    needed = {f"return_side-To8/{mode}" for mode in ("predict", "unsupervised", "absent")}
    assert needed | {"return_side-oracle/predict", "return_side-To2/predict"} <= set(titles)
    assert SUITES["robotics"] == "decisionrl.benchmarks.robotics"


def test_full_has_the_ladders_the_oracles_the_variants_and_images() -> None:
    titles = {case.title for case in every_case()}
    for task in ("return_side", "count_visits", "cue_reach", "pick_and_return"):
        assert f"{task}-oracle/predict" in titles
    for needed in (
        "return_side-To1/predict",
        "return_side-To16-epsilon/unsupervised",
        "return_side-To8/unet",
        "return_side-To8/regression_unsupervised",
        "count_visits-To12/absent",
        "count_visits-To12-epsilon/predict",
        "cue_reach-To16/predict",
        "cue_reach-To16s4/unsupervised",
        "pick_and_return-To16s4/absent",
        "return_side_pixels-To16/cached",
        "return_side_pixels-To16/end_to_end",
        "return_side_pixels-To2/predict",
    ):
        assert needed in titles
    assert "return_side-To1/absent" not in titles, "one observation has no past tokens"


def test_quick_is_a_part_of_full_with_equal_arguments() -> None:
    quick, full = ({case.title: case.run for case in cases(profile, None)} for profile in ("quick", "full"))
    assert len(quick) < len(full) / 8
    assert all(full[title] == run for title, run in quick.items())


def test_modes_of_a_case_differ_in_nothing_else() -> None:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for case in every_case():
        if case.method in get_args(PastTokens) and isinstance(case.run, MemoryCase) and case.run.recipe == "ptp":
            assert case.run.arguments["past_tokens"] == case.method
            found.setdefault(case.name, []).append({**case.run.arguments, "past_tokens": None})
    assert tuple(get_args(PastTokens)) == MODES
    assert all(each == arguments[0] for arguments in found.values() for each in arguments)


def test_the_name_of_a_case_says_its_context() -> None:
    for case in every_case():
        rung, arguments = Rung.of(case.name), trainings(case)[-1][1]
        if rung is None:
            assert case.name.endswith("-oracle")
            assert case.run.data.options["oracle"] is True  # type: ignore[attr-defined]
            continue
        assert rung.observations == arguments.get("observations", 2)
        assert rung.stride == arguments.get("stride", 1)
        assert rung.epsilon == (arguments.get("prediction") == "epsilon")


def test_all_arguments_are_those_of_their_recipes() -> None:
    common = DiffusionOptions.__optional_keys__ | DiffusionOptions.__required_keys__
    for case in every_case():
        for name, arguments in trainings(case):
            assert name in ON_DEMONSTRATIONS
            assert set(arguments) <= set(inspect.signature(recipe(name)).parameters) | common, case.title


@pytest.mark.parametrize("method", [*MODES, *VARIANTS])
def test_recipes_can_be_made_as_the_suite_asks_for_them(method: str) -> None:
    (case,) = (case for case in every_case() if case.title == f"return_side-To8/{method}")
    ((name, arguments),) = trainings(case)
    experiment = recipe(name)(data="lab/return-side", **arguments)
    assert experiment.evaluate is not None
    assert experiment.source.sample() is not None


def test_a_configuration_is_known_again_by_its_hash_and_another_is_not() -> None:
    def hashed(case: MemoryCase | PixelsCase) -> str:
        return config_hash({"run": case})

    case = MemoryCase(data=RETURN_SIDE, arguments={"steps": 3})
    pixels = PixelsCase(data=PIXELS, short={"steps": 3}, long={"steps": 3}, cached=True)
    assert hashed(MemoryCase(data=MemoryData(env=RETURN_SIDE.env), arguments={"steps": 3})) == hashed(case)
    others = [
        replace(case, arguments={"steps": 4}),
        replace(case, recipe="bc"),
        replace(case, data=replace(RETURN_SIDE, options={"oracle": True})),
        replace(case, data=replace(RETURN_SIDE, episodes=100)),
        replace(case, data=replace(RETURN_SIDE, measured=100)),
        pixels,
        replace(pixels, cached=False),
        replace(pixels, short={"steps": 4}),
    ]
    assert len({hashed(each) for each in (case, *others)}) == 1 + len(others)
    every = [hashed(case.run) for case in every_case()]  # type: ignore[arg-type]
    assert len(every) == len(set(every))


# ----------------------------------------------------------------------------------------------- small runs


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little as possible of everything that is not the case's own."""
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    for module, name, value in (
        (robotics, "HELD_OUT_EPISODES", 2),
        (robotics, "CURVE_POINTS", 2),
        (robotics, "CURVE_EPISODES", 2),
        (robotics, "DECISIONS", 2),
        (predictability, "EPOCHS", 1),
        (predictability, "UPDATES_PER_EPOCH", 2),
    ):
        monkeypatch.setattr(module, name, value)


def test_a_suite_leaves_the_documented_rows_and_a_report(brief: None, tmp_path: Path) -> None:
    data = replace(RETURN_SIDE, **FEW)  # type: ignore[arg-type]
    methods: dict[str, Mapping[str, Any]] = {
        "predict": {},
        "unsupervised": {"past_tokens": "unsupervised"},
        "absent": {"past_tokens": "absent"},
        "regression": {"head": "regression"},
    }
    chosen = [
        Case("return_side-To3", method, MemoryCase(data=data, arguments={**TINY, **arguments}))
        for method, arguments in methods.items()
    ]
    assert run_suite("robotics", chosen, out=tmp_path) == 0
    rows = {(row.method, row.metric): row for row in read_results(tmp_path)}
    always = [*ALWAYS, *COSTS]
    expected = {
        "predict": [*always, *REMEMBERED, "past_error"],
        "unsupervised": [*always, "past_error"],
        "absent": always,
        "regression": [*always, "past_error"],
    }
    assert set(rows) == {(method, metric) for method, metrics in expected.items() for metric in metrics}
    for (method, metric), row in rows.items():
        assert row.value is not None, (method, metric)
        assert math.isfinite(row.value)
        assert row.value >= 0
    for method in methods:
        assert (rows[method, "success"].n, rows[method, "success"].reference) == (4, 1.0)
    assert rows["predict", "predictability"].reference == 1.0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"6", "2"}
    assert [path.name for path in (tmp_path / "data" / "6").iterdir() if path.is_dir()] == [
        "return-side-demonstrations-seed0"
    ], "all methods of a seed learn from the same demonstrations"
    assert (tmp_path / "data" / "2" / "return-side-demonstrations-seed10000").is_dir()
    curve = read_series(tmp_path)["return_side-To3", "predict"].curve
    assert curve is not None
    assert list(curve.x) == [3, 6]
    assert (tmp_path / "report.html").exists()
    page = "\n\n".join(robotics_sections(list(rows.values()), "quick"))
    assert "| return_side-To3 | predict − absent |" in page


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "end_to_end"])
def test_images_are_learned_from_end_to_end_or_on_cached_embeddings(cached: bool, brief: None, tmp_path: Path) -> None:
    data = replace(PIXELS, **FEW)  # type: ignore[arg-type]
    shown: list[float] = []
    work = tmp_path / "work" / "case"
    context = CaseContext("quick", 0, "cpu", None, work, lambda fraction, message: shown.append(fraction))
    result = PixelsCase(data=data, short=TINY_SHORT, long=TINY, cached=cached)(context)
    rows = {row.metric: number(row) for row in result.rows}
    assert set(rows) == {*ALWAYS, *COSTS, *REMEMBERED, "past_error", "head_seconds"}
    assert all(math.isfinite(value) and value >= 0 for value in rows.values())
    assert 0 < rows["head_seconds"] < rows["training_seconds"]
    assert (work / "short.safetensors").exists() == cached
    assert shown == sorted(shown)
    assert 0.9 < shown[-1] <= 1


def test_several_candidates_are_weighed_up_only_meanwhile() -> None:
    policy = recipe("ptp")(data="lab/return-side", **TINY).policy
    assert policy.candidates == 1
    with several_candidates(policy):  # type: ignore[arg-type]
        assert policy.candidates == robotics.CANDIDATES
    with pytest.raises(KeyError), several_candidates(policy):  # type: ignore[arg-type]
        raise KeyError
    assert policy.candidates == 1


# ------------------------------------------------------------------------------------------------- success


class ToTheRight(nn.Module):
    """To the junction, the hub, the junction and then always to the right, by the clock."""

    PLACES = torch.tensor([[0.0, 0.0]] * 3 + [[0.0, 0.55]] * 3 + [[0.0, 0.0]] * 2 + [[0.75, 0.0]])

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def initial_state(self, rows: int) -> Tensor:
        return torch.zeros(rows, 1)

    def act(self, observation: Tensor, state: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert noise is None, "the episodes of an evaluation are deterministic"
        now = state[:, 0].long().clamp(max=len(self.PLACES) - 1)
        return ((self.PLACES[now] - observation) / 0.3).clamp(-1, 1), state + 1


def test_success_is_the_share_of_rewarded_episodes() -> None:
    policy = ToTheRight()
    config = {"env": RETURN_SIDE.env, "env_options": {}}
    experiment = Experiment(policy=policy, source=None, learner=None, config=config)  # type: ignore[arg-type]
    seconds, played = played_episodes(experiment, replace(RETURN_SIDE, measured=20, copies=7))
    assert seconds > 0

    rewarded, env = [], gymnasium.make(RETURN_SIDE.env)
    for start in range(EVALUATION_SEED, EVALUATION_SEED + 20):
        seen, _ = env.reset(seed=start)
        state, total, over = policy.initial_state(1), 0.0, False
        while not over:
            action, state = policy.act(torch.as_tensor(seen)[None], state)
            seen, reward, terminated, truncated, _ = env.step(action[0].numpy())
            total, over = total + float(reward), terminated or truncated
        rewarded.append(total > 0)
    measured = success("success", played, reference=0.98)
    assert 0 < sum(rewarded) < 20, "only half of the starts are on the right"
    assert number(measured) == np.mean(rewarded)
    assert played.outcome.tolist() == [float(each) for each in rewarded]
    assert isinstance(measured.estimate, Estimate)
    assert measured.estimate.n == 20
    assert (measured.reference, measured.reference_kind, measured.better) == (0.98, "oracle", "higher")


def test_rewards_behind_the_end_of_an_episode_do_not_exist() -> None:
    reward = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    nothing = torch.zeros(4, 3)
    played = Played(nothing, nothing, reward, nothing, nothing, nothing, nothing, None, nothing)
    assert number(success("success", played)) == 0.75


# ------------------------------------------------------------------------------------------------- the page


def row(case: str, method: str, value: float | None, seed: int = 0, metric: str = "success", **about: Any) -> Row:
    return Row.build(
        suite="robotics", case=case, method=method, seed=seed, metric=metric, value=value, better="higher", **about
    )


def seeds(case: str, method: str, *values: float | None, metric: str = "success") -> list[Row]:
    return [row(case, method, value, seed, metric) for seed, value in enumerate(values)]


def shown(rows: list[Row], profile: str = "full") -> str:
    return "\n\n".join(robotics_sections(rows, profile))


def below(page: str, heading: str) -> str:
    """The section with that heading."""
    return page.split(f"### {heading}\n")[1].split("\n### ")[0]


def test_no_rows_make_nothing() -> None:
    assert robotics_sections([], "full") == []
    assert context_ladder([]) is None
    page = shown(seeds("return_side-oracle", "predict", 0.95))
    assert "### Controls" in page
    for left_out in ("by context", "prediction gains", "another network", "Images", "cached", "![", "**Void**"):
        assert left_out not in page


def test_comparisons_are_void_where_the_oracle_fails() -> None:
    rows = [
        *seeds("return_side-oracle", "predict", 0.95, 0.84),  # 0.895
        *seeds("count_visits-oracle", "predict", 0.95, 0.85),  # 0.9, but for rounding
    ]
    for task in ("return_side", "count_visits"):
        rows += [*seeds(f"{task}-To8", "predict", 0.9, 0.8), *seeds(f"{task}-To8", "absent", 0.1, 0.1)]
        rows += seeds(f"{task}-To8", "regression", 0.5, 0.5)
    page = shown(rows)
    controls = below(page, "Controls")
    assert "| return_side | 0.895 (" in controls
    assert "| no: void |" in controls.split("| return_side |")[1].splitlines()[0]
    assert "| yes |" in controls.split("| count_visits |")[1].splitlines()[0]
    assert "**Void**" not in controls
    failed = below(page, "return_side: success by context")
    assert "**Void**: the oracle of the task does not reach 0.9" in failed
    assert "| 8 (void) |" in failed
    assert "oid" not in below(page, "count_visits: success by context")
    gains = below(page, "What past-token prediction gains")
    assert "**Void**" in gains
    void, counted = (line for line in gains.splitlines() if "predict − absent" in line)
    assert void.startswith("| return_side-To8 (void) | predict − absent | +0.750")
    assert void.endswith("| void |")
    # differences 0.8 and 0.7: standard error 0.05, t_1 = 12.706
    assert counted == "| count_visits-To8 | predict − absent | +0.750 (+0.115 to +1.385) | 2 | yes |"
    variants = below(page, "Some past tokens, no diffusion, another network")
    assert "| return_side-To8 (void) | regression | 0.500" in variants
    assert "| count_visits-To8 | regression | 0.500" in variants
    assert "| return_side-To8 (void) | predict |" in below(page, "Diagnostics")


def test_a_task_without_an_oracle_is_not_vouched_for() -> None:
    page = shown(seeds("return_side-To8", "predict", 0.9, 0.8))
    assert "No oracle was run" in below(page, "return_side: success by context")
    assert "### Controls" not in page


@pytest.mark.parametrize(
    ("case", "bound"),
    [
        ("return_side-To1", 1 / 2),
        ("return_side-To4", 1 / 2),
        ("return_side-To5", 1 / 2),
        ("return_side-To6", None),
        ("return_side-To2s5", None),
        ("return_side-To8-epsilon", None),
        ("count_visits-To1", 4 / 27),
        ("count_visits-To2", 1 / 4),
        ("count_visits-To5", 1 / 4),
        ("count_visits-To8", None),
        ("cue_reach-To16", 1 / 2),
        ("cue_reach-To16s4", None),
        ("pick_and_return-To2", None),
        ("return_side_pixels-To16", None),
    ],
)
def test_bounds_hold_for_windows_that_are_too_short(case: str, bound: float | None) -> None:
    rung = Rung.of(case)
    assert rung is not None
    assert (None if rung.bound is None else float(rung.bound)) == bound


def test_the_bound_of_two_visits_is_that_of_the_best_guess() -> None:
    chance = np.linspace(0, 1, 3001)
    rungs = [Rung("count_visits", False, 1, observations) for observations in (1, 2)]
    assert [float(rung.bound or 0) for rung in rungs] == pytest.approx(
        [np.max(chance**2 * (1 - chance)), np.max(chance * (1 - chance))], abs=1e-6
    )


def test_a_ladder_goes_from_short_to_long_with_its_bounds() -> None:
    rows = [
        *seeds("count_visits-To12-epsilon", "predict", 0.7, 0.9),
        *seeds("count_visits-To12", "predict", 0.9, 1.0, 0.95),
        *seeds("count_visits-To12", "unsupervised", 0.5, 0.7),
        *seeds("count_visits-To2", "predict", 0.2, 0.32),
        *seeds("count_visits-To2", "absent", 0.3, 0.302),
        *seeds("count_visits-To1", "predict", 0.1, 0.18),
        *seeds("cue_reach-To16s4", "predict", 0.9, 0.9),
    ]
    page = shown(rows)
    lines = below(page, "count_visits: success by context").splitlines()
    table = [line for line in lines if line.startswith(("| 1", "| 2"))]
    assert [line.split(" | ")[0] for line in table] == ["| 1", "| 2", "| 12", "| 12, epsilon"]
    assert table[0].endswith("| – | – | 4/27 | yes | 2 |")
    assert table[1].endswith("| 1/4 | no: absent | 2 |")
    # means 0.95 of three, t_2 = 4.303, standard error 0.05 / sqrt(3); 0.6 of two, t_1 = 12.706, standard error 0.1
    assert table[2] == "| 12 | 0.950 (0.826 to 1.074) | 0.600 (-0.671 to 1.871) | – | – | – | 2 to 3 |"
    assert "there are no past tokens" in "".join(lines)
    assert "| 16, 4 apart | 0.900 (0.900 to 0.900) |" in below(page, "cue_reach: success by context")


def test_differences_are_paired_over_equal_seeds() -> None:
    rows = [
        *seeds("return_side-To8", "predict", 0.9, 1.0, 0.95),
        *seeds("return_side-To8", "unsupervised", 0.7, 0.7, 0.7, 0.0),  # a seed that predict does not have
        *seeds("return_side-To8", "absent", 0.95, 0.9, 1.0),
        *seeds("return_side-To16", "predict", 0.9),
        *seeds("return_side-To16", "absent", 0.5),
    ]
    lines = below(shown(rows), "What past-token prediction gains").splitlines()
    # differences 0.2, 0.3, 0.25: mean 0.25, standard error 0.05 / sqrt(3), t_2 = 4.303
    assert "| return_side-To8 | predict − unsupervised | +0.250 (+0.126 to +0.374) | 3 | yes |" in lines
    # differences -0.05, 0.1, -0.05: mean 0, standard error 0.0866 / sqrt(3)
    assert "| return_side-To8 | predict − absent | +0.000 (-0.215 to +0.215) | 3 | no |" in lines
    assert "| return_side-To16 | predict − absent | +0.400 | 1 | – |" in lines


def test_training_on_embeddings_is_compared_seed_by_seed() -> None:
    case = "return_side_pixels-To16"
    rows = [
        *seeds(case, "cached", 0.9, 0.8),
        *seeds(case, "end_to_end", 0.8, 0.9),
        *seeds(case, "cached", 100.0, 50.0, metric="training_seconds"),
        *seeds(case, "end_to_end", 400.0, 250.0, metric="training_seconds"),
        *seeds(case, "cached", 40.0, 20.0, metric="head_seconds"),
        *seeds(case, "end_to_end", 400.0, 240.0, metric="head_seconds"),
    ]
    page = shown(rows)
    lines = below(page, "Training on cached embeddings beside end to end").splitlines()
    starts = [f"| {case} | end_to_end / cached, seconds, {what} | " for what in ("whole training", "last stage")]
    whole, head = (next(line for line in lines if line.startswith(start)) for start in starts)
    assert whole.startswith(f"{starts[0]}4.5 (")  # of 4 and 5
    assert whole.endswith("| ≥ 5 (paper: > 10) | no |")
    assert head.startswith(f"{starts[1]}11 (")  # of 10 and 12
    assert head.endswith("| ≥ 5 (paper: > 10) | yes |")
    assert any(line.startswith(f"| {case} | cached − end_to_end, success | +0.000") for line in lines)
    images = below(page, "Images")
    assert f"| {case} | cached | 0.850 (" in images
    assert "| 75 | 30 | 2 |" in images
    assert f"### {case.split('-')[0]}: success" not in page, "images have a table of their own"


def test_diagnostics_say_where_a_seed_has_no_number() -> None:
    rows = [
        *seeds("return_side-To8", "predict", 1.0, None, 2.0, metric="predictability"),
        *seeds("return_side-To8", "predict", 0.1, 0.3, 0.2, metric="validation_error"),
        *seeds("return_side-To8", "predict", 0.9, metric="success_5_candidates"),
        *seeds("return_side-To8", "predict", 4.0, 6.0, metric="latency_ms"),
        *seeds("return_side-To8", "predict", 1234.5, metric="training_seconds"),
    ]
    lines = below(shown(rows), "Diagnostics").splitlines()
    assert "| return_side-To8 | predict | 1.5 (2 of 3 seeds) | 0.2 | – | – | 0.9 | 1,234 | 5 | – |" in lines


def test_the_figure_has_the_modes_their_intervals_and_the_bounds() -> None:
    rows = [
        *seeds("return_side-To1", "predict", 0.1, 0.2),
        *seeds("return_side-To2", "predict", 0.3, 0.3),
        *seeds("return_side-To2", "absent", 0.4, 0.2),
        *seeds("return_side-To8", "predict", 0.9, 1.0),
        *seeds("return_side-To8", "absent", 0.6, 0.8),
        *seeds("return_side-To8-epsilon", "predict", 0.0, 0.0),
        *seeds("count_visits-To1", "predict", 0.1, 0.1),
        *seeds("count_visits-To12", "predict", 0.9, 0.9),
        *seeds("count_visits-oracle", "predict", 0.5, 0.5),
        *seeds("cue_reach-To16", "predict", 0.5, 0.5),
    ]
    figure = context_ladder(rows)
    assert figure is not None
    returning, counting = figure.axes
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "return_side",
        "count_visits (void)",
    ]
    bound, predict, absent = returning.lines
    np.testing.assert_allclose(predict.get_ydata(), [0.15, 0.3, 0.95])
    np.testing.assert_allclose(absent.get_ydata(), [0.15, 0.3, 0.7], err_msg="one observation: the same training")
    np.testing.assert_allclose(np.asarray(absent.get_xdata()), [1, 2, 8], rtol=0.05)
    assert list(np.asarray(bound.get_xdata())) == [1, 2, 3, 4, 5]
    assert set(np.asarray(bound.get_ydata())) == {0.5}
    assert list(counting.lines[0].get_ydata()) == [4 / 27, *[0.25] * 4]
    ends = np.concatenate([np.asarray(segments.get_segments())[:, :, 1] for segments in returning.collections])
    assert 0 <= ends.min() <= ends.max() <= 1, "success cannot be beyond"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["predict", "absent", "bound on imitation"]
    assert context_ladder(seeds("return_side-To8", "predict", 0.9)) is None, "one rung is no ladder"


def test_the_page_and_its_figure_are_written_together(tmp_path: Path) -> None:
    results, target, written = tmp_path / "results", tmp_path / "docs" / "results.md", []
    target.parent.mkdir()
    results_page.main([str(results), str(target)], written.append)
    assert written == [target]
    assert "Robotics" not in target.read_text()

    rows = [*seeds("return_side-To2", "predict", 0.3, 0.4), *seeds("return_side-To8", "predict", 0.9, 1.0)]
    write_results(results / "robotics-full", rows)
    write_results(results / "robotics-quick", seeds("return_side-oracle", "predict", 0.95))
    write_results(
        results / "speed-robotics", [replace(row("cpu", "update", 1.5, metric="speedup"), suite="speed-robotics")]
    )
    results_page.main([str(results), str(target)], written.append)
    image = target.parent / "images" / "context_ladder.png"
    assert written[1:] == [target, image]
    assert image.read_bytes().startswith(b"\x89PNG")
    page = target.read_text()
    assert "## Robotics: a long past (full profile)" in page
    assert "## Robotics: a long past (quick profile)" in page
    assert page.count("](images/context_ladder.png)") == 1
    assert "## Speed: speed-robotics" in page
    assert "`latency_ms`: a decision for one robot" in page
