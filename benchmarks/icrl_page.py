"""The part of docs/results.md on the in-context suite, from the rows and curves of one profile, and its figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from decisionrl.benchmarks.icrl import BACKBONES, LAST, PLANNING, SENSITIVITY
from decisionrl.benchmarks.page_tables import (
    Found,
    by_method,
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
from decisionrl.evaluation.figures import band_figure
from decisionrl.evaluation.results import Row
from decisionrl.evaluation.series import Curve, Series
from decisionrl.evaluation.statistics import Estimate

LHF = "_lhf"
VARIANT = re.compile(rf"(?P<filtered>(?P<backbone>{'|'.join(BACKBONES)}){LHF})_(?P<name>.+)")

KINDS: Mapping[str, str] = {
    "clean": "clean histories",
    "noise30": "30 % of the histories at random",
    "half": "the first half of each history",
    "light": "a smaller model",
    "mixed": "learners of different rates",
}
"""What stands behind the dash of a case's name, and what it is."""

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "darkroom-clean": {"ad": 25.1, "dicp": 15.2, "dpt": 3.5},
    "permuted-clean": {"ad": 5.0, "dicp": 9.2, "dpt": 2.6},
    "large-clean": {"ad": 3.2, "dicp": 9.3, "dpt": 26.1},
    "key_to_door-clean": {"ad": 1.8, "dicp": 2.5, "dpt": 15.5},
    "darkroom-noise30": {"ad": 90.7, "dicp": 19.0, "dpt": 21.4},
    "permuted-noise30": {"ad": 5.5, "dicp": 9.5, "dpt": 4.0},
    "large-noise30": {"ad": 13.8, "dicp": 17.3, "dpt": 13.9},
    "key_to_door-noise30": {"ad": 1.2, "dicp": 4.2, "dpt": 10.1},
    "darkroom-half": {"ad": 14.1, "dicp": 11.4, "dpt": 19.6},
    "permuted-half": {"ad": 7.9, "dicp": 6.3, "dpt": -2.8},
    "large-half": {"ad": 22.3, "dicp": 0.9, "dpt": 16.4},
    "key_to_door-half": {"ad": 0.3, "dicp": 1.0, "dpt": 0.1},
    "darkroom-light": {"ad": 22.4, "dicp": 28.8, "dpt": 10.6},
    "permuted-light": {"ad": 6.3, "dicp": 2.5, "dpt": -1.3},
    "large-light": {"ad": 4.9, "dicp": 2.1, "dpt": 5.4},
    "key_to_door-light": {"ad": 16.7, "dicp": 18.7, "dpt": 2.1},
}
"""Case -> backbone -> E in percent, of three runs: the tables of arXiv 2505.15143, sec. 4."""

BANDIT = "bandit-"
DRAWN = "darkroom-noise30"
CURVES_IMAGE = "images/in_context_curves.png"
"""Beside the page."""

WITHOUT, WITH = "without LHF", "with LHF"


@dataclass(frozen=True, kw_only=True)
class Enhancement:
    """E = (LHF - base) / base over the seeds that both have, whose histories and tasks they share.

    Attributes:
        of_means: of the means over seeds; the interval is Student's of E + (LHF_s - (1 + E) base_s) / mean base, which
            has the mean E and is the ratio's linearization. None where the base's mean is not above 0.
        by_seed: the mean of every seed's own E, with Student's interval. None where a seed's base is not above 0.
    """

    of_means: Estimate | None
    by_seed: Estimate | None
    seeds: int

    @classmethod
    def of(cls, base: Mapping[int, float], filtered: Mapping[int, float]) -> Enhancement:
        """From values by seed."""
        pairs = [(base[seed], filtered[seed]) for seed in sorted(base.keys() & filtered.keys())]
        before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
        means = None
        if before > 0:
            ratio = after / before
            means = student([ratio - 1 + (y - ratio * x) / before for x, y in pairs])
        each = student([(y - x) / x for x, y in pairs]) if pairs and all(x > 0 for x, _ in pairs) else None
        return cls(of_means=means, by_seed=each, seeds=len(pairs))

    @property
    def cells(self) -> tuple[str, str]:
        """Of a table."""
        return _percent(self.of_means), _percent(self.by_seed)


