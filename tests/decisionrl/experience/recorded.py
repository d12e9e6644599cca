"""Small recorded episodes for the tests of what is drawn from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from decisionrl.experience.store import EpisodeStore, store_episodes

LENGTHS = (4, 1, 6, 3)


def episodes(lengths: tuple[int, ...] = LENGTHS, *, named: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """Episodes of random numbers; ``named``: observations are dicts of a vector and a whole number."""
    rng = np.random.default_rng(seed)
    made = []
    for number, steps in enumerate(lengths):
        seen = rng.normal(size=(steps + 1, 2)).astype(np.float32)
        last = np.arange(steps) == steps - 1
        made.append(
            {
                "observation": {"at": seen, "room": rng.integers(0, 5, steps + 1)} if named else seen,
                "action": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
                "reward": rng.normal(size=steps).astype(np.float32),
                "terminated": last & (number % 2 == 0),
                "truncated": last & (number % 2 == 1),
                "goal": rng.integers(1, 9, (steps, 2)),
            }
        )
    return made


def store(lengths: tuple[int, ...] = LENGTHS, *, named: bool = False, **info: Any) -> EpisodeStore:
    """Those episodes as a store."""
    vector = spaces.Box(-np.inf, np.inf, (2,))
    return store_episodes(
        episodes(lengths, named=named),
        observation_space=spaces.Dict({"at": vector, "room": spaces.Discrete(5)}) if named else vector,
        action_space=spaces.Box(-1, 1, (3,)),
        info=info,
    )
