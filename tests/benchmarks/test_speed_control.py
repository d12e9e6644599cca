"""The race against Stable-Baselines3: what is timed, and the rows that come of it."""

from __future__ import annotations

import pytest
from rich.console import Console

from decisionrl.benchmarks.control_peer import PEER
from decisionrl.benchmarks.speed.control import Contest, Profile, by_phase, main, prepare_ours, prepare_theirs, run
from decisionrl.benchmarks.speed.report import Report
from decisionrl.benchmarks.speed.timing import timed

ARGUMENTS = {"env": "CartPole-v1", "num_envs": 2, "horizon": 8, "minibatch": 8, "epochs": 1}
TINY = Contest("tiny", ARGUMENTS, steps=48, target=0.5)


def test_rows_of_both_and_their_ratio() -> None:
    report = Report("speed-control", "cpu", Console(quiet=True))
    run(report, Profile(2, (TINY,)), device="cpu")
    rows = {(row.method, row.metric): row for row in report.rows}
    for method in ("ppo", PEER):
        row = rows[method, "steps_per_second"]
        assert row.n == 2
        assert 0 < (row.low or 0) <= (row.value or 0) <= (row.high or 0)
        phases = [rows[method, f"seconds_{p}"].value for p in ("environment", "policy", "evaluation", "update")]
        assert all(seconds is not None and seconds > 0 for seconds in phases)
        assert rows[method, "seconds_update"].n == 48
    for clock in ("wall", "cpu"):
        row = rows["ppo", f"{clock}_ratio"]
        assert (row.reference, row.reference_kind) == (0.5, "peer")
        assert row.value is not None
        assert row.gap == pytest.approx((row.value - 0.5) / 0.5)


@pytest.mark.parametrize("prepare", [prepare_ours, prepare_theirs])
def test_phases_add_up_and_leave_no_trace(prepare) -> None:
    training = prepare(TINY, seed=0, device="cpu")
    places = [place for methods in training.phases.values() for place in methods]
    record, seconds = by_phase(training, device="cpu")
    assert record.steps == 48
    assert min(seconds.values()) >= 0
    assert all(name not in vars(owner) for owner, name in places)


def test_time_is_added_up_by_phase() -> None:
    class Worker:
        def work(self, amount: int) -> int:
            return amount

        def rest(self) -> None:
            raise RuntimeError("no rest")

    ticks = iter(range(100))
    worker = Worker()
    with timed({"both": [(worker, "work"), (worker, "rest")], "none": []}, lambda: float(next(ticks))) as seconds:
        assert worker.work(7) == 7
        with pytest.raises(RuntimeError, match="no rest"):
            worker.rest()
    assert seconds == {"both": 2.0, "none": 0.0}
    worker.work(1)
    assert seconds["both"] == 2.0


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out
