"""The part of docs/results.md on the preferences suite, from the rows of one profile."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from decisionrl.benchmarks.control_page import number
from decisionrl.evaluation.results import Row
from decisionrl.evaluation.statistics import Estimate, batch_means

METHOD = "cpl"
BASELINES = ("bc", "sft")
AT = re.compile(r"(?:success|normalized_score)_at_(\d+)_(pairs|percent)")

Found = dict[tuple[str, str], dict[int, float]]
"""(case, method) -> seed -> value."""


def preferences_sections(rows: Sequence[Row], profile: str) -> list[str]:
    """Headings, words and tables; nothing where there are no rows."""
    if not rows:
        return []
    seeds = len({row.seed for row in rows})
    over = f"means over {seeds} seeds with Student's 95 % intervals over seeds" if seeds > 1 else "one seed"
    return [
        f"## Preferences and offline data ({profile} profile)",
        f"`decisionrl bench preferences`, {over}; where there is one seed, the 95 % interval is over its episodes. "
        "Every policy is measured from the same 100 starts (20 on SAC's data), which no training saw. The clones of a "
        "Meta-World task are recorded anew for every seed, and all methods of a seed learn from the same. Seconds are "
        "processor time of the training on one thread.",
        *_section("### Success on Meta-World", _values(rows, "success")),
        *_section("### CPL beside the baselines", _differences(rows)),
        *_section("### Normalized scores on SAC's data", _values(rows, "normalized_score")),
        *_section("### Success against the number of comparisons", _ladder(rows, "pairs", "{:,} pairs")),
        *_section("### Success against wrong labels", _ladder(rows, "percent", "{} % wrong")),
        *_section("### Labs", _values(rows, "mean_return")),
        *_section("### Two modes", _values(rows, "nearer")),
    ]


def _section(heading: str, table: str | None) -> list[str]:
    return [] if table is None else [heading, table]


def _values(rows: Sequence[Row], metric: str) -> str | None:
    """A metric by case and method, with what the training took."""
    found, seconds = _by_method(rows, metric), _by_method(rows, "cpu_seconds")
    lines = []
    for (case, method), values in found.items():
        spent = seconds.get((case, method))
        cells = [
            _over_seeds(rows, case, method, metric),
            str(len(values)),
            "–" if spent is None else number(float(np.mean(list(spent.values())))),
        ]
        lines.append(f"| {case} | {method} | {' | '.join(cells)} |")
    return _table(["case", "method", metric.replace("_", " "), "seeds", "CPU seconds"], lines)


def _differences(rows: Sequence[Row]) -> str | None:
    """CPL less each baseline, over the seeds that both have."""
    found = _by_method(rows, "success")
    lines = []
    for case in dict.fromkeys(case for case, _ in found):
        ours = found.get((case, METHOD), {})
        for baseline in BASELINES:
            theirs = found.get((case, baseline), {})
            seeds = sorted(ours.keys() & theirs.keys())
            if seeds:
                estimate = _student([ours[seed] - theirs[seed] for seed in seeds])
                lines.append(
                    f"| {case} | {METHOD} − {baseline} | {_signed(estimate)} | {estimate.n} | {_verdict(estimate)} |"
                )
    return _table(["case", "difference in success", "mean, 95 % interval", "seeds", "excludes 0"], lines)


def _ladder(rows: Sequence[Row], label: str, heading: str) -> str | None:
    """Success by case and method, one column for each rung."""
    rungs = {row.metric: int(match[1]) for row in rows if (match := AT.fullmatch(row.metric)) and match[2] == label}
    metrics = sorted(rungs, key=rungs.__getitem__)
    chosen = dict.fromkeys((row.case, row.method) for row in rows if row.metric in rungs)
    lines = [
        f"| {case} | {method} | {' | '.join(_over_seeds(rows, case, method, metric) for metric in metrics)} |"
        for case, method in chosen
    ]
    return _table(["case", "method", *(heading.format(rungs[metric]) for metric in metrics)], lines)


def _by_method(rows: Sequence[Row], metric: str) -> Found:
    found: Found = {}
    for row in rows:
        if row.metric == metric and row.value is not None:
            found.setdefault((row.case, row.method), {})[row.seed] = row.value
    return found


def _over_seeds(rows: Sequence[Row], case: str, method: str, metric: str) -> str:
    """The mean and its interval: over seeds, or over the episodes of the only one."""
    own = [row for row in rows if (row.case, row.method, row.metric) == (case, method, metric)]
    values = [row.value for row in own if row.value is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return _with_interval(Estimate(values[0], own[0].low, own[0].high, 1))
    return _with_interval(_student(values))


def _student(values: Sequence[float]) -> Estimate:
    """The mean over seeds with Student's interval: of so few, a bootstrap's would be too narrow."""
    if len(values) == 1:
        return Estimate(values[0], None, None, 1)
    return batch_means(values, batches=len(values))


def _with_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"


def _signed(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def _verdict(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "–"
    return "yes" if estimate.low > 0 or estimate.high < 0 else "no"


def _table(head: Sequence[str], lines: Sequence[str]) -> str | None:
    if not lines:
        return None
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])
