"""The preferences suite: its cases, data that cases share, small runs from data to report, and the page."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from decisionrl.benchmarks import results_page
from decisionrl.benchmarks.executors import Measurement
from decisionrl.benchmarks.preferences import Clones, FromSAC, Lab, LadderCase, ModesCase, OfflineCase, cases
from decisionrl.benchmarks.preferences_page import preferences_sections
from decisionrl.benchmarks.recorded import recorded
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, run_suite
from decisionrl.cli import SUITES
from decisionrl.evaluation.results import Row, config_hash, read_results, write_results
from decisionrl.evaluation.series import read_series
from decisionrl.evaluation.statistics import Estimate
from decisionrl.recipes import ON_RECORDED_DATA, recipe

TINY = {"steps": 6, "hidden": [8], "batch": 4}
TINY_PAIRS = {**TINY, "cloning_steps": 2, "warmup": 2}


def run(case: OfflineCase | LadderCase | ModesCase, directory: Path, *, data: Path | None = None) -> CaseResult:
    work = directory / "work" / "case"
    return case(CaseContext("quick", 0, "cpu", data, work, lambda fraction, message: None))


def number(row: Measurement) -> float:
    return row.estimate.value if isinstance(row.estimate, Estimate) else float(row.estimate)


def _on_lab(case: Case) -> bool:
    return isinstance(case.run, ModesCase) or isinstance(case.run.data, Lab)  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------- the cases


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_cases_have_names_of_their_own_and_recipes_that_exist(profile: str) -> None:
    chosen = cases(profile, None)
    titles = [case.title for case in chosen]
    assert len(titles) == len(set(titles))
    for needed in ("gridworld/cpl", "point/p_iql", "two-modes/oppo", "plate-slide/bc", "plate-slide/cpl"):
        assert needed in titles
    for case in chosen:
        name = "oppo" if isinstance(case.run, ModesCase) else case.run.recipe  # type: ignore[attr-defined]
        assert name in ON_RECORDED_DATA
        assert callable(recipe(name))
    assert SUITES["preferences"] == "decisionrl.benchmarks.preferences"


def test_quick_is_a_part_of_full_and_needs_one_data_set() -> None:
    quick, full = cases("quick", None), cases("full", None)
    assert {case.title for case in quick} < {case.title for case in full}
    sources = {case.run.data for case in quick if isinstance(case.run, OfflineCase)}
    assert [source for source in sources if not isinstance(source, Lab)] == [Clones(task="plate-slide")]
    assert not any(isinstance(case.run, LadderCase) for case in quick)
    assert sum(case.cost for case in quick) < sum(case.cost for case in full) / 10


def test_full_has_the_ladders_the_other_tasks_and_the_data_of_sac() -> None:
    titles = {case.title for case in cases("full", None)}
    for needed in ("plate-slide-pairs/cpl", "plate-slide-noise/sft", "plate-slide/cpl_return", "drawer-open/cpl"):
        assert needed in titles
    assert {f"hopper-medium-replay/{name}" for name in ("bc", "bc_top10", "iql", "dt", "oppo")} <= titles


def test_a_configuration_is_known_again_by_its_hash_and_another_is_not() -> None:
    case = OfflineCase(data=Lab("point"), recipe="cpl", metric="mean_return", arguments={"alpha": 0.1})
    again = OfflineCase(data=Lab("point"), recipe="cpl", metric="mean_return", arguments={"alpha": 0.1})
    hashes = [
        config_hash({"run": each})
        for each in (
            case,
            replace(case, arguments={"alpha": 0.2}),
            replace(case, data=Lab("gridworld")),
            replace(case, data=Clones(task="point")),
            replace(case, data=FromSAC(env="Hopper-v5", name="point", steps=1)),
            ModesCase(),
        )
    ]
    assert config_hash({"run": again}) == hashes[0]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("case", [case for case in cases("quick", None) if _on_lab(case)], ids=lambda case: case.title)
def test_recipes_can_be_made_as_the_suite_asks_for_them_on_labs(case: Case) -> None:
    about = case.run
    if isinstance(about, ModesCase):
        experiment = recipe("oppo")(data="lab/two-modes", **about.arguments)
    else:
        assert isinstance(about, OfflineCase)
        assert isinstance(about.data, Lab)
        experiment = recipe(about.recipe)(data=f"lab/{about.data.name}", **about.arguments)
    assert experiment.evaluate is not None
    assert experiment.source.sample() is not None


# ------------------------------------------------------------------------------------------- data that are shared


def slowly(*, env: str, seed: int, out: Path) -> list[Path]:
    """A maker of ``ENV-a`` and ``ENV-b`` that notes in a log each time it runs."""
    with (out.parent / "log").open("a") as log:
        log.write(f"{env} {seed}\n")
    made = []
    for name in ("a", "b"):
        folder = out / f"{env}-{name}"
        folder.mkdir(parents=True)
        time.sleep(0.3)
        (folder / "data").write_text(f"{env} {seed}")
        made.append(folder)
    return made


def ask(root: Path, name: str) -> None:
    assert (recorded(root, name, slowly, env="toy", seed=3) / "data").read_text() == "toy 3"


def test_of_two_processes_one_makes_the_data_and_the_other_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    asking = [context.Process(target=ask, args=(tmp_path, name)) for name in ("toy-a", "toy-b")]
    for process in asking:
        process.start()
    for process in asking:
        process.join(timeout=60)
    assert [process.exitcode for process in asking] == [0, 0]
    assert (tmp_path / "log").read_text() == "toy 3\n"
    assert not list(tmp_path.glob("*.part"))


def test_what_is_there_is_kept_and_what_a_stopped_run_left_is_made_anew(tmp_path: Path) -> None:
    part = tmp_path / "slowly-toy-3.part" / "toy-a"
    part.mkdir(parents=True)
    ask(tmp_path, "toy-a")
    ask(tmp_path, "toy-b")
    assert (tmp_path / "log").read_text() == "toy 3\n"


def test_data_that_a_maker_does_not_make_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"toy-c was not made in .*; there are toy-a, toy-b"):
        recorded(tmp_path, "toy-c", slowly, env="toy", seed=0)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Clones(task="plate-slide"), "plate-slide-clones-seed0"),
        (FromSAC(env="Hopper-v5", name="hopper-medium", steps=10), "hopper-medium"),
    ],
)
def test_a_folder_without_the_data_is_refused_by_name(data: Clones | FromSAC, name: str, tmp_path: Path) -> None:
    case = OfflineCase(data=data, recipe="bc", metric="success")
    with pytest.raises(FileNotFoundError, match=rf"{name} does not exist; decisionrl make-dataset makes it"):
        run(case, tmp_path, data=tmp_path)
    (tmp_path / name).mkdir()
    context = CaseContext("quick", 0, "cpu", tmp_path, tmp_path / "work" / "case", lambda fraction, message: None)
    assert data(context) == str(tmp_path / name)


def test_a_case_without_its_data_fails_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, out = tmp_path / "data", tmp_path / "out"
    here.mkdir()
    chosen = [
        Case("plate-slide", "bc", OfflineCase(data=Clones(task="plate-slide"), recipe="bc", metric="success")),
        Case("gridworld", "bc", _lab("gridworld", "bc", curve=False, arguments=TINY)),
    ]
    assert run_suite("preferences", chosen, data=here, out=out) == 1
    assert "plate-slide-clones-seed0 does not exist" in (out / "failures" / "plate-slide--bc-0.txt").read_text()
    assert {row.case for row in read_results(out)} == {"gridworld"}
    assert "failed: plate-slide/bc" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- small runs


def _lab(name: str, method: str, **fields: object) -> OfflineCase:
    return OfflineCase(data=Lab(name), recipe=method, metric="mean_return", episodes=4, **fields)  # type: ignore[arg-type]


def test_a_suite_leaves_rows_series_and_a_report(tmp_path: Path) -> None:
    chosen = [
        Case("point", "cpl", _lab("point", "cpl", arguments=TINY_PAIRS)),
        Case("point", "bc", _lab("point", "bc", arguments=TINY)),
    ]
    assert run_suite("preferences", chosen, out=tmp_path, seeds=2) == 0
    rows = read_results(tmp_path)
    assert {(row.case, row.method, row.seed) for row in rows} == {
        ("point", method, seed) for method in ("cpl", "bc") for seed in (0, 1)
    }
    for row in rows:
        assert row.metric in ("mean_return", "cpu_seconds", "updates_per_second")
        assert row.value is not None
        if row.metric == "mean_return":
            assert row.n == 4
            assert row.low is not None
            assert row.low <= row.value < 0
        else:
            assert row.value > 0
    curve = read_series(tmp_path)["point", "cpl"].curve
    assert curve is not None
    assert (curve.x_label, curve.y_label) == ("updates", "mean return")
    assert list(curve.x) == [1, 2, 3, 4, 5, 6]
    assert "point" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "curve--point.png").exists()
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == []


def test_a_ladder_trains_once_for_every_value(tmp_path: Path) -> None:
    case = LadderCase(
        metric="success",
        data=Lab("point"),
        recipe="cpl",
        argument="flip",
        values=(0.0, 0.4),
        label="percent",
        x_label="wrong labels, %",
        scale=100.0,
        arguments={**TINY_PAIRS, "pairs": 20},
    )
    shown: list[float] = []
    context = CaseContext("quick", 0, "cpu", None, tmp_path, lambda fraction, message: shown.append(fraction))
    result = case(context)
    assert [row.metric for row in result.rows] == ["success_at_0_percent", "success_at_40_percent"]
    curve = result.series.curve
    assert curve is not None
    assert list(curve.x) == [0.0, 40.0]
    assert list(curve.y) == [number(row) for row in result.rows]
    assert curve.y[0] != curve.y[1], "the argument does not reach the recipe"
    assert shown == sorted(shown)
    assert 0.9 < shown[-1] <= 1


def test_two_modes_say_whether_the_context_is_on_the_preferred_side(tmp_path: Path) -> None:
    case = ModesCase(arguments={"teacher": "good", "steps": 4, "batch": 4, "warmup": 1})
    result = run(case, tmp_path)
    rows = {row.metric: row for row in result.rows}
    assert list(rows) == ["mean_return", "nearer", "cpu_seconds", "updates_per_second"]
    assert 0 <= number(rows["nearer"]) <= 1
    assert (rows["nearer"].reference, rows["nearer"].better) == (1.0, "higher")
    (between,) = result.series.curves.values()
    assert (between.x[0], between.x[-1]) == (0.0, 1.0)
    assert len(between.y) == len(between.x)


def test_hindsight_encodings_are_drawn_by_deciles_of_what_followed(tmp_path: Path) -> None:
    case = _lab("point", "oppo", curve=False, arguments={"steps": 3, "batch": 4, "warmup": 1})
    result = run(case, tmp_path)
    assert result.series.curve is None
    (encodings,) = result.series.curves.values()
    assert list(encodings.x) == [10.0 * tenth for tenth in range(1, 11)]
    assert all(y >= 0 for y in encodings.y)


@pytest.mark.slow
def test_the_case_of_two_modes_runs_as_the_suite_has_it(tmp_path: Path) -> None:
    (case,) = (case.run for case in cases("quick", None) if case.title == "two-modes/oppo")
    assert isinstance(case, ModesCase)
    rows = {row.metric: row for row in run(case, tmp_path).rows}
    assert number(rows["nearer"]) > 0.9


# ------------------------------------------------------------------------------------------------------ the page


def row(case: str, method: str, metric: str, value: float, seed: int = 0, **bounds: float) -> Row:
    return Row.build(
        suite="preferences",
        case=case,
        method=method,
        seed=seed,
        metric=metric,
        value=value,
        better="higher",
        **bounds,  # type: ignore[arg-type]
    )


def line(page: str, start: str) -> str:
    return next(each for each in page.splitlines() if each.startswith(start))


def test_the_page_pairs_cpl_with_the_baselines_over_equal_seeds(tmp_path: Path) -> None:
    rows = []
    for seed, (cpl, bc, sft) in enumerate([(0.7, 0.5, 0.72), (0.9, 0.6, 0.86), (0.8, 0.55, 0.81)]):
        rows += [row("plate-slide", name, "success", value, seed) for name, value in (("cpl", cpl), ("bc", bc))]
        rows += [row("plate-slide", "sft", "success", sft, seed), row("plate-slide", "cpl", "cpu_seconds", 30.0, seed)]
    rows.append(row("plate-slide", "bc", "success", 0.0, seed=3))  # of a seed that CPL does not have
    write_results(tmp_path / "preferences-full", rows)
    page = results_page.page(tmp_path)
    assert "## Preferences and offline data (full profile)" in page
    assert "(quick profile)" not in page
    # differences 0.2, 0.3, 0.25: mean 0.25, standard error 0.05 / sqrt(3), t_2 = 4.303
    assert line(page, "| plate-slide | cpl − bc |") == (
        "| plate-slide | cpl − bc | +0.250 (+0.126 to +0.374) | 3 | yes |"
    )
    assert line(page, "| plate-slide | cpl − sft |").endswith("| 3 | no |")
    assert line(page, "| plate-slide | cpl | 0.8 (").endswith("| 3 | 30 |")
    assert line(page, "| plate-slide | bc | 0.4125 (").endswith("| 4 | – |")


def test_the_page_shows_ladders_rung_by_rung_and_leaves_out_what_was_not_run() -> None:
    rows = [row("plate-slide-pairs", "cpl", f"success_at_{n}_pairs", n / 10_000) for n in (3000, 30, 300)]
    rows += [row("plate-slide-noise", "sft", "success_at_40_percent", 0.4, low=0.3, high=0.5)]
    rows += [row("hopper-medium", "iql", "normalized_score", 45.0, seed) for seed in (0, 1)]
    page = "\n\n".join(preferences_sections(rows, "full"))
    assert "| case | method | 30 pairs | 300 pairs | 3,000 pairs |" in page
    assert "| plate-slide-pairs | cpl | 0.003 | 0.03 | 0.3 |" in page
    assert "| plate-slide-noise | sft | 0.4 (0.3 to 0.5) |" in page
    assert "| hopper-medium | iql | 45 (45 to 45) | 2 | – |" in page
    assert "Success on Meta-World" not in page
    assert "CPL beside the baselines" not in page
    assert preferences_sections([], "full") == []


def test_a_difference_of_one_seed_decides_nothing() -> None:
    rows = [row("door-open", "cpl", "success", 0.7), row("door-open", "bc", "success", 0.5)]
    page = "\n\n".join(preferences_sections(rows, "quick"))
    assert "| door-open | cpl − bc | +0.200 | 1 | – |" in page


def test_the_page_says_what_the_speed_of_preferences_is(tmp_path: Path) -> None:
    speed = Row.build(
        suite="speed-preferences", case="256x256", method="cpl", seed=0, metric="speedup", value=1.5, better="higher"
    )
    write_results(tmp_path / "speed-preferences", [speed])
    page = results_page.page(tmp_path)
    assert "## Speed: speed-preferences" in page
    assert "a plain loop's seconds over the library's" in page
