"""Learning-rate schedules that recipes share."""

from __future__ import annotations

from collections.abc import Callable

import torch

ScheduleFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def one_cycle(steps: int, learning_rate: float) -> ScheduleFactory:
    """The schedule factory: up to the peak over 30 % of the steps, then down to almost nothing."""

    def factory(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps + 1)

    return factory


def linear_decay(optimizer: torch.optim.Optimizer, learning_rate: float) -> Callable[[float], None]:
    """From the progress of the training: the learning rate goes linearly to 0; for ``OnProgress``."""

    def decay(progress: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - progress)

    return decay
