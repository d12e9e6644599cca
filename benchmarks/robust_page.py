"""The part of docs/results.md on the robust suite, from the rows of one profile."""

from __future__ import annotations

from collections.abc import Sequence

from decisionrl.benchmarks.page_tables import number
from decisionrl.evaluation.results import Row
from decisionrl.evaluation.summaries import summarize


def robust_sections(rows: Sequence[Row], profile: str) -> list[str]:
    """Heading, words and the main metric of every case; nothing where there are no rows."""
    if not rows:
        return []
    lines = ["| case | method | metric | value | 95 % interval | gap |", "|---|---|---|---|---|---|"]
    for case in summarize(rows):
        for entry in case.entries:
            interval = "" if entry.low is None or entry.high is None else f"{number(entry.low)} to {number(entry.high)}"
            gap = "–" if entry.gap is None else f"{100 * entry.gap:+.2f} %"
            lines.append(
                f"| {case.case} | {entry.method} | {case.metric} | {number(entry.value)} | {interval} | {gap} |"
            )
    return [
        f"## Robust linear MDPs ({profile} profile)",
        "`decisionrl bench robust`: exact values of the learned policies, means over the runs; gaps are to the exact "
        "optimum of the same metric.",
        "\n".join(lines),
    ]
