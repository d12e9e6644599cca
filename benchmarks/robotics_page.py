"""The part of docs/results.md on the robotics suite, from the rows of one profile, and its figure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from matplotlib.figure import Figure

from decisionrl.benchmarks.page_tables import (
    Found,
    by_method,
    excludes_zero,
    line,
    number,
    over_seeds,
    paired,
    section,
    signed,
    student,
    table,
    with_interval,
)
from decisionrl.benchmarks.robotics import CANDIDATES, MODES, SOLVED, VARIANTS
from decisionrl.evaluation.figures import Ladder, ladder_figure
from decisionrl.evaluation.results import Row
from decisionrl.evaluation.series import Curve
from decisionrl.evaluation.statistics import Estimate

OURS = MODES[0]
ORACLE = "-oracle"
PIXELS = "_pixels"
CASE = re.compile(r"(?P<task>\w+)-To(?P<observations>\d+)(?:s(?P<stride>\d+))?(?P<epsilon>-epsilon)?")

BOUNDS: Mapping[str, Sequence[tuple[int, Fraction]]] = {
    "return_side": [(5, Fraction(1, 2))],
    "count_visits": [(1, Fraction(4, 27)), (5, Fraction(1, 4))],
    "cue_reach": [(36, Fraction(1, 2))],
}
"""Task -> what imitation can reach whose window spans so many frames at most."""

DRAWN = ("return_side", "count_visits")
LADDER_IMAGE = "images/context_ladder.png"
"""Beside the page."""

FASTER = 5.0
"""What training on cached embeddings is to save: the seconds from end to end over its own."""

ROUNDING = 1e-9
"""Of means of shares; a mean of exactly what is asked for counts as that."""


@dataclass(frozen=True, order=True)
class Rung:
    """What the name of a case says, in the order of the tables."""

    task: str
    epsilon: bool
    stride: int
    observations: int

    @classmethod
    def of(cls, case: str) -> Rung | None:
        """None for the oracle."""
        match = CASE.fullmatch(case)
        if match is None:
            return None
        return cls(match["task"], match["epsilon"] is not None, int(match["stride"] or 1), int(match["observations"]))

    @property
    def bound(self) -> Fraction | None:
        """On the success of who imitates."""
        span = (self.observations - 1) * self.stride + 1
        return next((bound for longest, bound in BOUNDS.get(self.task, ()) if span <= longest), None)

    @property
    def label(self) -> str:
        """Within the table of a task."""
        apart = f", {self.stride} apart" if self.stride > 1 else ""
        return f"{self.observations}{apart}{', epsilon' if self.epsilon else ''}"


def robotics_sections(rows: Sequence[Row], profile: str) -> list[str]:
    """Headings, words and tables; nothing where there are no rows."""
    if not rows:
        return []
    seeds = len({row.seed for row in rows})
    over = (
        f"means over {seeds} seeds with Student's 95 % intervals over seeds, which may reach beyond 0 and 1"
        if seeds > 1
        else "one seed"
    )
    success, void = by_method(rows, "success"), _void(rows)
    tasks = dict.fromkeys(rung.task for case, _ in success if (rung := Rung.of(case)))
    return [
        f"## Robotics: a long past ({profile} profile)",
        f"`decisionrl bench robotics`, {over}; where there is one seed, the 95 % interval is over its episodes. "
        "Demonstrations are recorded anew for every seed, all methods of a seed learn from the same, and every policy "
        "is measured from the same starts. Past action tokens are trained (predict: past-token prediction, arXiv "
        "2505.09561), left untrained (unsupervised: the paper's baseline), or left out (absent). Seconds are wall time "
        "on one thread.",
        *section("### Controls", CONTROLS, _controls(rows, void)),
        *(_picture(rows) if profile == "full" else []),
        *(part for task in tasks for part in _ladder(rows, task, void)),
        *_section("### What past-token prediction gains", "", _differences(success, void)),
        *_section("### Some past tokens, no diffusion, another network", "", _variants(rows, void)),
        *section("### Images", IMAGES, _pixels(rows)),
        *section("### Training on cached embeddings beside end to end", _cached(rows)),
        *_section("### Diagnostics", DIAGNOSTICS, _diagnostics(rows, void)),
    ]


CONTROLS = (
    "The oracle sees what is hidden, with a context of two observations, and is trained for as many updates as all "
    f"others on its task. Where its mean does not reach {SOLVED}, the training is too short for the "
    "comparisons of that task to mean anything, and they are void."
)

VOID = f"**Void**: the oracle of the task does not reach {SOLVED}, so what is compared there proves nothing."

IMAGES = (
    "ReturnSide seen as images of 32 x 32 pixels. An image has no room for what is hidden, so there is no oracle. "
    "`To2/predict` is the short-context policy alone, whose encoder `cached` keeps: its training and the embedding of "
    "all frames are part of the whole training of `cached`."
)

DIAGNOSTICS = (
    "Predictability: how well an action tells the next one, of the experts' actions over the policy's; 1 is the "
    "experts', more is a copycat. Errors are squared, of the present action (validation) and of the past tokens, on "
    "demonstrations that were not trained on, in normalized units. With several candidates, the one is executed whose "
    "past tokens are nearest to what was done. Means over seeds."
)


def context_ladder(rows: Sequence[Row]) -> Figure | None:
    """Success over the observations in the context, one panel for each task; None where nothing is to be compared."""
    panels = [panel for task in DRAWN if (panel := _panel(rows, task))]
    return ladder_figure(panels, bound_label="bound on imitation") if panels else None


def _void(rows: Sequence[Row]) -> set[str]:
    """The tasks that their oracle does not solve."""
    return {task for task, solved in _oracles(rows).items() if solved.value < SOLVED - ROUNDING}


def _oracles(rows: Sequence[Row]) -> dict[str, Estimate]:
    cases = dict.fromkeys(row.case for row in rows if row.case.endswith(ORACLE))
    found = {case.removesuffix(ORACLE): over_seeds(rows, case, OURS, "success") for case in cases}
    return {task: solved for task, solved in found.items() if solved is not None}


def _section(heading: str, words: str, shown: str | None) -> list[str]:
    """A table whose void rows, if there are any, are explained."""
    return section(heading, words, VOID if shown is not None and "(void)" in shown else "", shown)


def _named(case: str, void: Collection[str]) -> str:
    """The case, and whether its comparisons count."""
    rung = Rung.of(case)
    return f"{case} (void)" if (rung.task if rung else case.removesuffix(ORACLE)) in void else case


def _controls(rows: Sequence[Row], void: Collection[str]) -> str | None:
    experts = {row.case.removesuffix(ORACLE): row.reference for row in rows if row.metric == "success"}
    lines = [
        line(task, _share(solved), number(experts[task]), str(solved.n), "no: void" if task in void else "yes")
        for task, solved in _oracles(rows).items()
    ]
    return table(["task", "success of the oracle", "of the demonstrations", "seeds", f"at least {SOLVED}"], lines)


def _ladder(rows: Sequence[Row], task: str, void: Collection[str]) -> list[str]:
    """Success by context and mode."""
    if task.endswith(PIXELS):
        return []
    lines, one = [], False
    for rung, case in _rungs(rows, task):
        found = {mode: over_seeds(rows, case, mode, "success") for mode in MODES}
        known = {mode: estimate for mode, estimate in found.items() if estimate is not None}
        if not known:
            continue
        one |= rung.observations == 1
        limit = math.inf if rung.bound is None else rung.bound + ROUNDING
        over = [mode for mode, estimate in known.items() if _least(estimate) > limit]
        within = "–" if rung.bound is None else f"no: {', '.join(over)}" if over else "yes"
        seeds = sorted({estimate.n for estimate in known.values()})
        lines.append(
            line(
                f"{rung.label} (void)" if task in void else rung.label,
                *(_share(found[mode]) for mode in MODES),
                "–" if rung.bound is None else str(rung.bound),
                within,
                " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))),
            )
        )
    words = [
        "" if task in _oracles(rows) else "No oracle was run, so nothing says whether the training is long enough.",
        "With one observation there are no past tokens, and the three are one." if one else "",
        "The bound is on who imitates from so short a window, in expectation; a mean is within it unless its whole "
        "interval is above."
        if task in BOUNDS
        else "",
    ]
    head = ["observations", *MODES, "bound", "within it", "seeds"]
    return _section(f"### {task}: success by context", " ".join(filter(None, words)), table(head, lines))


def _least(estimate: Estimate) -> float:
    """What a mean may be by chance."""
    return estimate.value if estimate.low is None else estimate.low


def _rungs(rows: Sequence[Row], task: str) -> list[tuple[Rung, str]]:
    """The rungs of a task with their cases, from short to long."""
    found = {case: Rung.of(case) for case in dict.fromkeys(row.case for row in rows)}
    return sorted((rung, case) for case, rung in found.items() if rung is not None and rung.task == task)


def _differences(success: Found, void: Collection[str]) -> str | None:
    """Predict less the other modes, over the seeds that both have."""
    lines = []
    for case in dict.fromkeys(case for case, _ in success):
        for mode in MODES[1:]:
            difference = paired(success.get((case, OURS), {}), success.get((case, mode), {}))
            if difference is None:
                continue
            name = _named(case, void)
            verdict = excludes_zero(difference) if name == case else "void"
            lines.append(line(name, f"{OURS} − {mode}", signed(difference), str(difference.n), verdict))
    return table(["case", "difference in success", "mean, 95 % interval", "seeds", "excludes 0"], lines)


def _variants(rows: Sequence[Row], void: Collection[str]) -> str | None:
    """Every variant, under the modes that it varies."""
    success = by_method(rows, "success")
    lines = []
    for case in dict.fromkeys(case for case, method in success if method in VARIANTS):
        for method in (*MODES[:2], *VARIANTS):
            estimate = over_seeds(rows, case, method, "success")
            if estimate is not None:
                lines.append(line(_named(case, void), method, _share(estimate), str(estimate.n)))
    return table(["case", "method", "success", "seeds"], lines)


def _pixels(rows: Sequence[Row]) -> str | None:
    """Success on images, and what it took."""
    lines = []
    for (case, method), values in by_method(rows, "success").items():
        rung = Rung.of(case)
        if rung is not None and rung.task.endswith(PIXELS):
            taken = (_mean(rows, case, method, metric) for metric in ("training_seconds", "head_seconds"))
            shown = _share(over_seeds(rows, case, method, "success"))
            lines.append(line(case, method, shown, *taken, str(len(values))))
    return table(["case", "method", "success", "seconds, whole training", "of the last stage alone", "seeds"], lines)


def _cached(rows: Sequence[Row]) -> str | None:
    """Training from end to end over training on cached embeddings, seed by seed."""
    lines = []
    for metric, what in (("training_seconds", "seconds, whole training"), ("head_seconds", "seconds, last stage")):
        found = by_method(rows, metric)
        for case in dict.fromkeys(case for case, method in found if method == "cached"):
            cached, whole = found[case, "cached"], found.get((case, "end_to_end"), {})
            seeds = sorted(cached.keys() & whole.keys())
            if seeds:
                ratio = student([whole[seed] / cached[seed] for seed in seeds])
                reached = "yes" if ratio.value >= FASTER else "no"
                target = f"≥ {FASTER:g} (paper: > 10)"
                lines.append(line(case, f"end_to_end / cached, {what}", with_interval(ratio), target, reached))
    success = by_method(rows, "success")
    for case in dict.fromkeys(case for case, method in success if method == "cached"):
        difference = paired(success[case, "cached"], success.get((case, "end_to_end"), {}))
        if difference is not None:
            lines.append(line(case, "cached − end_to_end, success", signed(difference), "–", "–"))
    return table(["case", "comparison", "mean, 95 % interval", "target", "reached"], lines)


def _diagnostics(rows: Sequence[Row], void: Collection[str]) -> str | None:
    metrics = {
        "predictability": "predictability",
        "validation_error": "validation error",
        "past_error": "past error",
        "success": "success",
        f"success_{CANDIDATES}_candidates": f"success, {CANDIDATES} candidates",
        "training_seconds": "training, s",
        "latency_ms": "decision, ms",
        f"latency_ms_{CANDIDATES}_candidates": f"{CANDIDATES} candidates, ms",
    }
    lines = [
        line(_named(case, void), method, *(_mean(rows, case, method, metric) for metric in metrics))
        for case, method in dict.fromkeys((row.case, row.method) for row in rows if row.metric in metrics)
    ]
    return table(["case", "method", *metrics.values()], lines)


def _share(estimate: Estimate | None) -> str:
    """``0.800 (0.700 to 0.900)``."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _mean(rows: Sequence[Row], case: str, method: str, metric: str) -> str:
    """Over the seeds where it is a number, and over how many where that are not all."""
    own = [row.value for row in rows if (row.case, row.method, row.metric) == (case, method, metric)]
    known = [value for value in own if value is not None]
    if not known:
        return "–"
    shown = number(float(np.mean(known)))
    return shown if len(known) == len(own) else f"{shown} ({len(known)} of {len(own)} seeds)"


