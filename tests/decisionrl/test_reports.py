"""Reports: all kinds of rows, nothing from outside the page, the same numbers as the rows."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from decisionrl.evaluation import (
    Curve,
    Edge,
    Network,
    Node,
    Row,
    SamplePath,
    Series,
    write_results,
    write_series,
)
from decisionrl.evaluation.figures import curve_figure, place_nodes
from decisionrl.evaluation.formatting import (
    MINUS,
    MISSING,
    THIN_SPACE,
    column_decimals,
    format_gap,
    format_seconds,
    format_value,
)
from decisionrl.evaluation.reports import GapScale, write_report
from decisionrl.evaluation.summaries import summarize

KINDS = ("exact", "bound", "oracle", "peer", "paper", "none")
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a page holds: tags, addresses, ids, text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.addresses, self.open, self.text = [], [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href"):
                self.links.append(value)
            elif name in ("src", "srcset", "action", "data"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def row(case, method, value, *, kind="none", seed=0, metric="cost", half=0.1, better="lower"):
    known = value is not None and half is not None
    return Row.build(
        suite="toy",
        case=case,
        method=method,
        seed=seed,
        metric=metric,
        value=value,
        low=value - half if known else None,
        high=value + half if known else None,
        n=100 if known else None,
        reference=None if kind == "none" else 10.0,
        reference_kind=kind,
        better=better,
        seconds=12.0,
        device="cpu",
        config_hash="0123456789ab",
        version="0.1.0",
    )


@pytest.fixture
def everything(tmp_path):
    """A directory with every kind of reference, several seeds, more metrics, unknown values, all series."""
    rows = []
    for index, kind in enumerate(KINDS):
        for place, method in enumerate(("mlp", "gnn", "rule <b>")):
            rows += [
                row(f"case_{kind}", method, 10.1 + place + seed / 4, kind=kind, seed=seed)
                for seed in range(1 + index % 2)
            ]
            rows.append(row(f"case_{kind}", method, 0.9, metric="fill rate", half=None, better="higher"))
    rows.append(row("case_return", "mlp", 9.0, kind="peer", better="higher"))
    rows.append(row("case_diverged", "mlp", None, kind="exact"))
    rows += [row("case_many", f"method_{index}", 10.0 + index, kind="exact") for index in range(12)]
    write_results(tmp_path, rows)
    x = list(range(0, 1000, 50))
    fall = [10 + 30 * math.exp(-step / 100) for step in x]
    curve = Curve(x_label="step", y_label="cost", x=x, y=fall, low=[y - 2 for y in fall], high=fall, reference=10.0)
    stores = [f"store {index}" for index in range(9)]
    path = SamplePath(
        periods=list(range(300)),
        stock={name: [float(index)] * 300 for index, name in enumerate(stores)},
        orders={f"w → {name}": [1.0] * 300 for name in stores},
        demand={name: [1.0, math.nan] * 150 for name in stores},
    )
    network = Network(
        [
            Node("factory", "supplier"),
            Node("w", "warehouse", 20.0),
            *[Node(name, "store", 2.0) for name in stores],
        ],
        [Edge("factory", "w", 3, 9.0), *[Edge("w", name, 2, 1.0) for name in stores]],
    )
    write_series(tmp_path, "case_exact", "mlp", Series(curve=curve, path=path, network=network))
    write_series(
        tmp_path,
        "case_exact",
        "gnn",
        Series(curve=Curve(x_label="step", y_label="cost", x=[0], y=[11.0], reference=10.0)),
    )
    write_series(tmp_path, "case_none", "mlp", Series(curve=Curve(x_label="step", y_label="cost", x=x, y=fall)))
    about = {
        "suite": "toy",
        "profile": "full",
        "command": "decisionrl bench toy",
        "failed": ["case_x/mlp seed 1"],
    }
    (tmp_path / "run.json").write_text(json.dumps(about))
    return tmp_path


def test_a_report_of_everything(everything):
    files = write_report(everything)
    assert [path.relative_to(everything).as_posix() for path in files] == [
        "results.md",
        "report.html",
        "figures/curve--case_exact.png",
        "figures/path--case_exact--mlp.png",
        "figures/network--case_exact--mlp.png",
        "figures/curve--case_none.png",
    ]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in files[2:])
    text = (everything / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == page.tags.count("figure") == 4
    assert page.addresses == []
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "http" not in text
    assert "@import" not in text
    assert "rule <b>" in page.text
    for fact in ("full profile", "decisionrl bench toy", "case_x/mlp seed 1", "Each seed", "fill rate"):
        assert fact in page.text
    for kind in KINDS[:-1]:
        assert f"10.00 {kind}" in page.text
    assert "+1.00 %" in page.text
    markdown = (everything / "results.md").read_text()
    assert "| mlp | 10.10 | 10.00 … 10.20 | 10.00 (exact) | +1.00 % |" in markdown
    assert "](figures/curve--case_exact.png)" in markdown


def test_a_report_is_the_same_when_written_again(everything):
    first = [path.read_bytes() for path in write_report(everything)]
    assert first == [path.read_bytes() for path in write_report(everything)]


def test_further_curves_stand_under_a_heading_of_their_own(tmp_path):
    write_results(tmp_path, [row("a", "mlp", 10.0)])
    curve = Curve(x_label="step", y_label="return", x=[0, 1], y=[1.0, 2.0], target=1.5)
    over_time = Curve(x_label="seconds", y_label="return", x=[0.0, 3.5], y=[1.0, 2.0])
    write_series(tmp_path, "a", "mlp", Series(curve=curve, curves={"wall_time": over_time}))
    files = [path.name for path in write_report(tmp_path)]
    assert files[2:] == ["curve--a.png", "curve--a--wall_time.png"]
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 2
    assert "Wall time" in page.text
    assert len(page.ids) == len(set(page.ids))


def test_a_curve_says_the_scale_of_its_axis_and_few_points_are_marked():
    few = Curve(x_label="pairs", y_label="success", x=[30, 300, 3000], y=[0.1, 0.2, 0.3], x_scale="log")
    many = Curve(x_label="step", y_label="success", x=range(100), y=[0.0] * 100)
    for curve, scale, marker in ((few, "log", "o"), (many, "linear", "")):
        axes = curve_figure("a", {"mlp": curve}, {"mlp": 0}, better=None, legend=False).axes[0]
        assert axes.get_xscale() == scale
        assert axes.lines[0].get_marker() == marker


def test_a_report_of_rows_alone(tmp_path):
    write_results(tmp_path, [row("only", "mlp", 10.0)])
    assert [path.name for path in write_report(tmp_path)] == ["results.md", "report.html"]
    page = Page((tmp_path / "report.html").read_text())
    assert "10.00" in page.text
    assert "Overview" not in page.text
    assert "svg" not in page.tags


def test_a_report_of_nothing(tmp_path):
    write_results(tmp_path, [])
    write_report(tmp_path)
    assert "no results" in Page((tmp_path / "report.html").read_text()).text


def test_summaries_sort_by_gap_and_join_seeds():
    rows = [row("a", "slow", 14.0, kind="exact"), row("a", "none", None, kind="exact")]
    rows += [row("a", "fast", value, kind="exact", seed=seed) for seed, value in enumerate((11.0, 13.0))]
    (summary,) = summarize(rows)
    assert [entry.method for entry in summary.entries] == ["fast", "slow", "none"]
    assert summary.better == "lower"
    fast, slow, _ = summary.entries
    assert (fast.value, fast.low, fast.high, fast.seeds) == (12.0, 11.0, 13.0, 2)
    assert (fast.gap, fast.gap_low, fast.gap_high) == pytest.approx((0.2, 0.1, 0.3))
    assert (slow.gap, slow.gap_low, slow.gap_high) == pytest.approx((0.4, 0.39, 0.41))


def test_the_gap_interval_of_a_return_is_turned_around():
    (summary,) = summarize([row("a", "mlp", 8.0, kind="exact", better="higher", half=1.0)])
    (entry,) = summary.entries
    assert summary.better == "higher"
    assert (entry.gap, entry.gap_low, entry.gap_high) == pytest.approx((0.2, 0.1, 0.3))


def test_a_mean_over_seeds_is_unknown_when_one_of_them_is():
    (summary,) = summarize([row("a", "mlp", 11.0, kind="exact"), row("a", "mlp", None, kind="exact", seed=1)])
    assert summary.entries[0].value is None
    assert summary.entries[0].gap is None


def test_the_gap_scale_is_monotone_and_holds_everything():
    cases = summarize([row("a", "x", 9.9, kind="exact"), row("a", "y", 500.0, kind="exact")])
    scale = GapScale.over(cases)
    places = [scale.place(gap) for gap in (-0.02, 0.0, 0.001, 0.01, 1.0, 49.0)]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] < 100
    labels, ticks = zip(*scale.ticks, strict=True)
    assert {"0", "+100"} <= set(labels)
    assert min(np.diff(ticks)) >= 10


def test_nodes_stand_in_columns_by_the_longest_way():
    nodes = [Node(name, "warehouse") for name in "abcd"]
    network = Network(nodes, [Edge("a", "b"), Edge("b", "c"), Edge("a", "c"), Edge("c", "d")])
    assert {name: x for name, (x, _) in place_nodes(network).items()} == {"a": 0, "b": 1, "c": 2, "d": 3}
    cycle = place_nodes(Network(nodes[:2], [Edge("a", "b"), Edge("b", "a")]))
    assert np.isfinite(list(cycle.values())).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_value(4.61234), "4.612"),
        (format_value(0.05), "0.05000"),
        (format_value(-1234.5), f"{MINUS}1{THIN_SPACE}234"),
        (format_value(0.0), "0.000"),
        (format_value(1.5e9), "1.500e+09"),
        (format_value(None), MISSING),
        (format_value(math.nan), MISSING),
        (format_value(12.3, 1), "12.3"),
        (format_gap(0.0031), "+0.31 %"),
        (format_gap(-0.2), f"{MINUS}20.0 %"),
        (format_gap(1e-9), "0.00 %"),
        (format_gap(None), MISSING),
        (format_seconds(0.2), "200 ms"),
        (format_seconds(75), "1 min 15 s"),
        (format_seconds(3_720), "1 h 02 min"),
        (format_seconds(None), MISSING),
    ],
)
def test_numbers_are_typeset(text, expected):
    assert text == expected


def test_columns_share_their_decimals_where_sizes_allow():
    assert column_decimals([9.9, 10.4, None]) == 3
    assert column_decimals([0.001, 1000.0]) is None
    assert column_decimals([]) is None
