"""The part of docs/results.md on the preferences suite, from the rows of one profile."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from decisionrl.benchmarks.page_tables import (
    by_method,
    excludes_zero,
    line,
    number,
    over_seeds,
    paired,
    section,
    signed,
    table,
    with_interval,
)
from decisionrl.evaluation.results import Row

METHOD = "cpl"
BASELINES = ("bc", "sft")
AT = re.compile(r"(?:success|normalized_score)_at_(\d+)_(pairs|percent)")


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
        *section("### Success on Meta-World", _values(rows, "success")),
        *section("### CPL beside the baselines", _differences(rows)),
        *section("### Normalized scores on SAC's data", _values(rows, "normalized_score")),
        *section("### Success against the number of comparisons", _ladder(rows, "pairs", "{:,} pairs")),
        *section("### Success against wrong labels", _ladder(rows, "percent", "{} % wrong")),
        *section("### Labs", _values(rows, "mean_return")),
        *section("### Two modes", _values(rows, "nearer")),
    ]


def _values(rows: Sequence[Row], metric: str) -> str | None:
    """A metric by case and method, with what the training took."""
    found, seconds = by_method(rows, metric), by_method(rows, "cpu_seconds")
    lines = []
    for (case, method), values in found.items():
        spent = seconds.get((case, method))
        cells = [
            with_interval(over_seeds(rows, case, method, metric)),
            str(len(values)),
            "–" if spent is None else number(float(np.mean(list(spent.values())))),
        ]
        lines.append(line(case, method, *cells))
    return table(["case", "method", metric.replace("_", " "), "seeds", "CPU seconds"], lines)


def _differences(rows: Sequence[Row]) -> str | None:
    """CPL less each baseline, over the seeds that both have."""
    found = by_method(rows, "success")
    lines = []
    for case in dict.fromkeys(case for case, _ in found):
        ours = found.get((case, METHOD), {})
        for baseline in BASELINES:
            difference = paired(ours, found.get((case, baseline), {}))
            if difference is not None:
                told = signed(difference), str(difference.n), excludes_zero(difference)
                lines.append(line(case, f"{METHOD} − {baseline}", *told))
    return table(["case", "difference in success", "mean, 95 % interval", "seeds", "excludes 0"], lines)


def _ladder(rows: Sequence[Row], label: str, heading: str) -> str | None:
    """Success by case and method, one column for each rung."""
    rungs = {row.metric: int(match[1]) for row in rows if (match := AT.fullmatch(row.metric)) and match[2] == label}
    metrics = sorted(rungs, key=rungs.__getitem__)
    chosen = dict.fromkeys((row.case, row.method) for row in rows if row.metric in rungs)
    lines = [
        line(case, method, *(with_interval(over_seeds(rows, case, method, metric)) for metric in metrics))
        for case, method in chosen
    ]
    return table(["case", "method", *(heading.format(rungs[metric]) for metric in metrics)], lines)
