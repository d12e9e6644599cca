"""Flat files of transitions in the form of D4RL (arXiv 2004.07219), as episodes and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.experience.arrays import (
    Array,
    Arrays,
    action_box,
    check_finite,
    column,
    observation_box,
    read_hdf5,
    read_npz,
    write_hdf5,
    write_npz,
)
from decisionrl.experience.store import DatasetError, EpisodeStore

INFOS = "infos/"
METADATA = "metadata/decisionrl"
SUFFIXES = (".hdf5", ".h5", ".npz")

JUMP = 1e-5
"""How far, relative to 1 or its size, an observation may lie from where the step before led."""


def load_d4rl(path: str | Path, *, action_space: spaces.Space[Any] | None = None) -> EpisodeStore:
    """Episodes of an hdf5 or npz file of ``observations``, ``actions``, ``rewards`` and ``terminals``, all [N, ...],
    with ``timeouts``, ``next_observations`` or both; ``infos/NAME`` [N, ...] becomes an extra.

    An episode ends after a terminal, after a timeout, where the next observation is not the one that the step led to
    (an unmarked reset), and with the file. Without ``next_observations`` the file does not hold what the last step of
    an episode led to. After a terminal nobody reads it, and the last observation stands there again; otherwise the
    last step is left out, as D4RL's own ``qlearning_dataset`` does, and its observation ends the episode.

    Args:
        action_space: default that of :func:`save_d4rl`, otherwise Box(-1, 1).

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: missing columns, lengths that do not fit, values that are not finite, another kind of file.
        ImportError: hdf5 without h5py.
    """
    path = Path(path)
    _check_suffix(path)
    arrays = read_npz(path) if path.suffix == ".npz" else read_hdf5(path)
    columns = _columns(arrays, path)
    observations, actions, rewards = (columns[name] for name in ("observations", "actions", "rewards"))
    count = len(rewards)
    terminated = columns["terminals"].astype(bool).reshape(count)
    timeouts = columns.get("timeouts", np.zeros(count)).astype(bool).reshape(count)
    end = terminated | timeouts
    end[-1] = True
    following = columns.get("next_observations")
    if following is not None:
        end[:-1] |= _jumps(following[:-1], observations[1:])
        kept = np.ones(count, bool)
    else:
        following = np.concatenate([observations[1:], observations[-1:]])
        following[terminated] = observations[terminated]
        kept = ~end | terminated
        end[:-1] |= ~kept[1:]
        if not kept.any():
            raise DatasetError(f"{path}: no step says what it led to; valid: longer episodes, or next_observations")

    if METADATA in arrays:
        saved = json.loads(bytes(arrays[METADATA]))
        observation_space, info = _space(saved["observation_space"]), saved["info"]
        action_space = action_space or _space(saved["action_space"])
    else:
        observation_space, info = observation_box(observations.shape[1:], observations.dtype), {}
        action_space = action_space or action_box(actions, actions.shape[1:], path)
    length = torch.from_numpy(np.diff(np.flatnonzero(end[kept]), prepend=-1))
    return EpisodeStore(
        observation=_interleaved(_tensor(observations[kept]), _tensor(following[kept]), length),
        action=_tensor(actions[kept]),
        reward=_tensor(rewards[kept].reshape(-1)),
        terminated=torch.from_numpy(terminated[kept]),
        truncated=torch.from_numpy((timeouts | (end & ~terminated))[kept]),
        length=length,
        observation_space=observation_space,
        action_space=action_space,
        extras={name: _tensor(array[kept]) for name, array in _infos(arrays, count).items()},
        info=info,
    )


def save_d4rl(store: EpisodeStore, path: str | Path) -> None:
    """Write the file that :func:`load_d4rl` reads back without loss; its spaces and ``info`` as JSON in a column of
    their own, which others ignore.

    Raises:
        DatasetError: observations are dicts, spaces are neither Box nor Discrete, an episode ends without a mark, the
            suffix is unknown.
        ImportError: hdf5 without h5py.
    """
    path = Path(path)
    _check_suffix(path)
    observations = store.observations_before()
    if not isinstance(observations, Tensor):
        raise DatasetError(f"observation has the keys {sorted(observations)}; valid: one tensor, in a flat file")
    step = torch.arange(store.num_steps, device=store.length.device) - store.first[store.episode]
    wrong = (store.terminated | store.truncated) != (step == store.length[store.episode] - 1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DatasetError(
            f"episode {int(store.episode[row])}, step {int(step[row])}: terminated = {bool(store.terminated[row])}, "
            f"truncated = {bool(store.truncated[row])}; valid: one of them at the last step and only there"
        )
    following = store.observation_at(store.episode, step + 1)
    assert isinstance(following, Tensor)
    columns = {
        "observations": observations,
        "actions": store.action,
        "rewards": store.reward,
        "next_observations": following,
        "terminals": store.terminated,
        "timeouts": store.truncated,
        **{INFOS + name: tensor for name, tensor in store.extras.items()},
    }
    metadata = {
        "observation_space": _described(store.observation_space),
        "action_space": _described(store.action_space),
        "info": dict(store.info),
    }
    arrays: Arrays = {name: tensor.cpu().numpy() for name, tensor in columns.items()}
    arrays[METADATA] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    (write_npz if path.suffix == ".npz" else write_hdf5)(path, arrays)


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DatasetError(f"{path}: suffix = {path.suffix!r}; valid: {', '.join(SUFFIXES)}")


def _columns(arrays: Arrays, path: Path) -> Arrays:
    """The columns there must be and those there may be, of one length and finite."""
    names = ["observations", "actions", "rewards", "terminals"]
    optional = [name for name in ("timeouts", "next_observations") if name in arrays]
    if not optional:
        raise DatasetError(f"{path}: timeouts and next_observations are missing; valid: at least one of them")
    columns = {name: column(arrays, name, path) for name in names + optional}
    count = len(columns["rewards"])
    if not count:
        raise DatasetError(f"{path}: rewards is empty; valid: at least one step")
    for name, array in columns.items():
        if len(array) != count:
            raise DatasetError(f"{path}: {name} has {len(array)} rows; valid: {count}, those of rewards")
        check_finite(array, name, path)
    return columns


def _infos(arrays: Arrays, count: int) -> Arrays:
    """What else was recorded of every step, as far as it is numbers."""
    return {
        name.removeprefix(INFOS): array
        for name, array in arrays.items()
        if name.startswith(INFOS) and array.dtype.kind in "biuf" and array.shape[:1] == (count,)
    }


def _jumps(led_to: Array, seen: Array) -> Array:
    """Where a step did not lead to the observation after it, [n]."""
    before, after = (array.reshape(len(array), -1).astype(np.float64) for array in (led_to, seen))
    return np.asarray((np.abs(after - before) > JUMP * np.maximum(np.abs(before), 1)).any(1))


def _interleaved(observations: Tensor, following: Tensor, length: Tensor) -> Tensor:
    """Every episode's observations and then what its last step led to, [steps + episodes, ...]."""
    episodes = torch.arange(len(length))
    last = length.cumsum(0) - 1
    rows = observations.new_empty(len(observations) + len(length), *observations.shape[1:])
    rows[torch.arange(len(observations)) + episodes.repeat_interleave(length)] = observations
    rows[last + episodes + 1] = following[last]
    return rows


def _tensor(array: Array) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _described(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        bounds = {name: getattr(space, name).tolist() for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    raise DatasetError(f"space = {space}; valid: Box or Discrete, in a flat file")


def _space(described: dict[str, Any]) -> spaces.Space[Any]:
    if described["type"] == "Discrete":
        return spaces.Discrete(described["n"], start=described["start"])
    dtype = np.dtype(described["dtype"]).type
    low, high = (np.asarray(described[name], dtype) for name in ("low", "high"))
    return spaces.Box(low, high, tuple(described["shape"]), dtype)