def icrl_sections(
    rows: Sequence[Row], profile: str, series: Mapping[tuple[str, str], Series] | None = None
) -> list[str]:
    """Headings, words, tables and the figure of the series; nothing where there are no rows."""
    if not rows:
        return []
    seeds = len({row.seed for row in rows})
    over = f"means over {seeds} seeds with Student's 95 % intervals over seeds" if seeds > 1 else "one seed"
    regrets = _regrets(rows)
    rows = [row for row in rows if not row.case.startswith(BANDIT)]
    kinds = {kind: _kept(rows, kind) for kind in dict.fromkeys(_kind(row.case) for row in rows)}
    return [
        f"## In-context RL ({profile} profile)",
        f"`decisionrl bench icrl`, {over}; where there is one seed, the 95 % interval is over its test tasks. Returns "
        "are means over all episodes in a row of tasks that were not trained on, from an empty context. Every seed has "
        "its own split of the tasks and its own histories, which all its methods share.",
        *(_picture(series or {}) if profile == "full" else []),
        *([ENHANCEMENT] if any(kinds.values()) else []),
        *(part for kind, kept in kinds.items() for part in section(f"### In context: {KINDS.get(kind, kind)}", kept)),
        *section("### In context: first and last episodes", FIRST_AND_LAST, _first_and_last(rows)),
        *section("### In context: what the filter does to the data", FILTERED, _data(rows)),
        *section("### In context: sensitivity of the filter", SENSITIVE, _sensitivity(rows)),
        *section("### In context: bandits", REGRETS, regrets),
        *section("### In context: costs", COSTS, _costs(rows)),
    ]


ENHANCEMENT = (
    "E = (mean with LHF − mean without) / mean without, LHF being filtered learning histories (arXiv 2505.15143), over "
    "the seeds that have both. *E of the means* divides means over seeds; its interval is Student's of the ratio's "
    "linearization, E + (with − (1 + E) without) / mean without, seed by seed. *E by seed* is the mean of the seeds' "
    "own E with Student's interval. Both are paired, for the two of a seed learn from the same histories; the first is "
    "the paper's, the second is the larger where the seeds whose base is poor gain most. *Paper* is what its tables "
    "say of three runs: models of 50,000 updates on histories of PPO with neural networks, over 100 episodes, or 150 "
    "with noise and with the smaller model."
)

FIRST_AND_LAST = (
    f"The first episode, with an empty context, and the last {LAST}: what is learned without a change of the weights. "
    "*Possible*: the mean of the tasks' largest returns."
)

FILTERED = (
    "Of the histories that are trained on: the share at random, and the mean return of all episodes. They depend on "
    "the data and the filter, not on the backbone."
)

SENSITIVE = (
    "λ is the weight of stability, α the temperature of the softmax rule; without one the rule is linear. Each "
    "varies alone; the others are λ = 1, linear, and the paper's resampling. E is to the histories without a filter."
)

REGRETS = (
    "Pulls of five arms with Gaussian rewards, in bandits that were not trained on: how much less than the best arm's "
    "the return is. Thompson sampling draws from the posterior, which is what DPT (arXiv 2306.14892) amounts to in the "
    "limit; UCB and the empirical mean, which tries every arm once, know that there are arms, too."
)

COSTS = "Wall seconds on one thread, means over seeds: the training alone, and playing all episodes of the evaluation."


def context_curves(series: Mapping[tuple[str, str], Series], *, case: str = DRAWN) -> Figure | None:
    """Returns over the episodes of the evaluation, one panel for each backbone; None where there is no curve."""
    panels = {}
    for backbone in BACKBONES:
        found = {name: _curve(series, case, backbone + end) for name, end in ((WITHOUT, ""), (WITH, LHF))}
        curves = {name: curve for name, curve in found.items() if curve is not None}
        if curves:
            panels[backbone] = curves
    return band_figure(panels, reference_label="largest return") if panels else None


def _curve(series: Mapping[tuple[str, str], Series], case: str, method: str) -> Curve | None:
    found = series.get((case, method))
    return None if found is None else found.curve


def _picture(series: Mapping[tuple[str, str], Series]) -> list[str]:
    if context_curves(series) is None:
        return []
    return [
        f"![Return over the episodes that a policy has played in a task it never saw, with and without filtered "
        f"histories: {DRAWN}]({CURVES_IMAGE})",
        f"{DRAWN}: at each episode the interquartile mean over seeds (of up to three the mean), with a bootstrap's "
        "95 % interval over seeds.",
    ]


def _kind(case: str) -> str:
    """The data of a case."""
    return case.partition("-")[2]


def _kept(rows: Sequence[Row], kind: str) -> str | None:
    """Environment and backbone, without the filter and with it."""
    found = by_method(rows, "mean_return")
    lines = []
    for case in dict.fromkeys(case for case, _ in found if _kind(case) == kind):
        for backbone in BACKBONES:
            if (case, backbone) not in found and (case, backbone + LHF) not in found:
                continue
            gain = _enhancement(found, case, backbone, backbone + LHF)
            published = PUBLISHED.get(case, {}).get(backbone)
            lines.append(
                line(
                    case.partition("-")[0],
                    backbone,
                    *(with_interval(over_seeds(rows, case, backbone + end, "mean_return")) for end in ("", LHF)),
                    *gain.cells,
                    "–" if published is None else f"{published:+.1f} %",
                    str(gain.seeds),
                )
            )
    head = ["environment", "backbone", WITHOUT, WITH, "E of the means", "E by seed", "paper", "pairs of seeds"]
    return table(head, lines)


