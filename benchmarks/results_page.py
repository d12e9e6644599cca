"""Write docs/results.md and its figures from the results files kept under benchmarks/results/.

    python -m decisionrl.benchmarks.results_page [RESULTS_DIRECTORY] [PAGE]

Nothing on the page is typed by hand but the targets and the words around them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from decisionrl.benchmarks.control_page import control_sections
from decisionrl.benchmarks.icrl_page import CURVES_IMAGE, context_curves, icrl_sections
from decisionrl.benchmarks.llm_page import METHODS_IMAGE, compared_methods, llm_sections
from decisionrl.benchmarks.page_tables import number
from decisionrl.benchmarks.preferences_page import preferences_sections
from decisionrl.benchmarks.robotics_page import LADDER_IMAGE, context_ladder, robotics_sections
from decisionrl.benchmarks.robust_page import robust_sections
from decisionrl.evaluation.figures import report_style, save_png
from decisionrl.evaluation.results import Row, read_results
from decisionrl.evaluation.series import read_series


@dataclass(frozen=True)
class Target:
    """What one line of the issue's table asks of a profile: the gap's limit in percent, and over which cases."""

    label: str
    method: str
    quick: float
    full: float
    prefix: str
    metric: str = "cost"
    cells: bool = True


TARGETS = [
    Target("one_store_backlogged/base_stock, to the exact optimum", "base_stock", 0.2, 0.05, "one_store_backlogged"),
    Target("one_store_backlogged/mlp", "mlp", 0.5, 0.1, "one_store_backlogged"),
    Target(
        "one_store_lost/capped_base_stock, to the best capped rule (default cell)",
        "capped_base_stock",
        0.3,
        0.1,
        "one_store_lost",
        "cost_to_best_capped",
        cells=False,
    ),
    Target("one_store_lost/mlp, to the exact optimum (full: mean of the cells)", "mlp", 0.4, 0.15, "one_store_lost"),
    Target("serial_system/echelon_stock", "echelon_stock", 0.3, 0.1, "serial_system"),
    Target("serial_system/mlp", "mlp", 1.0, 0.25, "serial_system"),
    Target("serial_system/gnn", "gnn", 2.5, 0.25, "serial_system"),
    Target(
        "transshipment_backlogged/water_filling, to the bound", "water_filling", 0.3, 0.1, "transshipment_backlogged"
    ),
    Target("transshipment_backlogged/gnn, to the bound", "gnn", 2.5, 0.3, "transshipment_backlogged"),
]


def page(results: Path) -> str:
    """The page as markdown, from RESULTS/{inventory,control,robust,preferences,robotics,icrl,llm}-* and
    RESULTS/speed-*."""
    quick, full = (_rows(results / f"inventory-{profile}") for profile in ("quick", "full"))
    parts = [
        "# Results",
        "Every number comes from a `results.json` under `benchmarks/results/`, written by `decisionrl bench` "
        "(`inventory`, `control`, `robust`, `preferences`, `robotics`, `icrl`, `llm`), or by a script of "
        "`benchmarks/speed/`; this page is made from them by `python -m decisionrl.benchmarks.results_page`. Gaps are "
        "relative to the reference, positive is worse, with 95 % intervals; a control of known cost is paired on the "
        "same demand where there is one.",
        _provenance(results),
        "## Inventory: targets",
        _targets(quick, full),
        "## Lost sales, all cells (full)",
        _lost_cells(full),
        "## Serial system, all cells (full)",
        _cells(full, "serial_system", ("echelon_stock", "mlp", "gnn")),
        "## Warehouses with lost demand",
        "The reference of a network is the tuned rule (store base stock with proportional rationing and warehouse "
        "echelon levels) on the same demand; the rule's own is the relaxation bound, which is weak.",
        _cases(quick, full, ("one_warehouse_lost_demand", "many_warehouses_lost_demand")),
        "## Sample efficiency",
        _samples(full),
        "## Weekly sales series",
        "Share of the profit of the just-in-time oracle, which knows demand and uses each store's fastest lane. It is "
        "inadmissible, and no upper bound here: over the cheapest lanes the same oracle earns more.",
        _series(full or quick),
        "## The paper's protocol beside ours",
        _protocols(quick, full),
        *control_sections(_rows(results / "control-full"), "full"),
        *control_sections(_rows(results / "control-quick"), "quick"),
        *robust_sections(_rows(results / "robust-full"), "full"),
        *robust_sections(_rows(results / "robust-quick"), "quick"),
        *preferences_sections(_rows(results / "preferences-full"), "full"),
        *preferences_sections(_rows(results / "preferences-quick"), "quick"),
        *robotics_sections(_rows(results / "robotics-full"), "full"),
        *robotics_sections(_rows(results / "robotics-quick"), "quick"),
        *icrl_sections(_rows(results / "icrl-full"), "full", read_series(results / "icrl-full")),
        *icrl_sections(_rows(results / "icrl-quick"), "quick"),
        *llm_sections(_rows(results / "llm-full"), "full"),
        *llm_sections(_rows(results / "llm-quick"), "quick"),
        *_speed(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(directory: Path) -> list[Row]:
    return read_results(directory) if (directory / "results.json").exists() else []


def _provenance(results: Path) -> str:
    lines = ["| results | version | device | machine | command |", "|---|---|---|---|---|"]
    for path in sorted(results.glob("*/run.json")):
        run = json.loads(path.read_text())
        rows = _rows(path.parent)
        versions = sorted({row.version or "?" for row in rows})
        command = run.get("command", "")
        lines.append(
            f"| {path.parent.name} | {', '.join(versions)} | {run.get('device', '')} | {run.get('machine', '')} "
            f"| `{command}` |"
        )
    return "\n".join(lines)


def _gap(row: Row) -> str:
    """Gap with the interval of the value carried over to it."""
    if row.gap is None:
        return "–"
    text = f"{100 * row.gap:+.3f} %"
    if row.low is not None and row.high is not None and row.reference:
        low, high = (100 * (bound - row.reference) / abs(row.reference) for bound in (row.low, row.high))
        text += f" ({low:+.3f} to {high:+.3f})"
    return text


def _find(rows: Sequence[Row], target: Target, *, cells: bool) -> list[Row]:
    def fits(row: Row) -> bool:
        name = row.case == target.prefix or (cells and row.case.startswith(f"{target.prefix}-L"))
        return name and row.method == target.method and row.metric == target.metric and row.gap is not None

    return [row for row in rows if fits(row)]


def _targets(quick: list[Row], full: list[Row]) -> str:
    lines = ["| case/method | quick, target | quick, reached | full, target | full, reached |", "|---|---|---|---|---|"]
    for target in TARGETS:
        in_quick = _find(quick, target, cells=False)
        in_full = _find(full, target, cells=target.cells)
        lines.append(
            f"| {target.label} | ≤ {target.quick} % | {_reached(in_quick, target.quick)} | ≤ {target.full} % "
            f"| {_reached(in_full, target.full, average='lost' in target.prefix)} |"
        )
    return "\n".join(lines)


def _reached(rows: Sequence[Row], limit: float, *, average: bool = False) -> str:
    if not rows:
        return "not run"
    gaps = [100 * (row.gap or 0.0) for row in rows]
    value = sum(gaps) / len(gaps) if average else max(gaps)
    mark = "✓" if value <= limit else "✗"
    if len(rows) == 1:
        return f"{mark} {_gap(rows[0])}"
    kind, spread = "mean" if average else "worst", f"{min(gaps):+.3f} to {max(gaps):+.3f}"
    return f"{mark} {kind} {value:+.3f} % of {len(rows)} cells ({spread})"


def _lost_cells(rows: list[Row]) -> str:
    lost = [row for row in rows if row.case.startswith("one_store_lost")]
    capped = {(r.case, r.metric): r for r in lost if r.method == "capped_base_stock"}
    networks = [r for r in lost if r.method == "mlp" and r.metric == "cost"]
    if not networks:
        return "Not run yet."
    lines = [
        "A trained capped base stock is rounded to whole units when it is measured; where its cap lies near a half, "
        "that can cost more than the training left (last column).",
        "",
        "| case | optimum | mlp, gap | capped base stock, gap | mlp better | capped, to the best capped |",
        "|---|---|---|---|---|---|",
    ]
    for row in networks:
        rule, limit = (capped.get((row.case, metric)) for metric in ("cost", "cost_to_best_capped"))
        better = "–" if rule is None or rule.gap is None else "yes" if (row.gap or 0) < rule.gap else "no"
        shown = [_gap(each) if each else "–" for each in (rule, limit)]
        lines.append(f"| {row.case} | {row.reference:.5f} | {_gap(row)} | {shown[0]} | {better} | {shown[1]} |")
    return "\n".join(lines)


def _cells(rows: list[Row], prefix: str, methods: Sequence[str]) -> str:
    table = {(r.case, r.method): r for r in rows if r.case.startswith(prefix) and r.metric == "cost"}
    cases = list(dict.fromkeys(case for case, _ in table))
    if not cases:
        return "Not run yet."
    lines = [f"| case | optimum | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
    for case in cases:
        found = [table.get((case, method)) for method in methods]
        reference = next(row.reference for row in found if row is not None)
        lines.append(f"| {case} | {reference:.4f} | {' | '.join(_gap(r) if r else '–' for r in found)} |")
    return "\n".join(lines)


def _cases(quick: list[Row], full: list[Row], names: Sequence[str]) -> str:
    lines = ["| profile | case | method | cost | 95 % interval | reference | gap |", "|---|---|---|---|---|---|---|"]
    for profile, rows in (("quick", quick), ("full", full)):
        for row in rows:
            if row.case in names and row.metric == "cost":
                lines.append(
                    f"| {profile} | {row.case} | {row.method} | {row.value:.4f} | {_interval(row)} "
                    f"| {row.reference:.4f} {row.reference_kind} | {_gap(row)} |"
                )
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def _interval(row: Row, digits: int = 4) -> str:
    return "–" if row.low is None or row.high is None else f"{row.low:.{digits}f} to {row.high:.{digits}f}"


def _samples(rows: list[Row]) -> str:
    chosen = [row for row in rows if row.case.endswith("-samples")]
    if not chosen:
        return "Not run yet."
    sizes = sorted({int(row.metric.split("_")[2]) for row in chosen})
    lines = [f"| method | {' | '.join(f'{size} scenarios' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for method in dict.fromkeys(row.method for row in chosen):
        values = {int(row.metric.split("_")[2]): row for row in chosen if row.method == method}
        lines.append(f"| {method} | {' | '.join(f'{values[s].value:.4f} ({_interval(values[s])})' for s in sizes)} |")
    return "Cost per period and store on new demand, by the number of training scenarios.\n\n" + "\n".join(lines)


def _series(rows: list[Row]) -> str:
    shares = [row for row in rows if row.metric == "share_of_just_in_time"]
    costs = {(row.case, row.method): row for row in rows if row.metric == "cost"}
    if not shares:
        return "Not run yet."
    lines = [
        "| case | method | profit per store-week | share of just-in-time | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(shares, key=lambda r: (r.case, -(r.value or 0.0))):
        profit = -(costs[row.case, row.method].value or 0.0)
        interval = "–" if row.low is None or row.high is None else f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
        lines.append(f"| {row.case} | {row.method} | {profit:.2f} | {100 * (row.value or 0):.1f} % | {interval} |")
    return "\n".join(lines)


def _protocols(quick: list[Row], full: list[Row]) -> str:
    lines = ["| profile | method | gap to the optimum | CPU seconds of training |", "|---|---|---|---|"]
    for profile, rows in (("quick", quick), ("full", full)):
        for method in ("mlp", "mlp-paper"):
            found = {r.metric: r for r in rows if r.case == "one_store_lost" and r.method == method}
            if "cost" in found:
                seconds = found["training_cpu_seconds"].value
                lines.append(f"| {profile} | {method} | {_gap(found['cost'])} | {seconds:.1f} |")
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def _speed(results: Path) -> list[str]:
    directories = sorted(path.parent for path in results.glob("speed-*/results.json"))
    parts: list[str] = []
    for directory in directories:
        lines = ["| case | method | metric | value | target or reference |", "|---|---|---|---|---|"]
        for row in read_results(directory):
            value = number(row.value)
            if row.low is not None and row.high is not None:
                value += f" ({number(row.low)} to {number(row.high)})"
            reference = "–" if row.reference is None else f"{number(row.reference)} ({row.reference_kind})"
            lines.append(f"| {row.case} | {row.method} | {row.metric} | {value} | {reference} |")
        parts += [f"## Speed: {directory.name}", _about_speed(directory), "\n".join(lines)]
    return parts


def _about_speed(directory: Path) -> str:
    rows = read_results(directory)
    devices = ", ".join(sorted({row.device or "?" for row in rows}))
    versions = ", ".join(sorted({row.version or "?" for row in rows}))
    return f"On {devices}, version {versions}. {SPEED_NOTES[rows[0].suite]}"


SPEED_NOTES = {
    "speed-inventory": "A speedup is the plain eager loop's processor time over the library's, the median of "
    "interleaved rounds with the smallest and largest; methods without a suffix count what feeds a step on both sides "
    "(the plain loop's per-sample Dataset and DataLoader), `-without-loader` has batches at hand on both. "
    "`compile_seconds` are not in any other row.",
    "speed-robust": "The plain per-history loop's processor time over the library's for the same trainings: the "
    "careful loop inverts its matrix once a plan, the inverting one for every Q, as released code does; 200 stands for "
    "200 runs at once instead of 20. growth: the last tenth's time an episode over the first tenth's.",
    "speed-control": "PPO and Stable-Baselines3's PPO with the same hyperparameters on one thread, whole trainings in "
    "turns: medians of the rounds with the smallest and largest. A ratio is our seconds over theirs. `seconds_...` say "
    "where the processor time of one more training goes.",
    "speed-robotics": "The library and a plain loop that does the same, on one thread; losses, samples and actions of "
    "both agree before anything is timed. A speedup is the other's seconds over the library's, the median of the "
    "rounds with the smallest and largest: `update` a training step with past tokens, `encode_once` sampling beside "
    "encoding the context anew in every denoising step, `candidates_5` five candidates at once beside one after the "
    "other, `rollout` episodes side by side beside one after the other. `ratio`: a decision with five candidates over "
    "one with a single. `latency_ms`: a decision for one robot.",
    "speed-in-context": "In-context learning on one thread; what computes the same agrees before it is timed. A "
    "speedup is the other's seconds over the library's, the median of the rounds with extremes: `histories` "
    "per transition beside Stable-Baselines3's PPO, `rollout` and `planning` beside a pass over the whole window for "
    "every action or imagined step, `update` beside a plain model, `filter` beside plain loops. `speedup_packed`: "
    "seconds per label with one label a window over those with one at every step.",
    "speed-preferences": "Updates of contrastive preference learning on the same segments, 96 pairs of 64 steps, on "
    "one thread, drawing the batch included: a plain loop's seconds over the library's, the median of the rounds with "
    "the smallest and largest. `loss` is the library's on one batch beside the plain loop's, with the same weights.",
    "speed-llm": "A step of GRPO on a small Llama beside TRL's, on one thread: 8 responses of equal length to each of "
    "8 prompts, their rewards, and an optimizer step on all. `ours` takes log-probabilities as they were sampled; "
    "`recomputed` works them out anew first. `speedup`: TRL's seconds over the library's.",
    "speed-prefix-sharing": "The loss and gradients of G responses of 128 tokens to a prompt of L, on a Llama of four "
    "layers: one forward of the prompt for all responses beside one for each. `peak_gb` is memory beyond model and "
    "gradients, `memory` the ratio.",
    "speed-token-log-probs": "Log-probabilities and entropies of tokens with their gradients, without all logits in "
    "memory, beside the plain form. `memory` is the peak over the plain form's, in fresh processes.",
}
"""What a speed suite's rows mean."""


def main(arguments: Sequence[str], write: Callable[[Path], object] = print) -> None:
    results = Path(arguments[0]) if arguments else Path("benchmarks/results")
    target = Path(arguments[1]) if len(arguments) > 1 else Path("docs/results.md")
    target.write_text(page(results), encoding="utf-8")
    write(target)
    with report_style():
        figures = {
            LADDER_IMAGE: context_ladder(_rows(results / "robotics-full")),
            CURVES_IMAGE: context_curves(read_series(results / "icrl-full")),
            METHODS_IMAGE: compared_methods(_rows(results / "llm-full")),
        }
        for image, figure in figures.items():
            if figure is not None:
                write(save_png(figure, target.parent / image))


if __name__ == "__main__":
    main(sys.argv[1:])
