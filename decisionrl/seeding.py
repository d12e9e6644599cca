"""Random numbers: one seed, independent named streams, and the state of the global generators."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices), which dropout and the like use."""
    words = np.random.SeedSequence(seed).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - the global generator is the point
    torch.manual_seed(int(words[2]))


def generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose, independent of those of every other seed and stream.

    Args:
        seed: the run's seed, from 0 up to 2**128.
        stream: what it is for, such as ``"demand"`` or ``"minibatches"``.
        device: where the random numbers are needed.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=tuple(stream.encode()))
    return torch.Generator(device).manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def random_state() -> dict[str, Any]:
    """The state of the global generators of Python, NumPy, torch and, where in use, the CUDA device."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if in_use else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to a ``random_state``."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global generators after the block as they were before it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
