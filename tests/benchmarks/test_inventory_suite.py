"""The inventory suite: what its cases are, what a case measures, and the page made from its results."""

from pathlib import Path

import numpy as np
import pytest
import torch

from decisionrl.benchmarks import results_page
from decisionrl.benchmarks.inventory import (
    EVALUATION_SEED,
    SHIFTS,
    Budget,
    SampleEfficiency,
    SeriesCase,
    TrainAndMeasure,
    cases,
)
from decisionrl.benchmarks.suite import CaseContext, CaseResult
from decisionrl.envs.inventory.demand import DemandError, seasonal_series
from decisionrl.evaluation.results import Row, read_results, write_results

TINY = Budget(steps=3, batch=16, scenarios=32, measured_periods=20, warmup=10)


def run(case: TrainAndMeasure | SeriesCase | SampleEfficiency, directory: Path, data: Path | None = None) -> CaseResult:
    return case(CaseContext("quick", 0, "cpu", data, directory, lambda fraction, message: None))


def test_quick_has_every_setting_that_needs_no_files_and_no_case_twice() -> None:
    titles = [case.title for case in cases("quick", None)]
    assert len(titles) == len(set(titles))
    for needed in (
        "one_store_lost/mlp",
        "serial_system/gnn",
        "many_warehouses_lost_demand/gnn",
        "one_store_lost/mlp-paper",
    ):
        assert needed in titles
    assert "many_warehouses_series_lost_demand-synthetic/just_in_time" in titles


def test_full_has_all_sixteen_lost_sales_cells_and_seven_serial_ones() -> None:
    names = {case.name for case in cases("full", None) if case.method == "mlp"}
    assert len({n for n in names if n.startswith("one_store_lost")}) == 16
    assert len({n for n in names if n.startswith("serial_system")}) == 7
    assert "one_store_lost" in names
    assert "one_store_lost-L2-p19" in names


def test_a_cell_has_its_own_parameters_and_reference(tmp_path: Path) -> None:
    cell = {"store.lead_time": 1, "store.underage_cost": 4}
    result = run(TrainAndMeasure(setting="one_store_lost", policy="mlp", budget=TINY, overrides=cell), tmp_path)
    assert result.rows[0].reference == pytest.approx(4.04071, abs=1e-5)  # the exact optimum of L = 1, p = 4
    assert result.rows[0].reference_kind == "exact"


def test_the_worst_demand_costs_more_the_further_it_may_be(tmp_path: Path) -> None:
    result = run(TrainAndMeasure(setting="one_store_backlogged", policy="base_stock", budget=TINY), tmp_path)
    curve = result.series.curves["demand_shift"]
    assert list(curve.x) == [0.0, *SHIFTS]
    assert all(less < more for less, more in zip(curve.y, curve.y[1:], strict=False))


def test_the_capped_rule_has_the_optimum_and_its_own_limit_as_references(tmp_path: Path) -> None:
    case = TrainAndMeasure(setting="one_store_lost", policy="capped_base_stock", budget=TINY, against="best_capped")
    rows = {row.metric: row for row in run(case, tmp_path).rows}
    assert rows["cost"].reference == pytest.approx(6.83594, abs=1e-5)
    assert rows["cost_to_best_capped"].reference == pytest.approx(6.91228, abs=1e-5)
    assert rows["cost"].estimate == rows["cost_to_best_capped"].estimate


def test_a_warehouse_is_compared_with_the_tuned_rule_on_the_same_demand(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("decisionrl.benchmarks.inventory.RULE_STEPS", {"quick": 3, "full": 3})
    case = TrainAndMeasure(setting="one_warehouse_lost_demand", policy="gnn", budget=TINY, against="rule")
    rows = {row.metric: row for row in run(case, tmp_path).rows}
    assert rows["cost"].reference_kind == "peer"
    difference = rows["cost_minus_rule"].estimate.value
    assert rows["cost"].estimate.value == pytest.approx(rows["cost"].reference + difference)
    assert rows["cost_over_bound"].reference < rows["cost"].estimate.value


def test_series_are_measured_as_a_share_of_just_in_time(tmp_path: Path) -> None:
    data = tmp_path / "sales.npy"
    np.save(data, seasonal_series(items=6, stores=21, periods=171, seed=1).table.numpy())
    setting = "many_warehouses_real_data_lost_demand"
    oracle = run(SeriesCase(setting=setting, policy="just_in_time", budget=TINY), tmp_path / "a", data)
    network = run(SeriesCase(setting=setting, policy="data_driven_net", budget=TINY), tmp_path / "b", data)
    share = {r.metric: r.estimate for r in oracle.rows}["share_of_just_in_time"]
    assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)
    rows = {r.metric: r for r in network.rows}
    assert rows["cost"].reference == pytest.approx(oracle.rows[0].estimate.value)
    assert rows["share_of_just_in_time"].estimate.value < 1.0


def test_sample_efficiency_measures_every_size_and_the_largest_comes_first(tmp_path: Path) -> None:
    case = SampleEfficiency(setting="one_store_lost", policy="mlp", steps=2, batch=8, sizes=(4, 8))
    result = run(case, tmp_path)
    assert [row.metric for row in result.rows] == ["cost_with_8_scenarios", "cost_with_4_scenarios"]
    assert result.series.curve is not None
    assert list(result.series.curve.x) == [2.0, 3.0]


def test_series_that_do_not_fit_are_refused_before_anything_runs(tmp_path: Path) -> None:
    torch.save(torch.full((4, 21, 171), float("nan")), tmp_path / "nan.pt")
    with pytest.raises(DemandError, match=r"nan\.pt.*NaN"):
        cases("quick", tmp_path / "nan.pt")


def test_the_page_marks_targets_met_and_missed(tmp_path: Path) -> None:
    def row(method: str, value: float) -> Row:
        return Row.build(
            suite="inventory",
            case="serial_system",
            method=method,
            seed=0,
            metric="cost",
            value=value,
            low=value - 0.01,
            high=value + 0.01,
            reference=10.0,
            reference_kind="exact",
        )

    write_results(tmp_path / "inventory-quick", [row("mlp", 10.05), row("gnn", 10.5)])
    page = results_page.page(tmp_path)
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| serial_system/")}
    assert "✓ +0.500 % (+0.400 to +0.600)" in lines["serial_system/mlp"]
    assert "✗ +5.000 %" in lines["serial_system/gnn"]
    assert "not run" in lines["serial_system/echelon_stock"]


def test_results_kept_in_the_checkout_are_valid() -> None:
    kept = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*/results.json"))
    for path in kept:
        assert read_results(path), path
    assert EVALUATION_SEED not in range(100), "training seeds must not be the evaluation's"
