"""What a run shows while it goes on and when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from decisionrl.benchmarks.executors import Event, Finished, Progressed, Started, Task
from decisionrl.evaluation.formatting import format_gap, format_seconds, format_value
from decisionrl.evaluation.results import Row


class Display(Protocol):
    """Shows the events of a run."""

    def running(self) -> AbstractContextManager[object]:
        """Entered while tasks run."""
        ...

    def show(self, event: Event, rows: Sequence[Row], error: str | None) -> None:
        """Show one event; a finished task comes with its rows or its error."""
        ...


def display_for(console: Console, tasks: Sequence[Task]) -> Display:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, tasks) if console.is_terminal else Lines(console, len(tasks))


class Lines:
    """One line when a task starts and one when it ends."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.done = 0

    def running(self) -> AbstractContextManager[object]:
        """Nothing to set up."""
        return nullcontext()

    def show(self, event: Event, rows: Sequence[Row], error: str | None) -> None:
        """Print the start and the end of a task."""
        if isinstance(event, Started):
            _line(self.console, Text(f"start  {event.task.title}"))
        elif isinstance(event, Finished):
            self.done += 1
            _line(self.console, Text(f"[{self.done}/{self.total}]  ") + _outcome(event, rows, error))


class Bars:
    """One bar for the whole run with the time it still needs, and one for every running task."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}", style="dim"),
            console=console,
        )
        self.total = len(tasks)
        self.overall = self.progress.add_task(f"0 of {self.total}", total=sum(task.cost for task in tasks), message="")
        self.bars: dict[str, TaskID] = {}
        self.fractions: dict[str, float] = {}
        self.finished_cost = 0.0
        self.done = 0
        self.costs = {task.stem: task.cost for task in tasks}

    def running(self) -> AbstractContextManager[object]:
        """The live area of the terminal."""
        return self.progress

    def show(self, event: Event, rows: Sequence[Row], error: str | None) -> None:
        """Move the bars; a finished task leaves one line above them."""
        stem = event.task.stem
        if isinstance(event, Started):
            self.fractions[stem] = 0.0
            self.bars[stem] = self.progress.add_task(event.task.title, total=1.0, message="")
        elif isinstance(event, Progressed):
            self.fractions[stem] = min(1.0, max(0.0, event.fraction))
            self.progress.update(self.bars[stem], completed=self.fractions[stem], message=event.message)
        else:
            self.done += 1
            self.finished_cost += event.task.cost
            del self.fractions[stem]
            self.progress.remove_task(self.bars.pop(stem))
            _line(self.progress.console, _outcome(event, rows, error))
        running = sum(self.costs[name] * fraction for name, fraction in self.fractions.items())
        self.progress.update(
            self.overall, completed=self.finished_cost + running, description=f"{self.done} of {self.total}"
        )


def results_table(rows: Sequence[Row]) -> Table:
    """The main metric of every case, method and seed: value, interval, gap and its reference, time."""
    main = list({(row.case, row.method, row.seed): row for row in reversed(rows)}.values())[::-1]
    seeds = len({row.seed for row in main}) > 1
    metrics = {row.metric for row in main}
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = ["case", "method", *(["seed"] if seeds else []), *(["metric"] if len(metrics) > 1 else [])]
    for name in left:
        table.add_column(name, overflow="fold")
    for name in [metrics.pop() if len(metrics) == 1 else "value", "95 % interval", "gap"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    case = None
    for row in main:
        interval = "" if row.low is None or row.high is None else f"{format_value(row.low)} … {format_value(row.high)}"
        texts = {"case": row.case if row.case != case else "", "method": row.method}
        texts |= {"seed": str(row.seed), "metric": row.metric}
        table.add_row(
            *[texts[name] for name in left],
            format_value(row.value),
            interval,
            format_gap(row.gap),
            "" if row.gap is None else row.reference_kind,
            format_seconds(row.seconds),
        )
        case = row.case
    return table


def _outcome(event: Finished, rows: Sequence[Row], error: str | None) -> Text:
    """One line on a finished task: its main value and gap, or the last line of its error."""
    if error is not None:
        reason = error.strip().splitlines()[-1]
        return Text.assemble(("failed ", "bold red"), f"{event.task.title}: {reason}")
    main = rows[0]
    interval = (
        "" if main.low is None or main.high is None else f" [{format_value(main.low)}, {format_value(main.high)}]"
    )
    gap = "" if main.gap is None else f", gap {format_gap(main.gap)} to {main.reference_kind}"
    value = f"{main.metric} {format_value(main.value)}{interval}"
    return Text.assemble(("done   ", "green"), f"{event.task.title}: {value}{gap}, {format_seconds(event.seconds)}")


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)
