"""The suite runner: what is kept, what is run again, what a failure costs; files are valid at all times."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toy_suite
from toy_suite import DIVERGING, DYING, FAILING, Newsvendor, toy_cases

from decisionrl.benchmarks import executors
from decisionrl.benchmarks.executors import Finished, Started
from decisionrl.benchmarks.suite import Case, RequestError, run_suite
from decisionrl.evaluation import read_results, read_series


def run(out, cases=None, **options):
    """The exit status, and the titles of the tasks that were started."""
    events = []
    status = run_suite("toy", cases or toy_cases(), out=out, on_progress=events.append, **options)
    return status, [event.task.title for event in events if isinstance(event, Started)]


def calls(out):
    """How often each task ran."""
    return {path.parent.name: len(path.read_text().split()) for path in out.glob("work/*/calls.txt")}


def names(out):
    return [(row.case, row.method, row.seed, row.metric) for row in read_results(out)]


def test_a_run_leaves_rows_series_and_a_report(tmp_path, capsys):
    status, started = run(tmp_path)
    assert status == 0
    assert started == [f"{case}/{method} seed 0" for case in ("underage_9", "underage_3") for method in ("low", "high")]
    rows = read_results(tmp_path)
    assert [(row.case, row.method, row.metric) for row in rows[:3]] == [
        ("underage_3", "low", "cost"),
        ("underage_3", "low", "fill rate"),
        ("underage_3", "high", "cost"),
    ]
    first = rows[0]
    assert (first.suite, first.n, first.reference_kind, first.device) == ("toy", 200, "exact", "cpu")
    assert first.gap == pytest.approx(first.value / first.reference - 1)
    assert first.low < first.value < first.high
    assert first.version.startswith("0.")
    assert set(read_series(tmp_path)) == {(row.case, row.method) for row in rows}
    for name in ("results.md", "report.html", "figures/curve--underage_3.png"):
        assert (tmp_path / name).stat().st_size > 0
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["profile"] == "quick"
    assert about["finished"] is not None
    output = capsys.readouterr().out
    assert "start  underage_9/low seed 0" in output
    assert "[4/4]  done   underage_3/high seed 0: cost" in output
    assert "gap +" in output


def test_finished_cases_are_kept_and_new_seeds_added(tmp_path, capsys):
    run(tmp_path)
    before = read_results(tmp_path)
    status, started = run(tmp_path, seeds=2)
    assert status == 0
    assert "4 of 8 are finished and kept" in capsys.readouterr().out
    assert len(started) == 4
    assert all(title.endswith("seed 1") for title in started)
    assert set(calls(tmp_path).values()) == {1}
    after = read_results(tmp_path)
    assert [row for row in after if row.seed == 0] == before
    assert names(tmp_path)[:3] == [
        ("underage_3", "low", 0, "cost"),
        ("underage_3", "low", 0, "fill rate"),
        ("underage_3", "low", 1, "cost"),
    ]
    curve = read_series(tmp_path)["underage_3", "low"].curve
    assert curve.low[1] < curve.y[1] < curve.high[1]


def test_published_results_are_finished_too(tmp_path, capsys):
    run(tmp_path)
    before, drawn = read_results(tmp_path), read_series(tmp_path)
    shutil.rmtree(tmp_path / "cases")
    shutil.rmtree(tmp_path / "work")
    assert run(tmp_path) == (0, [])
    assert read_results(tmp_path) == before
    _, started = run(tmp_path, seeds=2, only=["underage_3/*"])
    assert started == ["underage_3/low seed 1", "underage_3/high seed 1"]
    after = read_results(tmp_path)
    assert [row for row in after if row.seed == 0] == before
    assert len(after) == len(before) + 4
    assert read_series(tmp_path) == drawn, "there is no curve of seed 0 alone to draw from"
    capsys.readouterr()
    assert len(run(tmp_path, toy_cases(episodes=300))[1]) == 4
    assert "6 stored with another configuration are left out" in capsys.readouterr().out


def test_published_results_with_a_failure_are_run_again(tmp_path):
    run(tmp_path, [DIVERGING])
    shutil.rmtree(tmp_path / "cases")
    assert run(tmp_path, [DIVERGING]) == (1, ["broken/nan seed 0"])


def test_a_changed_configuration_is_run_again(tmp_path, capsys):
    run(tmp_path)
    changed = toy_cases()
    changed[0] = Case("underage_3", "low", Newsvendor(0.6))
    _, started = run(tmp_path, changed)
    assert started == ["underage_3/low seed 0"]
    assert "1 stored with another configuration are left out" in capsys.readouterr().out
    assert len(read_results(tmp_path)) == 8
    assert len(run(tmp_path, changed, profile="full")[1]) == 4
    assert run(tmp_path, changed, profile="full")[1] == []


def test_results_hold_only_what_the_present_configuration_gives(tmp_path):
    run(tmp_path)
    run(tmp_path, toy_cases(episodes=300), only=["underage_3/*"])
    assert {row.case for row in read_results(tmp_path)} == {"underage_3"}
    assert run(tmp_path, toy_cases(episodes=300), only=["underage_3/*"])[1] == []


def test_changed_data_is_a_changed_configuration(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("1")
    assert len(run(tmp_path / "out", data=data)[1]) == 4
    assert run(tmp_path / "out", data=data)[1] == []
    data.write_text("2")
    assert len(run(tmp_path / "out", data=data)[1]) == 4


def test_arguments_of_a_partial_are_its_configuration(tmp_path):
    def case(reason):
        return [Case("broken", "bug", functools.partial(toy_suite.fails, reason=reason)), toy_cases()[0]]

    hashes = []
    for reason in ("a", "a", "b"):
        events = []
        run_suite("toy", case(reason), out=tmp_path, on_progress=events.append)
        hashes.append(events[0].task.config_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failing_case_costs_itself_only(tmp_path, capsys, jobs):
    status, started = run(tmp_path, [FAILING, *toy_cases()], jobs=jobs)
    assert status == 1
    assert len(started) == 5
    assert len(read_results(tmp_path)) == 8
    trace = (tmp_path / "failures" / "broken--bug-0.txt").read_text()
    assert "RuntimeError: no such luck" in trace
    assert "failed broken/bug seed 0: RuntimeError: no such luck" in capsys.readouterr().out
    assert "broken/bug seed 0" in (tmp_path / "report.html").read_text()
    fixed = Case("broken", "bug", Newsvendor(1.0))
    assert run(tmp_path, [fixed, *toy_cases()]) == (0, ["broken/bug seed 0"])
    assert not (tmp_path / "failures" / "broken--bug-0.txt").exists()


def test_a_worker_that_dies_costs_its_own_case_only(tmp_path):
    status, _ = run(tmp_path, [DYING, *toy_cases()], jobs=2)
    assert status == 1
    assert len(read_results(tmp_path)) == 8
    assert "died with exit code 9" in (tmp_path / "failures" / "broken--crash-0.txt").read_text()


@pytest.mark.slow
def test_a_case_that_cannot_be_pickled_says_what_can(tmp_path):
    def local(context):
        raise AssertionError

    status, _ = run(tmp_path, [Case("local", "function", local), toy_cases()[0]], jobs=2)
    assert status == 1
    assert (
        "run must be picklable: a module-level function"
        in (tmp_path / "failures" / "local--function-0.txt").read_text()
    )
    assert len(read_results(tmp_path)) == 2


def test_a_number_that_is_not_finite_is_null_and_a_failure(tmp_path):
    assert run(tmp_path, [DIVERGING])[0] == 1
    first, second = read_results(tmp_path)
    assert (first.value, second.value) == (None, 3.0)
    assert "value of 'cost' is nan" in (tmp_path / "failures" / "broken--nan-0.txt").read_text()
    assert run(tmp_path, [DIVERGING]) == (1, ["broken/nan seed 0"])  # not taken for finished


def test_globs_choose_cases_and_methods(tmp_path):
    def chosen(*only):
        return {(row.case, row.method) for row in read_results(tmp_path)} if not run(tmp_path, only=only)[0] else None

    assert chosen("*_3/low") == {("underage_3", "low")}
    assert chosen("high") == {("underage_3", "low"), ("underage_3", "high"), ("underage_9", "high")}
    assert len(chosen("underage_9", "underage_3")) == 4


def test_a_glob_that_matches_nothing_suggests_names_and_touches_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"no case matches 'underage_3/hihg'; did you mean 'underage_3/high'"):
        run(out, only=["underage_9/*", "underage_3/hihg"])
    with pytest.raises(ValueError, match="does not exist"):
        run(out, data=tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="two cases named"):
        run(out, [*toy_cases(), *toy_cases()])
    with pytest.raises(ValueError, match="name of a case"):
        Case("a--b", "c", Newsvendor(1.0))
    assert not out.exists()


def test_parallel_and_serial_runs_give_the_same_rows(tmp_path):
    run(tmp_path / "serial", seeds=2)
    run(tmp_path / "parallel", seeds=2, jobs=2)
    serial, parallel = (
        [{**vars(row), "seconds": None} for row in read_results(tmp_path / name)] for name in ("serial", "parallel")
    )
    assert serial == parallel


def test_methods_without_randomness_run_once(tmp_path):
    case = Case("underage_3", "low", Newsvendor(0.5), max_seeds=1)
    assert run(tmp_path, [case], seeds=3)[1] == ["underage_3/low seed 0"]


def test_json_goes_to_standard_output_alone(tmp_path, capsys):
    run(tmp_path, json_output=True, only=["underage_3/low"])
    output = capsys.readouterr()
    assert [row["metric"] for row in json.loads(output.out)] == ["cost", "fill rate"]
    assert "done   underage_3/low" in output.err


def test_another_executor_can_carry_out_the_tasks(tmp_path):
    def backwards(tasks, emit):
        for task in reversed(tasks):
            emit(Started(task))
            emit(executors.carry_out(task, lambda fraction, message: None))

    status, started = run(tmp_path, executor=backwards)
    assert status == 0
    assert started[0] == "underage_3/high seed 0"
    assert names(tmp_path)[0][:2] == ("underage_3", "low")


def test_ray_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"decisionrl\[ray\]"):
        executors.on_ray("auto")


@pytest.mark.slow
def test_progress_reaches_the_caller_from_workers(tmp_path):
    events = []
    run_suite("toy", toy_cases(0.5), only=["underage_3"], jobs=2, out=tmp_path, on_progress=events.append)
    assert {event.message for event in events if isinstance(event, executors.Progressed)} >= {
        "step 0",
        "step 2",
    }
    assert sum(isinstance(event, Finished) for event in events) == 2


def start(out, jobs, sleep):
    command = [
        sys.executable,
        toy_suite.__file__,
        "--out",
        str(out),
        "--jobs",
        str(jobs),
        "--sleep",
        str(sleep),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(out):
    return sorted(path.stem for path in out.glob("cases/*.json"))


def wait_for(condition, process):
    limit = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < limit
        time.sleep(0.02)


def children(pid):
    """The process ids whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for orphans")
