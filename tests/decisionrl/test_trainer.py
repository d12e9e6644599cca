import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_run import ContinuingSource, experiment, train

from decisionrl import checkpoint, run
from decisionrl.callbacks import Callback, Checkpoint
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Loss, NonFiniteError, Update
from decisionrl.trainer import Trainer


class Dataset:
    """The same batch always: x [32, 3], y [32, 1]."""

    steps_per_sample = 1

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 3, generator=generator, dtype=torch.float64)
        self.y = torch.randn(32, 1, generator=generator, dtype=torch.float64)
        self.solution = torch.linalg.lstsq(self.x, self.y).solution

    def sample(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def observe(self, update: Update, /) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        pass


def mse(policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
    return Loss((policy(batch[0]) - batch[1]).square().mean())


def linear() -> nn.Linear:
    return nn.Linear(3, 1, bias=False, dtype=torch.float64)


def test_gradient_descent_reaches_the_least_squares_solution() -> None:
    source, policy = Dataset(), linear()
    learner = GradientLearner(policy, mse, torch.optim.SGD(policy.parameters(), 0.2))
    Trainer(learner, source).fit(500)
    torch.testing.assert_close(policy.weight.detach(), source.solution.T, rtol=0, atol=1e-10)


class LeastSquaresLearner:
    """The ridge solution of all batches so far, from sums: no gradient, no optimizer."""

    def __init__(self, policy: nn.Linear) -> None:
        self.policy = policy
        self.gram = 1e-12 * torch.eye(3, dtype=torch.float64)
        self.moment = torch.zeros(3, 1, dtype=torch.float64)

    def update(self, batch: tuple[Tensor, Tensor], /) -> Update:
        x, y = batch
        self.gram = self.gram + x.T @ x
        self.moment = self.moment + x.T @ y
        with torch.no_grad():
            self.policy.weight.copy_(torch.linalg.solve(self.gram, self.moment).T)
        return Update({"weight": self.policy.weight.norm().detach()})

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.policy.weight.detach(), "gram": self.gram, "moment": self.moment}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        with torch.no_grad():
            self.policy.weight.copy_(state["weight"])
        self.gram, self.moment = state["gram"], state["moment"]


def test_a_closed_form_learner_has_the_same_trainer(tmp_path: Path) -> None:
    source = Dataset()
    for steps in (2, 3):
        learner = LeastSquaresLearner(linear())
        Trainer(learner, source, callbacks=[Checkpoint(every=1)], out=tmp_path, resume=True).fit(steps)
    torch.testing.assert_close(learner.policy.weight.detach(), source.solution.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(learner.gram, 3 * source.x.T @ source.x)


def test_the_source_gets_back_what_the_objective_carried() -> None:
    source, policy = Dataset(), linear()
    carried: list[int] = []
    observed: list[int] = []
    source.observe = lambda update: observed.append(update.carry)  # type: ignore[method-assign]

    def objective(policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
        assert observed == carried  # each update is observed before the next batch is used
        carried.append(len(carried))
        return Loss(mse(policy, batch).value, carry=carried[-1])

    Trainer(GradientLearner(policy, objective, torch.optim.SGD(policy.parameters(), 0.1)), source).fit(3)
    assert observed == [0, 1, 2]


def test_fit_trains_up_to_a_total_in_the_sources_steps() -> None:
    made = experiment(100)
    source = ContinuingSource(0, steps_per_sample=8)
    trainer = Trainer(made.learner, source)
    trainer.fit(20)
    assert (trainer.step, made.learner.state_dict()["steps"]) == (24, 3)
    trainer.fit(20)
    assert trainer.step == 24
    trainer.fit(25)
    assert trainer.step == 32


def test_every_n_steps_is_not_missed_by_larger_steps() -> None:
    due = []

    class Watch(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.due(10):
                due.append(trainer.step)

    Trainer(experiment(100).learner, ContinuingSource(0, steps_per_sample=8), callbacks=[Watch()]).fit(40)
    assert due == [16, 24, 32, 40]


def test_same_seed_same_run() -> None:
    def weights(seed: int) -> Tensor:
        made = experiment(20, seed)
        Trainer(made, seed=seed).fit(20)
        return nn.utils.parameters_to_vector(made.policy.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_stopping_between_and_going_on_changes_nothing(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 30)
    made = experiment(30)
    trainer = Trainer(made, seed=1)
    trainer.fit(11)
    trainer.fit(30)
    whole_weights = whole.policy.state_dict()
    assert all(torch.equal(w, whole_weights[name]) for name, w in made.policy.state_dict().items())


def test_a_failed_update_leaves_weights_and_the_last_checkpoint(tmp_path: Path) -> None:
    policy = linear()
    calls = 0

    def objective(policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
        nonlocal calls
        calls += 1
        loss = mse(policy, batch)
        return Loss(loss.value * (float("nan") if calls == 8 else 1.0))

    learner = GradientLearner(policy, objective, torch.optim.SGD(policy.parameters(), 0.1))
    trainer = Trainer(learner, Dataset(), callbacks=[Checkpoint(every=7)], out=tmp_path)
    with pytest.raises(NonFiniteError, match="update 8: loss") as caught:
        trainer.fit(100)
    assert caught.value.__notes__ == ["the trainer had done 7 steps"]
    assert checkpoint.steps(tmp_path / run.CHECKPOINTS) == [7]
    state = checkpoint.load_newest(tmp_path / run.CHECKPOINTS)
    assert state is not None
    assert torch.equal(state["learner"]["policy"]["weight"], policy.weight)


def test_a_failure_not_yet_reported_is_reported_at_the_end() -> None:
    policy = linear()
    optimizer = torch.optim.SGD(policy.parameters(), 0.1, fused=True)
    learner = GradientLearner(policy, lambda p, b: Loss(mse(p, b).value.sqrt() * torch.inf), optimizer, check_every=50)
    with pytest.raises(NonFiniteError, match="update 1: loss"):
        Trainer(learner, Dataset()).fit(3)


def test_a_callback_may_stop_the_run() -> None:
    class Stop(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                trainer.stop("enough")

    trainer = Trainer(experiment(100), callbacks=[Stop()])
    trainer.fit(50)
    assert (trainer.step, trainer.stop_reason) == (4, "enough")


def test_interrupt_finishes_the_step_and_saves(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    trainer = Trainer(experiment(100), callbacks=[Interrupt(), Checkpoint(every=50)], out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(50)
    assert checkpoint.steps(tmp_path / run.CHECKPOINTS) == [4]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    class Interrupt(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = Trainer(experiment(100), callbacks=[Interrupt()])
        trainer.fit(50)
        assert (trainer.step, trainer.stop_reason) == (50, None)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_arguments_are_checked() -> None:
    made = experiment(5)
    with pytest.raises(ValueError, match="source"):
        Trainer(made, made.source)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="source"):
        Trainer(made.learner)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="out"):
        Trainer(made, resume=True)
    with pytest.raises(ValueError, match="same name"):
        Trainer(made, callbacks=[Callback(), Callback()])


def with_config(config: Mapping[str, Any]) -> Experiment:
    made = experiment(5)
    return Experiment(policy=made.policy, source=made.source, learner=made.learner, config=config)


def test_a_run_is_not_overwritten_nor_resumed_as_another(tmp_path: Path) -> None:
    config = {"sizes": (64, 32), "source": {"batch": 32, "rate": 0.1}, "name": None}
    Trainer(with_config(config), out=tmp_path, seed=1)
    with pytest.raises(run.RunError, match="holds a run"):
        Trainer(with_config(config), out=tmp_path, seed=1)
    Trainer(with_config(config), out=tmp_path, seed=1, resume=True)
    changed = {**config, "source": {"batch": 64, "rate": 0.1}}
    with pytest.raises(run.RunError, match=r"config\.source\.batch was 32 and is now 64") as caught:
        Trainer(with_config(changed), out=tmp_path, seed=1, resume=True)
    assert "rate" not in str(caught.value)
    with pytest.raises(run.RunError, match=r"config\.name was None and is now absent"):
        Trainer(with_config({k: config[k] for k in ("sizes", "source")}), out=tmp_path, seed=1, resume=True)
    with pytest.raises(run.RunError, match="seed was 1 and is now 2"):
        Trainer(with_config(config), out=tmp_path, seed=2, resume=True)
    torch.set_num_threads(2)
    with pytest.warns(RuntimeWarning, match="threads 1 -> 2"):
        Trainer(with_config(config), out=tmp_path, seed=1, resume=True)
    with pytest.raises(TypeError, match=r"config\.a\[1\] is a Tensor"):
        Trainer(with_config({"a": [1, torch.zeros(1)]}), out=tmp_path / "other")


def test_only_safetensors_and_text_are_written(tmp_path: Path) -> None:
    train(tmp_path, 15)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "best.safetensors",
        "checkpoints/step-000000000014.safetensors",
        "checkpoints/step-000000000015.safetensors",
        "config.json",
        "metrics.jsonl",
        "run.json",
    ]
