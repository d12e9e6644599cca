"""The rows of a speed benchmark, shown as they come."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from decisionrl.benchmarks.speed.timing import device_name, ratio
from decisionrl.evaluation.formatting import format_gap, format_seconds, format_value
from decisionrl.evaluation.results import Row, write_results
from decisionrl.version import code_version


class Report:
    """Collects the rows of a suite and shows each as it comes."""

    def __init__(self, suite: str, device: str, console: Console) -> None:
        self.rows: list[Row] = []
        self._suite, self._device, self._console = suite, device_name(device), console

    def add(
        self,
        case: str,
        method: str,
        metric: str,
        value: float,
        *,
        target: float | None = None,
        exact: float | None = None,
        higher: bool = False,
        seed: int = 0,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """target: what is asked for. exact: the optimum of a cost."""
        reference = target if exact is None else exact
        row = Row.build(
            suite=self._suite,
            case=case,
            method=method,
            seed=seed,
            metric=metric,
            value=value,
            low=low,
            high=high,
            n=n,
            reference=reference,
            reference_kind="none" if reference is None else "exact" if exact is not None else "peer",
            better="higher" if higher else "lower",
            seconds=seconds,
            device=self._device,
            version=code_version(),
        )
        self.rows.append(row)
        self._console.print(f"{case}/{method} seed {seed}: {metric} = {format_value(value)}", highlight=False)

    def rounds(self, case: str, method: str, metric: str, values: list[float], *, higher: bool = False) -> None:
        """One row from the values of all rounds: their median with the smallest and the largest."""
        middle, n = statistics.median(values), len(values)
        self.add(case, method, metric, middle, low=min(values), high=max(values), n=n, higher=higher)

    def speedup(self, case: str, method: str, plain: list[float], ours: list[float], target: float | None) -> None:
        """One row from the seconds of both in each round."""
        r = ratio(plain, ours)
        self.add(
            case,
            method,
            "speedup",
            r.median,
            target=target,
            higher=True,
            low=r.low,
            high=r.high,
            n=r.rounds,
            seconds=statistics.median(ours),
        )

    def table(self) -> Table:
        """All rows, with their targets and whether they are met."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("case", "method", "seed", "metric"):
            table.add_column(name, no_wrap=True)
        for name in ("value", "low … high", "reference", "gap", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            interval = "" if row.low is None else f"{format_value(row.low)} … {format_value(row.high)}"
            table.add_row(
                row.case,
                row.method,
                str(row.seed),
                row.metric,
                format_value(row.value),
                interval,
                "" if row.reference is None else f"{row.reference_kind} {format_value(row.reference)}",
                "" if row.gap is None else format_gap(row.gap),
                "" if row.seconds is None else format_seconds(row.seconds),
            )
        return table


def command_line(
    suite: str, about: str | None, measure: Callable[[Report, bool, str], None], arguments: list[str] | None
) -> None:
    """Run ``measure(report, quick, device)`` as a command, on one thread, and leave or print its rows."""
    parser = argparse.ArgumentParser(
        prog=f"python -m decisionrl.benchmarks.{suite.replace('-', '.')}", description=about
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--quick", action="store_true", help="a minute or two")
    parser.add_argument("--out", type=Path, help="a folder for results.json")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(stderr=options.json)
    console = console if console.is_terminal else Console(stderr=options.json, width=160)
    report = Report(suite, options.device, console)
    measure(report, options.quick, options.device)
    console.print(report.table(), highlight=False)
    if options.out is not None:
        write_results(options.out, report.rows)
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in report.rows], indent=1, allow_nan=False))
