"""Small batches of steps and of preferences in float64."""

import torch
from gymnasium import spaces

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.trajectories import Trajectories
from decisionrl.policies.behavior import BehaviorPolicy

SEEN = spaces.Box(-5, 5, (3,))
ACTIONS = spaces.Box(-1, 1, (2,))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def behavior(**options) -> BehaviorPolicy:
    options = {"hidden": (8,), "dropout": 0.0, "generator": rng(), **options}
    return BehaviorPolicy(SEEN, ACTIONS, **options).double()


def segments(rows: int = 4, steps: int = 5, seed: int = 0, **changes) -> Trajectories:
    generator = rng(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, steps, *shape, generator=generator, dtype=torch.float64)

    nothing = torch.zeros(rows, steps, dtype=torch.bool)
    batch = Trajectories(
        observation=normal(3),
        action=normal(2).tanh(),
        reward=normal(),
        mask=~nothing,
        log_prob=torch.zeros(rows, steps, dtype=torch.float64),
        terminated=nothing,
        truncated=nothing,
        extras={"next_observation": normal(3)},
    )
    return batch.replace(**changes)


def preferences(first, second, label, weight=None, **changes) -> PreferenceBatch:
    return PreferenceBatch(
        segments=segments(**changes),
        first=torch.tensor(first),
        second=torch.tensor(second),
        label=torch.tensor(label, dtype=torch.float64),
        weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
    )


def padded(batch: Trajectories, columns: int) -> Trajectories:
    """The same with more columns of garbage."""

    def wider(tensor: torch.Tensor) -> torch.Tensor:
        garbage = torch.full((tensor.shape[0], columns, *tensor.shape[2:]), torch.nan, dtype=torch.float64)
        if tensor.dtype == torch.bool:
            return torch.cat([tensor, torch.zeros(tensor.shape[0], columns, dtype=torch.bool)], 1)
        return torch.cat([tensor, garbage.to(tensor.dtype)], 1)

    return batch.map(wider)
