import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from toy_run import ContinuingSource, distance, experiment

from decisionrl import checkpoint
from decisionrl.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Evaluate,
    JsonlMetrics,
    LearningRateSchedule,
    OnProgress,
    Progress,
    TensorBoard,
)
from decisionrl.trainer import Trainer


def scripted(values: list[float]) -> Callable[[Any], dict[str, float]]:
    """An evaluation with known results."""
    remaining = iter(values)
    return lambda policy: {"cost": next(remaining)}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def test_evaluation_schedule_is_kept_after_a_resume(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def trainer() -> Trainer:
        def function(policy: nn.Module) -> dict[str, float]:
            evaluated.append(made.step)
            return {"cost": 0.0}

        callbacks = [Evaluate(function, every=4), Checkpoint(every=5)]
        made = Trainer(experiment(20), callbacks=callbacks, out=tmp_path, resume=True)
        return made

    trainer().fit(6)
    trainer().fit(17)
    assert evaluated == [4, 8, 12, 16]


def test_evaluation_leaves_no_trace_on_the_training() -> None:
    def weights(callbacks: list[Callback]) -> torch.Tensor:
        made = experiment(20)
        Trainer(made, callbacks=callbacks, seed=0).fit(20)
        return nn.utils.parameters_to_vector(made.policy.parameters())

    def function(policy: nn.Module) -> dict[str, float]:
        assert not policy.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        return {}

    assert torch.equal(weights([Evaluate(function, every=3)]), weights([]))


def test_best_weights_are_kept(tmp_path: Path) -> None:
    made = experiment(20)
    history = []

    class Remember(Callback):
        def on_step(self, trainer: Trainer) -> None:
            history.append({name: w.clone() for name, w in trainer.policy.state_dict().items()})

    values = [3.0, 1.0, float("nan"), 2.0]
    evaluate = Evaluate(scripted(values), every=5, keep_best="eval/cost")
    Trainer(made, callbacks=[evaluate, Remember()], out=tmp_path).fit(20)
    assert (evaluate.best, evaluate.best_step) == (1.0, 10)
    other = experiment(20).policy
    assert checkpoint.load_weights(other, tmp_path / "best.safetensors") == {
        "format": "pt",
        "step": "10",
        "eval/cost": "1.0",
    }
    assert all(torch.equal(w, history[9][name]) for name, w in other.state_dict().items())


def test_best_value_outlives_a_resume(tmp_path: Path) -> None:
    for steps, value, best in ((5, 1.0, 1.0), (10, 2.0, 1.0), (15, 0.5, 0.5)):
        evaluate = Evaluate(scripted([value]), every=5, keep_best="eval/cost")
        callbacks = [evaluate, Checkpoint(every=5)]
        Trainer(experiment(20), callbacks=callbacks, out=tmp_path, resume=True).fit(steps)
        assert evaluate.best == best
        about = checkpoint.load_weights(experiment(20).policy, tmp_path / "best.safetensors")
        assert about["eval/cost"] == repr(best)


def test_callbacks_serve_one_trainer_after_another(tmp_path: Path) -> None:
    evaluate = Evaluate(scripted([1.0, 2.0, 9.0, 8.0]), every=1, keep_best="eval/cost")
    callbacks = [evaluate, EarlyStopping("eval/cost", patience=1), JsonlMetrics(every=1)]
    for name, best, steps in (("first", 1.0, 2), ("second", 8.0, 2)):
        trainer = Trainer(experiment(20), callbacks=callbacks, out=tmp_path / name)
        trainer.fit(2)
        assert (evaluate.best, trainer.step, len(lines(tmp_path / name))) == (best, steps, steps)


def test_averaged_weights_can_be_evaluated() -> None:
    made = experiment(5)
    seen = []
    average = made.learner.ema_policy  # type: ignore[attr-defined]
    evaluate = Evaluate(lambda policy: seen.append(policy) or {}, every=5, policy=average)
    Trainer(made, callbacks=[evaluate]).fit(5)
    assert seen == [average]


def test_early_stopping_counts_evaluations_without_improvement(tmp_path: Path) -> None:
    values = [5.0, 4.0, 3.95, 3.5, 3.6, 3.45, 1.0]

    def trainer(start: int) -> Trainer:
        callbacks = [
            Evaluate(scripted(values[start:]), every=2),
            EarlyStopping("eval/cost", patience=2, min_delta=0.1),
            Checkpoint(every=2),
        ]
        return Trainer(experiment(20), callbacks=callbacks, out=tmp_path, resume=True)

    trainer(0).fit(10)  # ends with 3.6, the first without improvement on 3.5
    second = trainer(5)
    second.fit(20)
    assert second.step == 12
    assert second.stop_reason is not None
    assert "eval/cost has not improved on 3.5" in second.stop_reason
    third = trainer(6)
    third.fit(20)
    assert third.step == 12  # a stopped run stays stopped


def test_early_stopping_on_a_metric_and_on_nothing() -> None:
    trainer = Trainer(experiment(20), callbacks=[EarlyStopping("loss", patience=1, mode="max")])
    trainer.fit(20)
    assert 2 <= trainer.step < 20
    with pytest.raises(ValueError, match=r"'eval/cots' is neither evaluated nor among the metrics \["):
        Trainer(experiment(20), callbacks=[EarlyStopping("eval/cots", patience=1)]).fit(3)


def test_schedule_follows_torch() -> None:
    made = experiment(20)  # comes with a OneCycle schedule
    rates = []

    class Watch(Callback):
        def on_step(self, trainer: Trainer) -> None:
            rates.append(trainer.metrics["learning_rate"])

    Trainer(made, callbacks=[Watch()]).fit(20)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=21)
    expected = []
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    assert rates == expected


