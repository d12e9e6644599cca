"""The part of docs/results.md on the control suite, from the rows of one profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from decisionrl.benchmarks.control_peer import PEER
from decisionrl.benchmarks.page_tables import number, section, table
from decisionrl.evaluation.results import Row
from decisionrl.evaluation.summaries import CaseSummary, Entry, summarize

INVENTORY = "inventory_"


def control_sections(rows: Sequence[Row], profile: str) -> list[str]:
    """Headings, words and tables; nothing where there are no rows."""
    if not rows:
        return []
    cases = summarize(rows)
    of_metric = {
        metric: [case for case in cases if case.metric == metric] for metric in ("mean_return", "value", "cost")
    }
    seeds = len({row.seed for row in rows})
    over = f"interquartile means over {seeds} seeds" if seeds > 1 else "one seed"
    return [
        f"## Control ({profile} profile)",
        f"`decisionrl bench control`, {over}, with 95 % intervals. Returns are those of the deterministic actions over "
        "20 episodes that no training saw, or exact where the environment is a table. Seconds are processor time of "
        "the training on one thread. Steps to the threshold are counted until the mean of the last 100 training "
        "episodes is as large as the return from which the environment counts as solved.",
        *section("### PPO beside Stable-Baselines3", _beside_peer(of_metric["mean_return"])),
        *section("### All recipes", _returns(of_metric["mean_return"])),
        *section("### Prompt bandit", _bandit(of_metric["value"])),
        *section("### Inventory as control", _inventory(of_metric["cost"])),
    ]


def _beside_peer(cases: Sequence[CaseSummary]) -> str | None:
    """Same hyperparameters, same evaluation."""
    lines = []
    for case in cases:
        by_method, metrics = {entry.method: entry for entry in case.entries}, _others(case)
        if "ppo" not in by_method or PEER not in by_method:
            continue
        seconds = [metrics[method].get("cpu_seconds") for method in ("ppo", PEER)]
        ours, theirs = (None if entry is None else entry.value for entry in seconds)
        ratio = "–" if ours is None or not theirs else f"{ours / theirs:.2f}"
        cells = [_estimate(by_method["ppo"]), _estimate(by_method[PEER]), number(ours), number(theirs), ratio]
        lines.append(f"| {case.case} | {' | '.join(cells)} |")
    head = ["case", "return, ours", "return, theirs", "CPU seconds, ours", "CPU seconds, theirs", "ratio"]
    return table(head, lines)


def _returns(cases: Sequence[CaseSummary]) -> str | None:
    lines = []
    for case in cases:
        metrics = _others(case)
        for entry in case.entries:
            own = metrics[entry.method]
            cells = [
                _estimate(entry),
                "–" if entry.gap is None else f"{100 * entry.gap:+.1f} %",
                _estimate(own.get("return_of_training")),
                _steps_to_threshold(own),
                _value(own.get("cpu_seconds")),
            ]
            lines.append(f"| {case.case} | {entry.method} | {' | '.join(cells)} |")
    head = ["case", "recipe", "return", "gap to the optimum", "return of training", "steps to threshold", "CPU seconds"]
    return table(head, lines)


def _bandit(cases: Sequence[CaseSummary]) -> str | None:
    lines = []
    for case in cases:
        metrics = _others(case)
        for entry in case.entries:
            gap = "–" if entry.gap is None else f"{100 * entry.gap:+.2f} %"
            cosine = metrics[entry.method].get("gradient_cosine")
            cosine_text = "–" if cosine is None or cosine.value is None else f"{cosine.value:.4f}"
            lines.append(f"| {entry.method} | {_estimate(entry)} | {number(entry.reference)} | {gap} | {cosine_text} |")
    return table(["recipe", "value", "optimum", "gap", "cosine of mean and exact gradient"], lines)


def _inventory(cases: Sequence[CaseSummary]) -> str | None:
    lines = []
    for case in cases:
        metrics = _others(case)
        for entry in case.entries:
            gap = "–" if entry.gap is None else f"{100 * entry.gap:+.2f} %"
            cells = [_estimate(entry), number(entry.reference), gap, _value(metrics[entry.method].get("cpu_seconds"))]
            lines.append(f"| {case.case.removeprefix(INVENTORY)} | {entry.method} | {' | '.join(cells)} |")
    return table(["setting", "recipe", "cost per period and store", "optimum", "gap", "CPU seconds"], lines)


def _others(case: CaseSummary) -> Mapping[str, Mapping[str, Entry]]:
    """The other metrics by method."""
    found: dict[str, dict[str, Entry]] = {entry.method: {} for entry in case.entries}
    for entry in case.others:
        found[entry.method][entry.metric] = entry
    return found


def _steps_to_threshold(metrics: Mapping[str, Entry]) -> str:
    reached, steps = metrics.get("threshold_reached"), metrics.get("steps_to_threshold")
    if reached is None:
        return "–"
    if steps is None:
        return f"never (0 of {reached.seeds})"
    return f"{number(steps.value)} ({steps.seeds} of {reached.seeds})"


def _estimate(entry: Entry | None) -> str:
    text = _value(entry)
    if entry is None or entry.low is None or entry.high is None:
        return text
    return f"{text} ({number(entry.low)} to {number(entry.high)})"


def _value(entry: Entry | None) -> str:
    return number(None if entry is None else entry.value)
