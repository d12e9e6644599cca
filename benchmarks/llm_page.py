"""The part of docs/results.md on the suite of language models, from the rows of one profile."""

from __future__ import annotations

from collections.abc import Sequence

from decisionrl.benchmarks.page_tables import (
    by_method,
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
from decisionrl.evaluation.statistics import Estimate

BASE = "grpo"
"""What the others are compared with."""

LEAST_SEEDS = 3
"""For a verdict; two seeds agree by chance too often, with so many methods."""

COMPARED = (
    "pass@1 is the share of right ones among sampled responses, 8 to each prompt; pass@8 is the share of prompts that "
    "one of 8 gets right. All methods of a seed begin with the same model, and sample equally many tokens. *Beside "
    f"{BASE}*: the difference in pass@1, paired by seed, with Student's 95 % interval; a method is called better or "
    f"worse only where there are {LEAST_SEEDS} seeds or more and the interval leaves 0 out. *Tokens to 0.9*: sampled "
    "until the mean reward of the last 100 responses in training was 0.9, over the seeds in which it was. Gradient "
    "norms are those before clipping; the loss of dcpo is a sum over responses, not a mean, and so are its gradients."
)

NOTES = {
    "modular-addition": "The small transformer has never read an example in front of a prompt, so that `xrpo` shows it "
    "none; *xrpo_shown* shows two to prompts that have only failed, as it does by default elsewhere.",
    "modular-addition-examples": "Here the warm start has up to two examples in front of what it imitates. "
    "*xrpo_shown* shows two to prompts that have only failed, *xrpo_shown_sampling* too, but its loss is of the "
    "responses to the prompts alone, and *xrpo* shows none.",
}
"""Task -> what is to be known of it besides."""


def llm_sections(rows: Sequence[Row], profile: str) -> list[str]:
    """Headings, words and tables; nothing where there are no rows."""
    if not rows:
        return []
    seeds = len({row.seed for row in rows})
    over = (
        f"means over up to {seeds} seeds with Student's 95 % intervals; with one seed, over prompts"
        if seeds > 1
        else "one seed, intervals over prompts"
    )
    tasks = list(dict.fromkeys(row.case for row in rows))
    return [
        f"## Language models ({profile} profile)",
        f"`decisionrl bench llm`, {over}.",
        COMPARED,
        *(
            part
            for task in tasks
            for part in section(f"### Language models: {task}", NOTES.get(task), _compared(rows, task))
        ),
    ]


def _compared(rows: Sequence[Row], task: str) -> str | None:
    """The methods of a task, the best first."""
    passed, tokens = by_method(rows, "pass_1"), by_method(rows, "tokens_to_90")
    methods = [method for case, method in passed if case == task]
    values = {method: over_seeds(rows, task, method, "pass_1") for method in methods}
    lines = []
    for method in sorted(methods, key=lambda each: -_value(values[each])):
        reached = tokens.get((task, method), {})
        mean = number(sum(reached.values()) / len(reached)) if reached else "–"
        lines.append(
            line(
                method,
                with_interval(values[method]),
                *_beside(passed, task, method),
                with_interval(over_seeds(rows, task, method, "pass_8")),
                f"{mean} ({len(reached)} of {len(passed[task, method])})",
                *(number(_plain(rows, task, method, name)) for name in ("entropy", "clip_fraction", "gradient_norm")),
            )
        )
    head = ["method", "pass@1", f"beside {BASE}", "it is", "pass@8", "tokens to 0.9 (seeds)"]
    return table([*head, "entropy", "clipped", "gradient norm"], lines)


def _beside(passed: dict[tuple[str, str], dict[int, float]], task: str, method: str) -> tuple[str, str]:
    base = passed.get((task, BASE))
    if method == BASE or base is None:
        return "–", "–"
    difference = paired(passed[task, method], base)
    if difference is None:
        return "–", "–"
    pairs = len(passed[task, method].keys() & base.keys())
    return signed(difference), _verdict(difference) if pairs >= LEAST_SEEDS else "not known"


def _verdict(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return "not known"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "not told apart"


def _value(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.value


def _plain(rows: Sequence[Row], task: str, method: str, metric: str) -> float | None:
    estimate = over_seeds(rows, task, method, metric)
    return None if estimate is None else estimate.value
