"""One process of a data-parallel run: ``python toy_data_parallel.py OUT``, with RANK and so on set.

It trains three steps, then resumes in a new trainer to six, and compares itself with the other processes.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from decisionrl import distributed, seeding
from decisionrl.callbacks import Checkpoint, EarlyStopping, Evaluate, JsonlMetrics
from decisionrl.learner import GradientLearner, Loss, Update
from decisionrl.trainer import Trainer


class Share:
    """This process's rows of a batch [8, 3] that is drawn alike in all of them, and numbers of its own."""

    steps_per_sample = 1

    def __init__(self) -> None:
        self.generator = seeding.generator(0, "data")
        self.own = seeding.generator(0, f"rank {distributed.rank()}")
        self.drawn: list[float] = []

    def sample(self) -> Tensor:
        self.drawn.append(float(torch.rand((), generator=self.own)))
        whole = torch.randn(8, 3, generator=self.generator)
        return whole[distributed.rank() :: distributed.processes()]

    def observe(self, update: Update, /) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        states = {"generator": self.generator.get_state(), "own": self.own.get_state()}
        return {**states, "drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.generator.set_state(state["generator"])
        self.own.set_state(state["own"])
        self.drawn = state["drawn"]


def rollout_cost(policy: nn.Module, batch: Tensor, /) -> Loss:
    """Differentiates through several calls of the policy: state <- state + 0.1 policy(state)."""
    state, cost = batch, torch.zeros(())
    for _ in range(4):
        state = state + 0.1 * policy(state)
        cost = cost + state.square().mean()
    return Loss(cost, {"final": state.square().mean()})


def train(out: Path, steps: int, accelerator: Accelerator | None) -> tuple[Trainer, Share]:
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(policy.parameters(), 0.1, momentum=0.9)
    learner = GradientLearner(policy, rollout_cost, optimizer, clip_norm=1.0, accelerator=accelerator)
    source = Share()
    callbacks = [
        Evaluate(lambda policy: {"rank": float(distributed.rank())}, every=2, keep_best="eval/rank"),
        EarlyStopping("eval/rank", patience=100),
        JsonlMetrics(every=1),
        Checkpoint(every=2),
    ]
    trainer = Trainer(learner, source, callbacks=callbacks, out=out, seed=0, resume=True)
    trainer.fit(steps)
    return trainer, source


def main(out: Path, accelerator: Accelerator) -> None:
    assert accelerator.num_processes == 2
    train(out, 3, accelerator)
    trainer, source = train(out, 6, accelerator)
    assert trainer.step == 6
    assert trainer.recorded == {"eval/rank": 0.0}  # the main process's, in both
    own = seeding.generator(0, f"rank {distributed.rank()}")
    assert source.drawn == [float(torch.rand((), generator=own)) for _ in range(6)]
    weights = nn.utils.parameters_to_vector(trainer.policy.parameters()).detach()
    assert torch.equal(accelerator.gather(weights).view(2, -1), weights.expand(2, -1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    main(Path(sys.argv[1]), accelerator)
    # What is left of the process group's threads at exit may abort the interpreter (pytorch #179291), and the
    # prepared modules hold on to the group.
    accelerator.free_memory()
    accelerator.end_training()
