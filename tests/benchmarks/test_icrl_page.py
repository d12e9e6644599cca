"""The page's part on the in-context suite: enhancements with their intervals, the filter's tables, the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from decisionrl.benchmarks import results_page
from decisionrl.benchmarks.icrl import SENSITIVITY, cases
from decisionrl.benchmarks.icrl_page import PUBLISHED, Enhancement, context_curves, icrl_sections
from decisionrl.evaluation.results import Row, write_results
from decisionrl.evaluation.series import Curve, Series, write_series

NOISY = "darkroom-noise30"


def row(case: str, method: str, value: float, seed: int = 0, metric: str = "mean_return", **about: float) -> Row:
    return Row.build(
        suite="icrl",
        case=case,
        method=method,
        seed=seed,
        metric=metric,
        value=value,
        better="higher",
        reference_kind="exact" if "reference" in about else "none",
        **about,  # type: ignore[arg-type]
    )


def seeds(case: str, method: str, *values: float, metric: str = "mean_return") -> list[Row]:
    return [row(case, method, value, seed, metric) for seed, value in enumerate(values)]


def shown(rows: list[Row], profile: str = "full") -> str:
    return "\n\n".join(icrl_sections(rows, profile))


def below(page: str, heading: str) -> list[str]:
    """The lines of the section with that heading."""
    return page.split(f"### In context: {heading}\n")[1].split("\n### ")[0].splitlines()


def curve(*y: float, band: float | None = None, reference: float | None = None) -> Series:
    low, high = ([each + end for each in y] if end else None for end in (band and -band, band))
    x = list(range(1, len(y) + 1))
    return Series(curve=Curve(x_label="episode", y_label="return", x=x, y=y, low=low, high=high, reference=reference))


def test_no_rows_make_nothing() -> None:
    assert icrl_sections([], "full") == []
    assert context_curves({}) is None


def test_enhancements_are_paired_over_seeds() -> None:
    rows = [*seeds(NOISY, "ad", 4, 5, 6), *seeds(NOISY, "ad_lhf", 6, 5, 10)]
    # The means are 5 and 7. 0.4 + (6 - 5.6) / 5, (5 - 7) / 5, (10 - 8.4) / 5 have the standard deviation 0.36661, the
    # seeds' own 1/2, 0, 2/3 one of 0.34694; t_2 = 4.30265.
    assert below(shown(rows), "30 % of the histories at random")[-1] == (
        "| darkroom | ad | 5 (2.516 to 7.484) | 7 (0.4276 to 13.57) | +40.0 % (-51.1 to +131.1) "
        "| +38.9 % (-47.3 to +125.1) | +90.7 % | 3 |"
    )


def test_an_enhancement_is_exact_where_it_is_the_same_in_every_seed() -> None:
    gain = Enhancement.of({0: 4.0, 1: 8.0, 2: 2.0}, {0: 5.0, 1: 10.0, 2: 2.5})
    for estimate in (gain.of_means, gain.by_seed):
        assert estimate is not None
        assert [estimate.value, estimate.low, estimate.high] == pytest.approx([0.25, 0.25, 0.25])


def test_bandits_are_shown_by_their_regret_and_nowhere_else() -> None:
    rows = [*seeds("bandit-mixture", "dpt", 7.0, 9.0, metric="regret"), *seeds("bandit-mixture", "dpt", 75.0, 73.0)]
    rows += [*seeds("bandit-mixture", "ucb", 6.0, metric="regret"), *seeds("bandit-mixture", "ucb", 76.0)]
    page = shown(rows)
    *_, first, second = below(page, "bandits")
    assert first == "| bandit-mixture | ucb | 6 | 76 |"
    assert second == "| bandit-mixture | dpt | 8 (-4.706 to 20.71) | 74 (61.29 to 86.71) |"  # 12.706 times 1
    assert page.count("bandit-mixture") == 2


def test_only_seeds_that_both_have_are_compared() -> None:
    gain = Enhancement.of({0: 4.0, 1: 6.0, 7: 100.0}, {1: 6.0, 0: 8.0, 3: 0.0})
    assert gain.seeds == 2
    assert gain.of_means is not None
    assert gain.of_means.value == pytest.approx(0.4)
    assert gain.by_seed is not None
    assert gain.by_seed.value == pytest.approx(0.5)
    # 1.0 and 0.0: half of the difference is the standard error; t_1 = 12.706
    assert gain.by_seed.high == pytest.approx(0.5 + 12.706 * 0.5, abs=1e-3)


def test_there_is_no_enhancement_over_nothing() -> None:
    nothing = Enhancement.of({0: 0.0, 1: 0.0}, {0: 1.0, 1: 2.0})
    assert nothing.cells == ("–", "–")
    partly = Enhancement.of({0: 0.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert partly.cells[0].startswith("+50.0 % (")
    assert partly.cells[1] == "–", "a seed of which the base is 0 has none"
    assert Enhancement.of({0: 1.0}, {}).cells == ("–", "–")


def test_one_seed_has_the_interval_over_tasks_and_no_other() -> None:
    rows = [row("large-mixed", "dpt", 10, low=8, high=12), row("large-mixed", "dpt_lhf", 12, low=9, high=15)]
    page = shown(rows)
    line = "| large | dpt | 10 (8 to 12) | 12 (9 to 15) | +20.0 % | +20.0 % | – | 1 |"
    assert below(page, "learners of different rates")[-1] == line
    assert "one seed; where" in page


def test_what_was_not_run_is_left_out() -> None:
    rows = [*seeds("permuted-clean", "dicp", 20, 22), *seeds("permuted-clean", "dpt_lhf", 30)]
    page = shown(rows)
    assert below(page, "clean histories")[-2:] == [
        "| permuted | dpt | – | 30 | – | – | +2.6 % | 0 |",
        "| permuted | dicp | 21 (8.294 to 33.71) | – | – | – | +9.2 % | 0 |",
    ]
    for left_out in ("at random", "first half", "last episodes", "the data", "sensitivity", "costs", "!["):
        assert left_out not in page
    assert "E = (" not in shown(seeds(NOISY, "ad", 1, metric="training_seconds"))


def test_kinds_of_data_have_a_table_each() -> None:
    rows = [each for kind in ("clean", "half", "light") for each in seeds(f"darkroom-{kind}", "ad", 4, 5)]
    page = shown(rows)
    for heading in ("clean histories", "the first half of each history", "a smaller model"):
        (line,) = [line for line in below(page, heading) if line.startswith("| darkroom |")]
        assert line.startswith("| darkroom | ad | 4.5 (")


def test_first_and_last_episodes_stand_beside_what_is_possible() -> None:
    metrics = {"first_return": 1.5, "last_return": 9.0}
    rows = [
        row(NOISY, method, value, metric=metric, reference=16.25)
        for method in ("ad", "ad_lhf_alpha1")
        for metric, value in metrics.items()
    ]
    lines = below(shown(rows), "first and last episodes")
    assert lines[-1] == f"| {NOISY} | ad | 1.5 | 9 | 16.25 |"
    assert not any("alpha" in line for line in lines)


def test_the_data_are_compared_before_and_after_the_filter() -> None:
    rows = [
        *seeds(NOISY, "dpt", 0.3, 0.3, metric="random_share"),
        *seeds(NOISY, "ad_lhf", 0.02, 0.04, metric="random_share"),
        *seeds(NOISY, "ad_lhf_lambda0", 0.2, 0.2, metric="random_share"),
        *seeds(NOISY, "dpt", 10, 11, metric="data_return"),
        *seeds(NOISY, "ad_lhf", 14, 15, metric="data_return"),
    ]
    line = below(shown(rows), "what the filter does to the data")[-1]
    assert line == f"| {NOISY} | 30.0 % | 3.0 % | 10.5 | 14.5 | +4.000 (+4.000 to +4.000) | 2 |"


def test_variants_of_the_filter_are_compared_with_none() -> None:
    rows = [
        *seeds(NOISY, "ad_lhf_weight", 5.0),
        *seeds(NOISY, "ad_lhf_alpha0.25", 6.0),
        *seeds(NOISY, "ad_lhf_lambda1000", 3.0),
        *seeds(NOISY, "ad_lhf_lambda0", 4.5),
        *seeds(NOISY, "ad_lhf_lambda0", 0.05, metric="random_share"),
        *seeds(NOISY, "ad_lhf_lambda0", 13.5, metric="data_return"),
        *seeds(NOISY, "ad", 4.0),
        *seeds(NOISY, "ad_lhf", 8.0),
        *seeds(NOISY, "dpt_lhf", 8.0),
    ]
    lines = [line for line in below(shown(rows), "sensitivity of the filter") if line.startswith(f"| {NOISY}")]
    assert lines == [
        f"| {NOISY} | ad | none | 4 | – | – | – | – | 1 |",
        f"| {NOISY} | ad | λ = 1, linear, resample | 8 | +100.0 % | +100.0 % | – | – | 1 |",
        f"| {NOISY} | ad | λ = 0 | 4.5 | +12.5 % | +12.5 % | 5.0 % | 13.5 | 1 |",
        f"| {NOISY} | ad | λ = 1000 | 3 | -25.0 % | -25.0 % | – | – | 1 |",
        f"| {NOISY} | ad | α = 0.25 | 6 | +50.0 % | +50.0 % | – | – | 1 |",
        f"| {NOISY} | ad | weight | 5 | +25.0 % | +25.0 % | – | – | 1 |",
    ]


def test_every_variant_of_the_suite_has_a_line() -> None:
    rows = [each for name in SENSITIVITY for each in seeds(NOISY, f"ad_lhf_{name}", 1.0)]
    lines = below(shown(rows), "sensitivity of the filter")
    assert sum(line.startswith(f"| {NOISY}") for line in lines) == len(SENSITIVITY)


def test_costs_are_means_over_seeds() -> None:
    rows = [
        *seeds(NOISY, "dicp", 100, 300, metric="training_seconds"),
        *seeds(NOISY, "dicp_lhf", 150, metric="training_seconds"),
        *seeds(NOISY, "dicp", 50, 60, metric="evaluation_seconds"),
    ]
    assert below(shown(rows), "costs")[-1] == f"| {NOISY} | dicp | 200 | 150 | 55 | – |"


def test_published_numbers_are_those_of_the_suite_and_have_the_printed_averages() -> None:
    assert set(PUBLISHED) <= {case.name for case in cases("full", None)}
    printed = {
        "clean": {"ad": 8.8, "dicp": 9.1, "dpt": 11.9},
        "noise30": {"ad": 27.8, "dicp": 12.5, "dpt": 12.4},
        "half": {"ad": 11.2, "dicp": 4.9, "dpt": 8.3},
        "light": {"ad": 12.6, "dicp": 13.0, "dpt": 4.2},
    }
    for kind, averages in printed.items():
        for backbone, average in averages.items():
            own = [values[backbone] for case, values in PUBLISHED.items() if case.endswith(f"-{kind}")]
            assert len(own) == 4
            assert np.mean(own) == pytest.approx(average, abs=0.051)


def test_the_figure_has_a_panel_for_each_backbone_with_bands() -> None:
    series = {
        (NOISY, "dicp"): curve(1, 2, 3),
        (NOISY, "ad"): curve(1, 2, 4, band=0.5, reference=16.0),
        (NOISY, "ad_lhf"): curve(2, 5, 8, band=1.0, reference=16.0),
        (NOISY, "ad_lhf_alpha1"): curve(9, 9, 9),
        ("darkroom-clean", "dpt"): curve(7, 7, 7),
        (NOISY, "dpt"): Series(),
    }
    figure = context_curves(series)
    assert figure is not None
    assert [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes] == ["ad", "dicp"]
    ad, dicp = figure.axes
    base, filtered, largest = (np.asarray(line.get_ydata()).tolist() for line in ad.lines)
    assert (base, filtered, largest) == ([1, 2, 4], [2, 5, 8], [16, 16])
    bands = [each for each in ad.collections if isinstance(each, PolyCollection)]
    vertices = [np.asarray(band.get_paths()[0].vertices)[:, 1] for band in bands]
    assert [(each.min(), each.max()) for each in vertices] == [(0.5, 4.5), (1.0, 9.0)]
    assert (len(dicp.lines), len(dicp.collections)) == (1, 0), "one seed has no band"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["without LHF", "with LHF", "largest return"]


def test_the_page_and_its_figure_are_written_together(tmp_path: Path) -> None:
    results, target, written = tmp_path / "results", tmp_path / "docs" / "results.md", []
    target.parent.mkdir()
    for profile in ("full", "quick"):
        write_results(results / f"icrl-{profile}", [*seeds(NOISY, "ad", 4), *seeds(NOISY, "ad_lhf", 8)])
    results_page.main([str(results), str(target)], written.append)
    assert written == [target]
    page = target.read_text()
    assert "## In-context RL (full profile)" in page
    assert "## In-context RL (quick profile)" in page
    assert "![" not in page, "rows without curves have no figure"

    for profile in ("full", "quick"):
        write_series(results / f"icrl-{profile}", NOISY, "ad", curve(1, 2, 4))
    results_page.main([str(results), str(target)], written.append)
    image = target.parent / "images" / "in_context_curves.png"
    assert written[1:] == [target, image]
    assert image.read_bytes().startswith(b"\x89PNG")
    assert target.read_text().count("](images/in_context_curves.png)") == 1