def _first_and_last(rows: Sequence[Row]) -> str | None:
    metrics = ("first_return", "last_return")
    possible: dict[str, list[float]] = {}
    for row in rows:
        if row.metric in metrics and row.reference is not None:
            possible.setdefault(row.case, []).append(row.reference)
    lines = [
        line(
            case,
            method,
            *(with_interval(over_seeds(rows, case, method, metric)) for metric in metrics),
            number(float(np.mean(possible[case]))) if case in possible else "–",
        )
        for case, method in by_method(rows, metrics[0])
        if VARIANT.fullmatch(method) is None
    ]
    return table(["case", "method", "first episode", f"last {LAST} episodes", "possible"], lines)


def _data(rows: Sequence[Row]) -> str | None:
    """The histories of each case before the filter and after it."""
    share, value = by_method(rows, "random_share"), by_method(rows, "data_return")
    lines = []
    for case in dict.fromkeys(case for case, _ in share):
        random, returns = ([_any(found, case, end) for end in ("", LHF)] for found in (share, value))
        change = paired(returns[1], returns[0])
        lines.append(
            line(
                case,
                *(_mean(each, percent=True) for each in random),
                *(_mean(each) for each in returns),
                "–" if change is None else signed(change),
                str(len(returns[0].keys() & returns[1].keys())),
            )
        )
    head = ["at random, before", "after", "mean return, before", "after", "change", "pairs of seeds"]
    return table(["case", *head], lines)


def _any(found: Found, case: str, end: str) -> dict[int, float]:
    """The values by seed of whichever backbone has them; all have the same."""
    return {seed: value for each in BACKBONES for seed, value in found.get((case, each + end), {}).items()}


def _sensitivity(rows: Sequence[Row]) -> str | None:
    """Every variant of the filter, below what it varies."""
    found = by_method(rows, "mean_return")
    varied = dict.fromkeys((case, match[1], match[2]) for case, each in found if (match := VARIANT.fullmatch(each)))
    lines = []
    for case, filtered, backbone in varied:
        variants = {f"{filtered}_{name}": _setting(name) for name in [*SENSITIVITY, *PLANNING]}
        for method, name in {backbone: "none", filtered: "λ = 1, linear, resample", **variants}.items():
            if (case, method) not in found:
                continue
            gain = _enhancement(found, case, backbone, method)
            share, returned = (_own(rows, case, method, metric) for metric in ("random_share", "data_return"))
            lines.append(
                line(
                    case,
                    backbone,
                    name,
                    with_interval(over_seeds(rows, case, method, "mean_return")),
                    *(("–", "–") if method == backbone else gain.cells),
                    _mean(share, percent=True),
                    _mean(returned),
                    str(len(found[case, method])),
                )
            )
    head = ["case", "backbone", "filter", "mean return", "E of the means", "E by seed"]
    return table([*head, "at random", "mean return of the data", "seeds"], lines)


def _setting(name: str) -> str:
    """``λ = 0.5``, ``α = 0.25``, ``multinomial``."""
    if name == "actions":
        return "weight, of the actions only"
    return re.sub(r"^(lambda|alpha)(?=\d)", lambda match: {"lambda": "λ = ", "alpha": "α = "}[match[1]], name)


def _regrets(rows: Sequence[Row]) -> str | None:
    """Of every method on bandits, the least first."""
    found = {key: over_seeds(rows, *key, "regret") for key in by_method(rows, "regret")}
    known = [(estimate, case, method) for (case, method), estimate in found.items() if estimate is not None]
    lines = [
        line(case, method, with_interval(estimate), with_interval(over_seeds(rows, case, method, "mean_return")))
        for estimate, case, method in sorted(known, key=lambda each: each[0].value)
    ]
    return table(["case", "method", "regret", "mean return"], lines)


def _costs(rows: Sequence[Row]) -> str | None:
    """Seconds of each backbone without the filter and with it."""
    found = {metric: by_method(rows, metric) for metric in ("training_seconds", "evaluation_seconds")}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        for backbone in BACKBONES:
            spent = [values.get((case, backbone + end), {}) for values in found.values() for end in ("", LHF)]
            if any(spent):
                lines.append(line(case, backbone, *(_mean(each) for each in spent)))
    head = [f"{what}, {which}" for what in ("training", "evaluation") for which in (WITHOUT, WITH)]
    return table(["case", "backbone", *head], lines)


def _enhancement(found: Found, case: str, base: str, filtered: str) -> Enhancement:
    return Enhancement.of(found.get((case, base), {}), found.get((case, filtered), {}))


def _own(rows: Sequence[Row], case: str, method: str, metric: str) -> dict[int, float]:
    return by_method(rows, metric).get((case, method), {})


def _mean(values: Mapping[int, float], *, percent: bool = False) -> str:
    """Over seeds."""
    if not values:
        return "–"
    mean = float(np.mean(list(values.values())))
    return f"{100 * mean:.1f} %" if percent else number(mean)


def _percent(estimate: Estimate | None) -> str:
    """``+25.1 % (+3.0 to +47.2)``."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:+.1f} %"
    return f"{100 * estimate.value:+.1f} % ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
