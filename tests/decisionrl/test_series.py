"""Series files: round trips, holes, validation, several seeds."""

import json
import math

import pytest

from decisionrl.evaluation import Curve, Edge, Network, Node, SamplePath, Series, read_series, write_series
from decisionrl.evaluation.results import ResultsError
from decisionrl.evaluation.series import merge_seeds, series_file

FULL = Series(
    curve=Curve(x_label="step", y_label="cost", x=[0, 1], y=[3.0, 2.0], low=[2.0, 1.0], high=[4.0, 3.0], reference=1.5),
    path=SamplePath(periods=[0, 1], stock={"s": [1.0, 0.0]}, orders={"w → s": [0.0, 2.0]}, demand={"s": [1.0, 1.0]}),
    curves={
        "wall_time": Curve(x_label="seconds", y_label="cost", x=[0.5, 2.0], y=[3.0, 2.0], target=1.0, x_scale="log")
    },
    network=Network([Node("w", "warehouse", 3.0), Node("s", "store", 1.0)], [Edge("w", "s", 2.0, 5.0)]),
)


def test_round_trip(tmp_path):
    write_series(tmp_path, "one_store", "mlp", FULL)
    write_series(tmp_path, "one_store", "gnn", Series())
    assert read_series(tmp_path) == {("one_store", "mlp"): FULL, ("one_store", "gnn"): Series()}
    content = json.loads(series_file(tmp_path, "one_store", "mlp").read_text())
    assert content["network"]["edges"] == [{"from": "w", "to": "s", "lead_time": 2.0, "flow": 5.0}]
    assert list(content) == ["case", "method", "curve", "curves", "path", "network"]


def test_a_number_that_is_not_finite_is_a_hole(tmp_path):
    write_series(tmp_path, "a", "b", Series(curve=Curve(x_label="", y_label="", x=[0, 1], y=[math.inf, 1.0])))
    assert json.loads(series_file(tmp_path, "a", "b").read_text())["curve"]["y"] == [None, 1.0]
    curve = read_series(tmp_path)["a", "b"].curve
    assert math.isnan(curve.y[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"curve": {"x": [1]}}, "curve: field 'y': expected a list"),
        ({"curve": {"x": [1, 2], "y": [1]}}, "field 'y' has 1 numbers, 'x' has 2"),
        (
            {"curve": {"x": [0, 1], "y": [1, 2], "x_scale": "log"}},
            "'x_scale': expected 'linear', or 'log' over positive",
        ),
        ({"curve": {"x": [1], "y": [1], "x_scale": "square"}}, "got 'square'"),
        ({"curves": [1]}, "curves: expected an object, got list"),
        ({"curves": {"wall_time": {"x": [1]}}}, r"curves\['wall_time'\]: field 'y'"),
        ({"path": {"periods": [1], "stock": {"s": [1, 2]}}}, r"field \"stock\['s'\]\" has 2 numbers"),
        ({"network": {"nodes": [{"name": "a", "kind": "shop"}], "edges": []}}, "expected one of supplier"),
        ({"network": {"nodes": [], "edges": [{"from": "a", "to": "b"}]}}, "no node is named"),
        ({"network": {"nodes": [{}], "edges": []}}, "expected nodes with name and kind"),
    ],
)
def test_errors_name_the_file_and_the_field(tmp_path, content, message):
    path = series_file(tmp_path, "a", "b")
    path.parent.mkdir()
    path.write_text(json.dumps({"case": "a", "method": "b", **content}))
    with pytest.raises(ResultsError, match=message) as error:
        read_series(tmp_path)
    assert str(error.value).startswith(str(path))


def test_seeds_merge_into_an_interquartile_mean_with_its_interval():
    def run(y):
        return Series(curve=Curve(x_label="", y_label="", x=[0, 1], y=y))

    curve = merge_seeds([Series(), run([1.0, 4.0]), run([3.0, 2.0])]).curve
    assert (curve.y, curve.low, curve.high) == ([2.0, 3.0], [1.0, 2.0], [3.0, 4.0])
    assert merge_seeds([FULL]) == FULL
    assert merge_seeds([Series(curve=FULL.curve), run([1.0, 1.0])]).path is None


def test_the_best_and_the_worst_of_many_seeds_do_not_count():
    curves = [Curve(x_label="", y_label="", x=[0, 1], y=[y, 2 * y]) for y in (1.0, 2.0, 3.0, 4.0, 1000.0)]
    merged = merge_seeds([Series(curve=curve) for curve in curves]).curve
    assert merged.y == [3.0, 6.0]  # the mean of 2, 3 and 4
    assert all(low < y < high for low, y, high in zip(merged.low, merged.y, merged.high, strict=True))
    assert merge_seeds([Series(curve=curve) for curve in curves]).curve == merged


def test_seeds_measured_at_other_points_are_interpolated_where_all_of_them_are():
    def run(x, y):
        return Series(curves={"wall_time": Curve(x_label="", y_label="", x=x, y=y)})

    curve = merge_seeds([run([0.0, 10.0], [0.0, 10.0]), run([2.0, 4.0, 12.0], [2.0, 4.0, 12.0])]).curves["wall_time"]
    assert curve.x == [2.0, 10.0]
    assert curve.y == pytest.approx([2.0, 10.0])
    apart = merge_seeds([run([0.0, 1.0], [1.0, 1.0]), run([2.0, 3.0], [5.0, 5.0])]).curves["wall_time"]
    assert apart.y == [1.0, 1.0]


def test_a_hole_in_one_seed_is_a_hole_over_all():
    curves = [Curve(x_label="", y_label="", x=[0, 1], y=y) for y in ([1.0, 2.0], [3.0, math.nan])]
    merged = merge_seeds([Series(curve=curve) for curve in curves]).curve
    assert merged.y[0] == 2.0
    assert math.isnan(merged.y[1])
    assert math.isnan(merged.low[1])
