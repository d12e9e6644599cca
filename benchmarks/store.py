"""The output directory of a suite: what is finished, what failed, and the files made from it.

    DIR/results.json           every finished row, in a fixed order
    DIR/run.json               how the latest run was started
    DIR/cases/STEM.json        rows and series of one finished case, method and seed
    DIR/failures/STEM.txt      why one did not finish
    DIR/series/CASE--METHOD.json   curves for the figures, over all seeds
    DIR/work/STEM/             the case's own files, such as checkpoints

Every file is written in one atomic step, so that a run killed at any moment leaves valid files behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decisionrl.benchmarks.executors import Finished, Measurement, Task
from decisionrl.evaluation.results import (
    RESULTS_FILE,
    ResultsError,
    Row,
    parse_row,
    read_json,
    read_results,
    without_nonfinite,
    write_atomically,
    write_json,
    write_results,
)
from decisionrl.evaluation.series import (
    Series,
    merge_seeds,
    series_file,
    series_from_json,
    series_to_json,
    write_series,
)
from decisionrl.evaluation.statistics import Estimate
from decisionrl.version import code_version

Key = tuple[str, str, int]
"""Case, method and seed."""


@dataclass(frozen=True)
class Record:
    """What is kept of one case, method and seed; `errors` name numbers that became null: not finite."""

    rows: Sequence[Row]
    series: Series
    errors: Sequence[str]


class Store:
    """The finished cases of one suite in one directory.

    `config_hashes` gives, in the order of the suite, the configuration of every case and method as it is now.
    Stored cases of another configuration stay on disk until they are run again, and are left out of the
    results (`left_out` counts them). Where only `results.json` is there, as in a clone of published results, its rows
    count as finished too; the curves of a case with such seeds stay as they are, since they cannot be taken apart.
    """

    def __init__(self, directory: Path, suite: str, config_hashes: Mapping[tuple[str, str], str]) -> None:
        self.directory = directory
        self.suite = suite
        self.config_hashes = config_hashes
        self.order = {name: place for place, name in enumerate(config_hashes)}
        self.left_out = 0
        self.records: dict[Key, Record] = {}
        self._rows_only: set[Key] = set()
        for path in sorted((directory / "cases").glob("*.json")):
            self._load(path)
        if (directory / RESULTS_FILE).exists():
            self._load_results()

    def _load(self, path: Path) -> None:
        content = read_json(path)
        try:
            key: Key = content["case"], content["method"], content["seed"]
            stored_hash, rows, series = content["config_hash"], content["rows"], content["series"]
            errors = content["errors"]
        except (KeyError, TypeError) as error:
            raise ResultsError(f"{path}: not a finished case ({error!r}); delete the file to run it again") from error
        if self.config_hashes.get(key[:2]) != stored_hash:
            self.left_out += 1
            return
        self.records[key] = Record(
            [parse_row(row, where=f"{path}: row {index}") for index, row in enumerate(rows)],
            series_from_json(series, where=str(path)),
            errors,
        )

    def _load_results(self) -> None:
        """The rows of `results.json` that no file of a case holds."""
        found: dict[Key, list[Row]] = {}
        for row in read_results(self.directory):
            if not (self.directory / "cases" / f"{row.case}--{row.method}-{row.seed}.json").exists():
                found.setdefault((row.case, row.method, row.seed), []).append(row)
        for key, rows in found.items():
            if {row.config_hash for row in rows} != {self.config_hashes.get(key[:2])}:
                self.left_out += 1
                continue
            errors = [f"value of {row.metric!r} is null" for row in rows if row.value is None]
            self.records[key] = Record(rows, Series(), errors)
            self._rows_only.add(key)

    def __contains__(self, task: Task) -> bool:
        """Whether a task is finished, without errors."""
        record = self.records.get((task.case, task.method, task.seed))
        return record is not None and not record.errors

    def add(self, finished: Finished) -> tuple[Sequence[Row], str | None]:
        """Keep what a task returned; gives its rows, and the error where it failed.

        A number that is not finite is kept as null, and makes the task a failure that will be run again.
        """
        rows: list[Row] = []
        errors: list[str] = [] if finished.error is None else [finished.error]
        if finished.result is not None:
            try:
                built = [without_nonfinite(self._row(finished, item)) for item in finished.result.rows]
            except (TypeError, ValueError) as problem:
                errors.append(f"{finished.task.title}: {problem}")
            else:
                rows = [row for row, _ in built]
                errors.extend(message for _, messages in built for message in messages)
                self._keep(finished.task, Record(rows, finished.result.series, errors))
        error = "\n".join(errors) or None
        failure = self.directory / "failures" / f"{finished.task.stem}.txt"
        if error is None:
            failure.unlink(missing_ok=True)
        else:
            write_atomically(failure, error.encode())
        return rows, error

    def _keep(self, task: Task, record: Record) -> None:
        """Store a record and rewrite the files made from it."""
        content = {
            "case": task.case,
            "method": task.method,
            "seed": task.seed,
            "config_hash": task.config_hash,
            "rows": [dataclasses.asdict(row) for row in record.rows],
            "series": series_to_json(record.series),
            "errors": list(record.errors),
        }
        write_json(self.directory / "cases" / f"{task.stem}.json", content)
        self.records[task.case, task.method, task.seed] = record
        self._rows_only.discard((task.case, task.method, task.seed))
        self._write_series(task.case, task.method)
        self.write_results()

    def rows(self) -> list[Row]:
        """All finished rows: cases and methods in the order of the suite, then seeds, then as measured."""
        keys = sorted(self.records, key=lambda key: (self.order[key[:2]], key[2]))
        return [row for key in keys for row in self.records[key].rows]

    def write_results(self) -> None:
        """Rewrite `results.json` from what is finished."""
        write_results(self.directory, self.rows())

    def _write_series(self, case: str, method: str) -> None:
        keys = [key for key in sorted(self.records) if key[:2] == (case, method)]
        if self._rows_only.intersection(keys) and series_file(self.directory, case, method).exists():
            return
        merged = merge_seeds([self.records[key].series for key in keys])
        if merged == Series():
            series_file(self.directory, case, method).unlink(missing_ok=True)
        else:
            write_series(self.directory, case, method, merged)

    def _row(self, finished: Finished, measurement: Measurement) -> Row:
        task, estimate = finished.task, measurement.estimate
        if not isinstance(estimate, Estimate):
            estimate = Estimate(float(estimate), None, None, 1)
        return Row.build(
            suite=self.suite,
            case=task.case,
            method=task.method,
            seed=task.seed,
            metric=measurement.metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            reference=measurement.reference,
            reference_kind=measurement.reference_kind,
            better=measurement.better,
            seconds=round(finished.seconds, 3),
            device=task.device,
            config_hash=task.config_hash,
            version=code_version(),
        )