def test_progress_is_a_share_of_the_target() -> None:
    seen: list[float] = []
    made = experiment(8)
    trainer = Trainer(made.learner, made.source, callbacks=[OnProgress(seen.append)])
    trainer.fit(4)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]
    trainer.fit(8)
    assert seen[5:] == [0.5, 0.625, 0.75, 0.875, 1.0]


def test_schedule_needs_an_optimizer() -> None:
    class NoOptimizer:
        policy = nn.Linear(1, 1)

    with pytest.raises(TypeError, match="NoOptimizer"):
        Trainer(
            NoOptimizer(),  # type: ignore[arg-type]
            ContinuingSource(0),
            callbacks=[LearningRateSchedule(torch.optim.lr_scheduler.ConstantLR)],
        )


def test_metrics_file_has_each_step_once(tmp_path: Path) -> None:
    def trainer(*extra: Callback) -> Trainer:
        callbacks = [JsonlMetrics(every=2), Evaluate(distance, every=5), Checkpoint(every=4), *extra]
        return Trainer(experiment(20), callbacks=callbacks, out=tmp_path, resume=True)

    class Crash(Exception):
        pass

    class CrashAt11(Callback):
        name = "crash"

        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 11:
                raise Crash

    with pytest.raises(Crash):
        trainer(CrashAt11()).fit(20)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5, 6, 8, 10]
    resumed = trainer()
    assert resumed.step == 8
    resumed.fit(8)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5, 6, 8]
    resumed.fit(16)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16]
    assert "eval/distance" in lines(tmp_path)[2]
    assert "eval/distance" not in lines(tmp_path)[3]
    seconds = [line["seconds"] for line in lines(tmp_path)]
    assert seconds == sorted(seconds)

    with (tmp_path / "metrics.jsonl").open("r+") as file:
        file.truncate(10)
    with pytest.raises(RuntimeError, match=r"metrics\.jsonl has 10 bytes"):
        trainer().fit(20)


def test_metrics_that_are_not_finite_are_null(tmp_path: Path) -> None:
    callbacks = [Evaluate(scripted([float("nan")]), every=1), JsonlMetrics(every=1)]
    Trainer(experiment(1), callbacks=callbacks, out=tmp_path).fit(1)
    assert lines(tmp_path)[0]["eval/cost"] is None


def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    for steps in (7, 10):  # the second run goes on from 5
        callbacks = [TensorBoard(every=1), Checkpoint(every=5)]
        trainer = Trainer(experiment(10), callbacks=callbacks, out=tmp_path, resume=True)
        if steps == 7:
            trainer.callbacks[-1].on_end = lambda trainer: None  # type: ignore[method-assign]
        trainer.fit(steps)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))


def test_progress_without_a_terminal_prints_lines_with_rate_and_time_left() -> None:
    output = io.StringIO()
    callbacks = [Evaluate(scripted([0.25]), every=10), Progress(interval=0.0, file=output)]
    Trainer(experiment(20), callbacks=callbacks).fit(19)
    printed = output.getvalue().splitlines()
    assert len(printed) == 20
    pattern = r"step 10/19 \(53%\)  [\d.]+ steps/s  eta \d:\d\d:\d\d  loss [\d.]+  eval/cost 0\.25"
    assert re.fullmatch(pattern, printed[9])
    quiet = io.StringIO()
    Trainer(experiment(20), callbacks=[Progress(file=quiet)]).fit(20)
    assert len(quiet.getvalue().splitlines()) == 1


def test_progress_on_a_terminal_draws_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    output = Terminal()
    Trainer(experiment(20), callbacks=[Progress(file=output)]).fit(20)
    assert "━" in output.getvalue()
    assert "step 20/20 (100%)" in output.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Evaluate(distance, every=0),
        lambda: Checkpoint(every=1, keep=0),
        lambda: EarlyStopping("loss", patience=0),
        lambda: EarlyStopping("loss", patience=1, min_delta=-1.0),
        lambda: JsonlMetrics(every=-1),
        lambda: Trainer(experiment(1), callbacks=[Checkpoint(every=1)]),
        lambda: Trainer(experiment(1), callbacks=[JsonlMetrics()]),
        lambda: Trainer(experiment(1), callbacks=[TensorBoard()]),
        lambda: Trainer(experiment(1), callbacks=[Evaluate(distance, 1, keep_best="eval/distance")]),
    ],
)
def test_bad_settings_are_errors(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"must|needs"):
        make()


def test_unknown_best_value_is_named(tmp_path: Path) -> None:
    evaluate = Evaluate(distance, every=1, keep_best="eval/cost")
    with pytest.raises(ValueError, match="'eval/cost' is not among"):
        Trainer(experiment(1), callbacks=[evaluate], out=tmp_path).fit(1)
