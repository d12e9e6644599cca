"""From rows to what a report shows: methods side by side for every case, several seeds as one entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decisionrl.evaluation.results import ReferenceKind, Row
from decisionrl.evaluation.statistics import interquartile_mean


@dataclass(frozen=True)
class Entry:
    """One metric of one case and method.

    With one seed, `low … high` is the 95 % interval of its value. With several, `value` and `gap` are interquartile
    means over the seeds (arXiv 2108.13264), `low … high` and `gap_low … gap_high` their 95 % bootstrap intervals, and
    `reference` and `seconds` means.
    """

    case: str
    method: str
    metric: str
    rows: Sequence[Row]
    value: float | None
    low: float | None
    high: float | None
    reference: float | None
    reference_kind: ReferenceKind
    gap: float | None
    gap_low: float | None
    gap_high: float | None
    seconds: float | None

    @property
    def seeds(self) -> int:
        """How many seeds the entry stands for."""
        return len(self.rows)


@dataclass(frozen=True)
class CaseSummary:
    """A case: its methods by their main metric, best first, and the other metrics.

    `better` is what can be told from values and gaps: "lower", "higher", or None without a gap.
    """

    case: str
    metric: str
    better: str | None
    entries: Sequence[Entry]
    others: Sequence[Entry]

    @property
    def best(self) -> Entry | None:
        """The method with the smallest gap, if any gap is known."""
        return self.entries[0] if self.entries and self.entries[0].gap is not None else None


def summarize(rows: Sequence[Row]) -> list[CaseSummary]:
    """One summary for every case, in the order of the rows; its first metric is the main one."""
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    return [_summarize_case(case, case_rows) for case, case_rows in by_case.items()]


def _summarize_case(case: str, rows: Sequence[Row]) -> CaseSummary:
    main = rows[0].metric
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.metric, row.method), []).append(row)
    signs = {metric: _sign([row for row in rows if row.metric == metric]) for metric, _ in grouped}
    entries = [_entry(case, method, metric, group, signs[metric] or 1) for (metric, method), group in grouped.items()]
    return CaseSummary(
        case=case,
        metric=main,
        better={1: "lower", -1: "higher", None: None}[signs[main]],
        entries=sorted((entry for entry in entries if entry.metric == main), key=_by_gap),
        others=[entry for entry in entries if entry.metric != main],
    )


def _by_gap(entry: Entry) -> float:
    return math.inf if entry.gap is None else entry.gap


def _sign(rows: Sequence[Row]) -> int | None:
    """1 where a larger value is worse, -1 where it is better, None where no row tells."""
    for row in rows:
        if row.gap and row.value is not None and row.reference is not None and row.value != row.reference:
            return 1 if (row.gap > 0) == (row.value > row.reference) else -1
    return None


def _entry(case: str, method: str, metric: str, rows: Sequence[Row], sign: int) -> Entry:
    first = rows[0]
    if len(rows) == 1:
        bounds = [_gap_of(bound, first.reference, sign) for bound in (first.low, first.high)]
        known = sorted(bound for bound in bounds if bound is not None)
        value, low, high = first.value, first.low, first.high
        gap = first.gap
        gap_low, gap_high = (known[0], known[1]) if len(known) == 2 else (None, None)
    else:
        value, low, high = _over_seeds([row.value for row in rows])
        gap, gap_low, gap_high = _over_seeds([row.gap for row in rows])
    return Entry(
        case=case,
        method=method,
        metric=metric,
        rows=rows,
        value=value,
        low=low,
        high=high,
        reference=_mean([row.reference for row in rows]),
        reference_kind=first.reference_kind,
        gap=gap,
        gap_low=gap_low,
        gap_high=gap_high,
        seconds=_mean([row.seconds for row in rows]),
    )


def _gap_of(value: float | None, reference: float | None, sign: int) -> float | None:
    return None if value is None or not reference else sign * (value - reference) / abs(reference)


def _mean(values: Sequence[float | None]) -> float | None:
    known = _all_known(values)
    return None if known is None else math.fsum(known) / len(known)


def _over_seeds(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Interquartile mean and its interval."""
    known = _all_known(values)
    if known is None:
        return None, None, None
    estimate = interquartile_mean([[value] for value in known], rng=np.random.default_rng(0))
    return estimate.value, estimate.low, estimate.high


def _all_known(values: Sequence[float | None]) -> list[float] | None:
    """None unless every value is known: a mean over the seeds that worked would flatter."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
