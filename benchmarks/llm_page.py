"""The part of docs/results.md on the suite of language models, from the rows of one profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from scipy.stats import false_discovery_control, ttest_rel

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
from decisionrl.evaluation.figures import interval_figure
from decisionrl.evaluation.results import Row
from decisionrl.evaluation.statistics import Estimate

BASE = "grpo"
"""What the others are compared with."""

GAIN_REPORTED = (
    *("ares", "bapo", "capo", "d3s", "dapo", "dcpo", "gspo", "gtpo", "hapo", "riskpo", "sapo", "segment_spo", "spo"),
    *("vade", "xrpo"),
)
"""Methods whose papers report a gain over the base, on models of billions of weights."""

LEAST_SEEDS = 3
"""For a verdict."""

FALSE = 0.05
"""The share of verdicts of a task that may be false."""

METHODS_IMAGE = "images/language_methods.png"
DRAWN = ("modular-addition", "countdown", "key-token-chain", "sorting", "mod-chain")

COMPARED = (
    "pass@1 is the share of right ones among sampled responses, 8 to each prompt; pass@8 is the share of prompts that "
    "one of 8 gets right. All methods of a seed begin with the same model, and sample equally many tokens. *Beside "
    f"{BASE}*: the difference in pass@1, paired by seed, with Student's 95 % interval. Of twenty such intervals one "
    f"leaves 0 out by chance, so that methods with {LEAST_SEEDS} seeds or more are called better or worse with the "
    f"false discovery rate over a task's methods held at {100 * FALSE:.0f} % (Benjamini and Hochberg, of paired "
    "t-tests), and perhaps better or worse where only their own interval leaves 0 out. *Tokens to 0.9*: sampled until "
    "the mean reward of the last 100 responses in training was 0.9, over the seeds in which it was. Gradient norms are "
    "those before clipping; the loss of dcpo is a sum over responses, not a mean, and so are its gradients."
)

ENDLESS = (
    "There is no end of prompts here: `dcpo`, `spo`, `vade` and `xrpo`, which remember each, are trained on 529 of "
    "them, the others always on new ones, and all are measured on new ones."
)

NOTES = {
    "sorting": ENDLESS,
    "mod-chain": ENDLESS + " Chains have up to 3 operations, whose meanings are not told.",
    "modular-addition": "The small transformer has never read an example in front of a prompt, so that `xrpo` shows it "
    "none; *xrpo_shown* shows two to prompts that have only failed, as it does by default elsewhere.",
    "key-token-chain": "Two methods have variants here. *tppo_short* has windows of 8 tokens, where responses have 13: "
    "its critic, which knows nothing at first, is taken at its word for what is not finished. *gtpo_unfiltered* leaves "
    "out responses with an entropy above 2, and not above ln 2: nine of the twelve bits are free in this task, and "
    "their entropy is ln 2 each.",
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
        *_picture(rows),
        *(
            part
            for task in tasks
            for part in section(
                f"### Language models: {task}", NOTES.get(task), _plainly(rows, task), _compared(rows, task)
            )
        ),
    ]


def compared_methods(rows: Sequence[Row]) -> Figure | None:
    """pass@1 of all methods, one panel for each task; None without rows."""
    panels: dict[str, dict[str, Estimate]] = {}
    for task, method in by_method(rows, "pass_1"):
        estimate = over_seeds(rows, task, method, "pass_1")
        if task in DRAWN and estimate is not None:
            panels.setdefault(task, {})[method] = estimate
    return interval_figure(panels, base=BASE, x_label="pass@1", limits=(0.0, 1.0)) if panels else None


def _picture(rows: Sequence[Row]) -> list[str]:
    if compared_methods(rows) is None:
        return []
    return [f"![pass@1 of every method on text tasks, with intervals; {BASE} as a dashed line]({METHODS_IMAGE})"]


def _plainly(rows: Sequence[Row], task: str) -> str | None:
    """The verdicts in words; None where there are none."""
    found = by_method(rows, "pass_1")
    verdicts = _verdicts({method: values for (case, method), values in found.items() if case == task})
    if not verdicts:
        return None
    words = []
    for verdict in ("better", "perhaps better", "perhaps worse", "worse"):
        named = sorted(method for method, each in verdicts.items() if each == verdict)
        if named or verdict in ("better", "worse"):
            words.append(f"{verdict.capitalize()} than {BASE}: {', '.join(named) or 'none'}.")
    unseen = sorted(method for method in GAIN_REPORTED if "better" not in verdicts.get(method, "better"))
    if unseen:
        words.append(f"The gain over {BASE} that their papers report is not seen here of {', '.join(unseen)}.")
    return " ".join(words)


def _compared(rows: Sequence[Row], task: str) -> str | None:
    """The methods of a task, the best first."""
    found = by_method(rows, "pass_1")
    passed = {method: values for (case, method), values in found.items() if case == task}
    tokens = by_method(rows, "tokens_to_90")
    values = {method: over_seeds(rows, task, method, "pass_1") for method in passed}
    verdicts = _verdicts(passed)
    lines = []
    for method in sorted(passed, key=lambda each: -_value(values[each])):
        reached = tokens.get((task, method), {})
        mean = number(sum(reached.values()) / len(reached)) if reached else "–"
        difference = None if method == BASE or BASE not in passed else paired(passed[method], passed[BASE])
        lines.append(
            line(
                method,
                with_interval(values[method]),
                "–" if difference is None else signed(difference),
                "–" if difference is None else verdicts.get(method, "not known"),
                with_interval(over_seeds(rows, task, method, "pass_8")),
                f"{mean} ({len(reached)} of {len(passed[method])})",
                *(number(_plain(rows, task, method, name)) for name in ("entropy", "clip_fraction", "gradient_norm")),
            )
        )
    head = ["method", "pass@1", f"beside {BASE}", "it is", "pass@8", "tokens to 0.9 (seeds)"]
    return table([*head, "entropy", "clipped", "gradient norm"], lines)


def _verdicts(passed: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Of the methods that share enough seeds with the base."""
    chances: dict[str, float] = {}
    higher: dict[str, bool] = {}
    base = passed.get(BASE, {})
    for method, own in passed.items():
        seeds = sorted(own.keys() & base.keys())
        if method != BASE and len(seeds) >= LEAST_SEEDS:
            first, second = [own[seed] for seed in seeds], [base[seed] for seed in seeds]
            higher[method] = sum(first) > sum(second)
            chances[method] = 1.0 if first == second else float(ttest_rel(first, second).pvalue)
    if not chances:
        return {}
    adjusted = dict(zip(chances, false_discovery_control(list(chances.values())), strict=True))
    told = {True: "better", False: "worse"}
    return {
        method: told[higher[method]]
        if adjusted[method] < FALSE
        else f"perhaps {told[higher[method]]}"
        if chances[method] < FALSE
        else "not told apart"
        for method in chances
    }


def _value(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.value


def _plain(rows: Sequence[Row], task: str, method: str, metric: str) -> float | None:
    estimate = over_seeds(rows, task, method, metric)
    return None if estimate is None else estimate.value
