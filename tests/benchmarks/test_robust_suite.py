"""The robust suite: what its cases are, and what the small ones measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decisionrl.benchmarks.executors import Measurement
from decisionrl.benchmarks.robust import (
    FIVE_STATE,
    LEVELS,
    ONE_HOT,
    ONLINE,
    PUT,
    EtaCase,
    ExactCase,
    LearnCase,
    Setting,
    cases,
    regret_curves,
    slope,
)
from decisionrl.benchmarks.suite import CaseContext, CaseResult
from decisionrl.cli import SUITES
from decisionrl.evaluation.statistics import Estimate

SMALL = replace(FIVE_STATE, runs=4)


def run(case: LearnCase | ExactCase | EtaCase, directory: Path) -> CaseResult:
    return case(CaseContext("quick", 0, "cpu", None, directory, lambda fraction, message: None))


def values(result: CaseResult) -> dict[str, float]:
    return {row.metric: number(row) for row in result.rows}


def number(row: Measurement) -> float:
    return row.estimate.value if isinstance(row.estimate, Estimate) else row.estimate


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_cases(profile: str) -> None:
    titles = [case.title for case in cases(profile, None)]
    assert len(titles) == len(set(titles))
    for needed in ("five-state/dr_rpo", "one-hot/lsvi_ucb", "american-put/dr_lsvi_ucb", "american-put-offline/drpvi"):
        assert needed in titles
    for needed in ("eta/dr_rpo", "five-state-offline/va_drpvi", "one-hot-offline/r2pvi-chi2", "five-state/oracle"):
        assert needed in titles
    assert SUITES["robust"] == "decisionrl.benchmarks.robust"


def test_regret_is_followed_from_the_first_episode(tmp_path: Path) -> None:
    case = LearnCase(setting=SMALL, recipe="dr_lsvi_ucb", steps=70, regret=True)
    result = run(case, tmp_path)
    rows = {row.metric: row for row in result.rows}
    assert rows["robust_value"].reference == pytest.approx(1.43832, abs=1e-5)
    assert rows["nominal_value"].reference == pytest.approx(1.77533, abs=1e-5)
    assert rows["value_at_1"].reference == pytest.approx(1.4398, abs=1e-4)
    curve = result.series.curve
    assert curve is not None
    assert curve.x[0] == 1
    assert curve.x[-1] == 70
    assert curve.y[-1] == pytest.approx(number(rows["regret"]))
    assert all(b >= a - 1e-12 for a, b in zip(curve.y, curve.y[1:], strict=False))
    again = values(run(case, tmp_path))
    assert all(again[m] == v for m, v in values(result).items() if m != "seconds_per_run")


def test_regret_counts_the_price_of_leaving_the_reference_policy(tmp_path: Path) -> None:
    """The optimal soft policy has no regret of its own, but a worst case below the robust optimum."""
    case = LearnCase(setting=SMALL, recipe="dr_rpo", steps=300, arguments={"eta": 5.0}, regret=True)
    found = values(run(case, tmp_path))
    assert found["regret"] < 8
    assert found["robust_value"] < 1.2


def test_exact_policies(tmp_path: Path) -> None:
    best, robust, oracle = (
        run(ExactCase(setting=FIVE_STATE, policy=policy), tmp_path)  # type: ignore[arg-type]
        for policy in ("optimal", "robust_optimal", "oracle")
    )
    assert values(best)["nominal_value"] == pytest.approx(1.77533, abs=1e-5)
    assert values(robust)["robust_value"] == pytest.approx(1.43832, abs=1e-5)
    assert values(best)["value_at_1"] == pytest.approx(0.5759, abs=1e-4)
    assert values(robust)["value_at_1"] == pytest.approx(1.4398, abs=1e-4)
    curves = [each.series.curves["perturbation"] for each in (best, robust, oracle)]
    for level, nominal, worst, top in zip(curves[0].x, *(curve.y for curve in curves), strict=True):
        assert top == pytest.approx(max(nominal, worst))
        assert (worst > nominal) == (level > 0.28012)


def test_the_put_option_against_its_lattice(tmp_path: Path) -> None:
    """The robust method is worth more where prices rise more often than learned, the nominal one where they fall."""
    setting = replace(PUT, runs=10)
    robust, nominal = (
        values(run(LearnCase(setting=setting, recipe=name, steps=100), tmp_path))
        for name in ("dr_lsvi_ucb", "lsvi_ucb")
    )
    oracle = values(run(ExactCase(setting=setting, policy="oracle"), tmp_path))
    for metric in ("mean_value", "value_at_0.2", "value_at_0.5", "value_at_0.8"):
        assert max(robust[metric], nominal[metric]) <= oracle[metric] + 1e-9
    assert nominal["value_at_0.2"] > robust["value_at_0.2"]
    assert robust["value_at_0.8"] > nominal["value_at_0.8"]


def test_offline_methods_are_followed_by_the_size_of_the_data(tmp_path: Path) -> None:
    case = LearnCase(setting=replace(ONE_HOT, runs=4), recipe="drpvi", steps=320, arguments={"part": 4})
    curve = run(case, tmp_path).series.curve
    assert curve is not None
    assert list(curve.x) == list(range(4, 321, 4))
    assert curve.reference == pytest.approx(2.87665997, abs=1e-8)
    assert all(y <= 2.87665997 + 1e-9 for y in curve.y)
    assert curve.y[-1] > curve.y[0]


def test_eta_trades_nominal_for_worst_case(tmp_path: Path) -> None:
    exact = run(EtaCase(setting=FIVE_STATE, steps=None), tmp_path)
    assert all(row.reference == pytest.approx(number(row)) for row in exact.rows)
    found = values(exact)
    assert found["robust_value_at_eta=1000"] == pytest.approx(1.43832, abs=1e-4)
    assert found["nominal_value_at_eta=20"] > found["nominal_value_at_eta=1000"]
    assert set(exact.series.curves) == {"nominal", "trade-off"}
    learned = values(run(EtaCase(setting=SMALL, steps=100, etas=(100.0, 20.0)), tmp_path))
    assert learned["robust_value_at_eta=100"] > learned["robust_value_at_eta=20"]


def test_slope_of_powers() -> None:
    k = torch.arange(1, 1001, dtype=torch.float64)
    assert slope(3 * k.sqrt()) == pytest.approx(0.5)
    assert slope(k) == pytest.approx(1.0)


def test_regret_curves_end_with_all_episodes() -> None:
    regret = torch.ones(500, 2, dtype=torch.float64)
    plain, growth = regret_curves(regret)
    assert list(plain.y) == list(plain.x)
    assert plain.x[-1] == 500
    assert growth.x[0] == 0
    assert list(growth.y) == pytest.approx(list(growth.x))


def test_levels_of_the_rows_are_measured() -> None:
    for levels in LEVELS.values():
        assert set(levels.rows) <= set(levels.values)


def regrets(setting: Setting, steps: int, methods: dict[str, tuple[str, dict[str, Any]]], directory: Path) -> Any:
    """Method -> rows."""
    return {
        method: values(
            run(LearnCase(setting=setting, recipe=name, steps=steps, arguments=arguments, regret=True), directory)
        )
        for method, (name, arguments) in methods.items()
    }


def assert_slopes(rows: Any) -> None:
    assert rows["lsvi_ucb"]["regret_slope"] > 0.85
    assert rows["dr_lsvi_ucb"]["regret_slope"] < 0.6
    assert rows["dr_rpo"]["regret_slope"] < 0.5


def test_regret_grows_as_it_should(tmp_path: Path) -> None:
    methods = {name: (recipe, dict(arguments)) for name, (recipe, arguments) in ONLINE.items()}
    assert_slopes(regrets(replace(FIVE_STATE, runs=10), 500, methods, tmp_path))


@pytest.mark.slow
def test_regret_grows_as_it_should_on_the_tabular_instance(tmp_path: Path) -> None:
    methods = {name: (recipe, dict(arguments)) for name, (recipe, arguments) in ONLINE.items()}
    methods["dr_rpo"] = ("dr_rpo", {"eta": 10.0})
    assert_slopes(regrets(ONE_HOT, 5000, methods, tmp_path))


@pytest.mark.slow
def test_regret_of_a_thousand_episodes_on_the_five_states(tmp_path: Path) -> None:
    """Against an independent program, within the noise of twenty runs; greedy methods take the first best action."""
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "lsvi": ("lsvi_ucb", {"ties": "first"}),
        "d2": ("dr_lsvi_ucb", {"ties": "first"}),
        "d1": ("dr_lsvi_ucb", {"ties": "first", "bonus": "d1"}),
        "eta 5": ("dr_rpo", {"eta": 5.0}),
        "eta 20": ("dr_rpo", {"eta": 20.0}),
        "eta 100": ("dr_rpo", {"eta": 100.0}),
        "alpha 1": ("dr_rpo", {"eta": None, "alpha": 1.0}),
        "alpha 0.1": ("dr_rpo", {"eta": None, "alpha": 0.1}),
        "eta 20, alpha 1": ("dr_rpo", {"eta": 20.0, "alpha": 1.0}),
    }
    found = regrets(FIVE_STATE, 1000, methods, tmp_path)
    expected = {"lsvi": (263, 4), "d2": (10.1, 4), "d1": (19.2, 3), "eta 5": (4.3, 1), "eta 20": (7.3, 2)}
    expected |= {"eta 100": (5.6, 2), "alpha 1": (9.7, 2), "alpha 0.1": (63.8, 4), "eta 20, alpha 1": (9.1, 2)}
    for method, (value, tolerance) in expected.items():
        assert found[method]["regret"] == pytest.approx(value, abs=tolerance), method
