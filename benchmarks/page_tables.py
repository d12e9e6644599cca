"""What the parts of docs/results.md share: numbers over seeds, and tables made of them."""

from __future__ import annotations

from collections.abc import Sequence

from decisionrl.evaluation.results import Row
from decisionrl.evaluation.statistics import Estimate, batch_means

Found = dict[tuple[str, str], dict[int, float]]
"""(case, method) -> seed -> value."""


def by_method(rows: Sequence[Row], metric: str) -> Found:
    """The values of a metric that are known, in the order of the rows."""
    found: Found = {}
    for row in rows:
        if row.metric == metric and row.value is not None:
            found.setdefault((row.case, row.method), {})[row.seed] = row.value
    return found


def over_seeds(rows: Sequence[Row], case: str, method: str, metric: str) -> Estimate | None:
    """The mean and its interval: over seeds, or over the episodes of the only one; None without a value."""
    own = [
        Estimate(row.value, row.low, row.high, 1)
        for row in rows
        if (row.case, row.method, row.metric) == (case, method, metric) and row.value is not None
    ]
    if len(own) < 2:
        return own[0] if own else None
    return student([each.value for each in own])


def student(values: Sequence[float]) -> Estimate:
    """The mean over seeds with Student's interval: of so few, a bootstrap's would be too narrow."""
    if len(values) == 1:
        return Estimate(values[0], None, None, 1)
    return batch_means(values, batches=len(values))


def paired(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """``first - second`` over the seeds that both have; None without any."""
    seeds = sorted(first.keys() & second.keys())
    return student([first[seed] - second[seed] for seed in seeds]) if seeds else None


def number(value: float | None) -> str:
    """Four significant digits, whole numbers with separators from a thousand on."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def with_interval(estimate: Estimate | None) -> str:
    """``0.8 (0.7 to 0.9)``."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return number(None if estimate is None else estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"


def signed(estimate: Estimate) -> str:
    """``+0.250 (+0.126 to +0.374)``."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def excludes_zero(estimate: Estimate) -> str:
    """Whether the interval does."""
    if estimate.low is None or estimate.high is None:
        return "–"
    return "yes" if estimate.low > 0 or estimate.high < 0 else "no"


def table(head: Sequence[str], lines: Sequence[str]) -> str | None:
    """Markdown; None without lines."""
    if not lines:
        return None
    return "\n".join([line(*head), "|---" * len(head) + "|", *lines])


def line(*cells: str) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


def section(heading: str, *parts: str | None) -> list[str]:
    """The parts under their heading, of which the last is a table; nothing without it."""
    return [] if parts[-1] is None else [heading, *(part for part in parts if part)]