def _picture(rows: Sequence[Row]) -> list[str]:
    if context_ladder(rows) is None:
        return []
    return [
        f"![Success over the number of observations in the context, with past action tokens that are trained, left "
        f"untrained, or left out: {' and '.join(DRAWN)}]({LADDER_IMAGE})"
    ]


def _panel(rows: Sequence[Row], task: str) -> Ladder | None:
    """The ladder of a task in consecutive observations; with one, every mode is the same training."""
    rungs = [(rung.observations, case) for rung, case in _rungs(rows, task) if rung.stride == 1 and not rung.epsilon]
    curves = {}
    for mode in MODES:
        found = [(n, over_seeds(rows, case, OURS if n == 1 else mode, "success")) for n, case in rungs]
        points = [(n, estimate) for n, estimate in found if estimate is not None]
        if len(points) > 1:
            curves[mode] = Curve(
                x_label="observations in the context",
                y_label="success",
                x=[n for n, _ in points],
                y=[estimate.value for _, estimate in points],
                low=[estimate.value if estimate.low is None else estimate.low for _, estimate in points],
                high=[estimate.value if estimate.high is None else estimate.high for _, estimate in points],
            )
    if not curves:
        return None
    longest = BOUNDS[task][-1][0]
    bound = [(n, float(limit)) for n in range(1, longest + 1) if (limit := Rung(task, False, 1, n).bound) is not None]
    return Ladder(name=f"{task} (void)" if task in _void(rows) else task, curves=curves, bound=bound)