@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_resumes_without_repeating(tmp_path, jobs):
    problems = []
    done = threading.Event()

    def watch():
        while not done.wait(0.003):
            if (tmp_path / "results.json").exists():
                try:
                    read_results(tmp_path)
                except ValueError as error:
                    problems.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process = start(tmp_path, jobs, sleep=0.6)
    try:
        wait_for(lambda: len(finished(tmp_path)) >= 3, process)
        workers = children(process.pid)
        process.kill()
        process.wait()
        kept = finished(tmp_path)
        assert 3 <= len(kept) < 8
        rows = read_results(tmp_path)
        limit = time.monotonic() + 5
        while any(map(alive, workers)):  # no orphan goes on computing
            assert time.monotonic() < limit
            time.sleep(0.02)

        before = {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("cases/*.json")}
        status, started = run(tmp_path, toy_cases(0.6), seeds=2)
    finally:
        done.set()
        watcher.join()
        process.kill()
        process.stdout.close()
    assert problems == []
    assert status == 0
    assert len(started) == 8 - len(kept)
    assert all((tmp_path / "cases" / f"{stem}.json").stat().st_mtime_ns == before[stem] for stem in kept)
    assert all(calls(tmp_path)[stem] == 1 for stem in kept)
    final = read_results(tmp_path)
    assert all(row in final for row in rows)
    assert len(final) == 16


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupt_stops_promptly_and_leaves_valid_files(tmp_path, jobs):
    process = start(tmp_path, jobs, sleep=600.0)
    wait_for(lambda: list(tmp_path.glob("work/*/calls.txt")), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)  # the case alone would take ten minutes
    assert process.returncode == 130
    assert "the same command goes on from here" in output
    assert read_results(tmp_path) == []
