"""The runner every suite uses: cases in parallel, stopped and resumed at will, files always valid."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import fnmatch
import functools
import hashlib
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from decisionrl.benchmarks.display import display_for, results_table
from decisionrl.benchmarks.executors import (
    CaseContext,
    CaseFunction,
    CaseResult,
    Event,
    Executor,
    Finished,
    Measurement,
    Task,
    in_processes,
    in_this_process,
    usable_cores,
)
from decisionrl.benchmarks.store import Store
from decisionrl.evaluation.results import config_hash, write_json
from decisionrl.version import code_version

__all__ = ["Case", "CaseContext", "CaseResult", "Measurement", "RequestError", "run_suite"]

STOPPED = 130
"""Exit status after Ctrl-C."""


class RequestError(ValueError):
    """A request that cannot be carried out as given; exit status 2 at the command line."""


@dataclass(frozen=True)
class Case:
    """One method on one case of a suite.

    `run` must be picklable: a module-level function, a `functools.partial` of one, or a frozen dataclass
    with `__call__`. Its arguments or fields are the configuration: when they change, the case is run again.
    `cost` is a hint, in any unit, for what to start first; `max_seeds=1` is for methods that give the same
    result for every seed.
    """

    name: str
    method: str
    run: CaseFunction
    cost: float = 1.0
    max_seeds: int | None = None

    def __post_init__(self) -> None:
        for field, text in (("name", self.name), ("method", self.method)):
            if not text or "--" in text or not all(letter.isalnum() or letter in "_-.+=" for letter in text):
                raise ValueError(f"{field} of a case must be letters, digits and _ - . + = without '--', got {text!r}")
        if not math.isfinite(self.cost) or self.cost <= 0:
            raise ValueError(f"{self.title}: cost must be positive, got {self.cost!r}")

    @property
    def title(self) -> str:
        """`case/method`, which `--only` matches."""
        return f"{self.name}/{self.method}"


def run_suite(
    suite_name: str,
    cases: Sequence[Case],
    *,
    profile: str = "quick",
    only: Sequence[str] = (),
    seeds: int = 1,
    jobs: int = 1,
    device: str = "cpu",
    data: Path | None = None,
    out: Path | None = None,
    json_output: bool = False,
    on_progress: Callable[[Event], None] | None = None,
    executor: Executor | None = None,
) -> int:
    """Run the cases of a suite, show how it goes, and leave results and report in `out`.

    What is finished there with the same configuration (suite, profile, data and the case's own) is kept;
    the device is not part of it, and stands in every row. The rest is run, the costliest first.

    Args:
        only: globs over `case/method`; one without a slash also matches a case or a method alone.
        seeds: every case is run with the seeds 0 … seeds - 1.
        jobs: worker processes; 1 runs everything in this process.
        out: the directory; `results/SUITE-PROFILE` when not given.
        json_output: print the rows as JSON to standard output, and everything else to standard error.
        on_progress: called with every event, after it was shown.
        executor: how tasks are carried out, instead of `jobs`.

    Returns:
        0: all cases ran. 1: a case failed, and the others still ran. 130: stopped with Ctrl-C.

    Raises:
        RequestError: nothing to run, or a glob that matches no case; nothing was touched.
    """
    if not cases or seeds < 1 or jobs < 1:
        raise RequestError(f"need cases, seeds and jobs: {len(cases)} cases, seeds={seeds}, jobs={jobs}")
    if data is not None and not data.exists():
        raise RequestError(f"data {str(data)!r} does not exist")
    hashes = _config_hashes(suite_name, cases, profile, data)
    chosen = _select(cases, only)
    directory = out if out is not None else Path("results") / f"{suite_name}-{profile}"
    console = _console(stderr=json_output)
    store = Store(directory, suite_name, hashes)
    tasks = [
        Task(
            case=case.name,
            method=case.method,
            seed=seed,
            run=case.run,
            config_hash=hashes[case.name, case.method],
            cost=case.cost,
            profile=profile,
            device=device,
            data=data,
            directory=directory / "work" / f"{case.name}--{case.method}-{seed}",
        )
        for case in chosen
        for seed in range(min(seeds, case.max_seeds or seeds))
    ]
    pending = sorted((task for task in tasks if task not in store), key=lambda task: -task.cost)
    if kept := len(tasks) - len(pending):
        console.print(f"{kept} of {len(tasks)} are finished and kept", highlight=False)
    if store.left_out:
        console.print(f"{store.left_out} stored with another configuration are left out", highlight=False)

    about = _about_run(suite_name, profile, device)
    write_json(directory / "run.json", about)
    store.write_results()
    failed: list[Task] = []
    display = display_for(console, pending)

    def emit(event: Event) -> None:
        rows, error = store.add(event) if isinstance(event, Finished) else ((), None)
        if error is not None:
            failed.append(event.task)
        display.show(event, rows, error)
        if on_progress is not None:
            on_progress(event)

    execute = executor or (in_processes(min(jobs, len(pending))) if jobs > 1 and pending else in_this_process)
    stopped = False
    try:
        with display.running():
            execute(pending, emit)
    except KeyboardInterrupt:
        stopped = True
        console.print("stopped; the same command goes on from here", highlight=False)

    write_json(directory / "run.json", {**about, "finished": _now(), "failed": [task.title for task in failed]})
    rows = store.rows()
    if rows:
        from decisionrl.evaluation.reports import write_report  # here: worker processes do without matplotlib

        write_report(directory)
    if json_output:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, allow_nan=False, ensure_ascii=False))
    else:
        console.print(results_table(rows), highlight=False)
        console.print(f"report: {directory / 'report.html'}", highlight=False)
    for task in failed:
        console.print(f"failed: {task.title}, see {directory / 'failures' / task.stem}.txt", highlight=False)
    return STOPPED if stopped else 1 if failed else 0


def _select(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases that a glob of `only` matches, all without one.

    Raises:
        RequestError: a glob matches no case; suggests the nearest names.
    """
    if not only:
        return list(cases)

    def matches(case: Case, glob: str) -> bool:
        names = (case.title,) if "/" in glob else (case.title, case.name, case.method)
        return any(fnmatch.fnmatchcase(name, glob) for name in names)

    for glob in only:
        if not any(matches(case, glob) for case in cases):
            names = dict.fromkeys(name for case in cases for name in (case.title, case.name, case.method))
            nearest = difflib.get_close_matches(glob, names, n=3, cutoff=0.4) or list(names)[:3]
            raise RequestError(f"no case matches {glob!r}; did you mean {' or '.join(map(repr, nearest))}?")
    return [case for case in cases if any(matches(case, glob) for glob in only)]


def _config_hashes(suite: str, cases: Sequence[Case], profile: str, data: Path | None) -> dict[tuple[str, str], str]:
    """The configuration hash of every case and method, in the order of the suite."""
    data_digest = None if data is None else _digest(data)
    hashes: dict[tuple[str, str], str] = {}
    for case in cases:
        if (case.name, case.method) in hashes:
            raise RequestError(f"suite {suite!r} has two cases named {case.title!r}")
        hashes[case.name, case.method] = config_hash(
            {
                "suite": suite,
                "case": case.name,
                "method": case.method,
                "profile": profile,
                "data": data_digest,
                "run": _configuration(case.run),
            }
        )
    return hashes


def _configuration(run: Callable[..., object]) -> Mapping[str, object]:
    """What a callable does and with which arguments."""
    if isinstance(run, functools.partial):
        return {"function": _configuration(run.func), "arguments": run.args, "keywords": run.keywords}
    return {"function": run}


def _digest(data: Path) -> str:
    """A hash over the content of a file, or over the names and content of a folder's files."""
    digest = hashlib.sha256()
    for path in [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(data)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _about_run(suite: str, profile: str, device: str) -> dict[str, object]:
    """What `run.json` says about a run besides its results."""
    return {
        "suite": suite,
        "profile": profile,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {usable_cores()} cores",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": code_version(),
        "started": _now(),
        "finished": None,
        "failed": [],
    }


def _console(*, stderr: bool) -> Console:
    """The terminal, or 120 columns where the output goes elsewhere."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
