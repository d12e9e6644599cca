"""Episode stores as LeRobot datasets (format v3.0): Parquet files and JSON, without videos; nothing is downloaded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.experience.arrays import action_box, observation_box
from decisionrl.experience.store import DatasetError, EpisodeStore

Array = NDArray[Any]

VERSION = "v3.0"

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

OBSERVATION, STATE = "observation.", "observation.state"

FINAL = "final/"
"""Before the name of an observation, in the table of episodes: what the last step led to, for which LeRobot has no
place."""

EXTRAS = "extras."
"""Before the name of an extra, but for ``success``, which LeRobot calls ``next.success``."""

INFO = Path("meta/decisionrl.json")
"""The store's ``info``."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def save_lerobot(store: EpisodeStore, directory: Path | str, *, fps: int, task: str | None = None) -> Path:
    """Write a store as a LeRobot dataset (format v3.0) and return its directory.

    Features: ``observation.state``, or ``observation.KEY`` for each key; ``action``; ``next.reward``, ``next.done``,
    ``next.terminated`` and ``next.truncated``; ``next.success`` and ``extras.NAME`` for ``store.extras``; and those
    that LeRobot asks for. Images are written as arrays of numbers, not as videos. Two things are kept where LeRobot
    does not look: the last observation of every episode, and ``store.info``.

    Args:
        directory: where to; it appears when the dataset is whole.
        fps: steps a second, from which time stamps follow.
        task: what is done, in words; by default the environment that ``store.info`` names.

    Raises:
        FileExistsError: the directory is there already.
        ValueError: fps < 1.
        DatasetError: the names of observations or extras hold a ``/``; ``store.info`` is not made of what JSON knows.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"directory = {directory} is there already; valid: a new one")
    if fps < 1:
        raise ValueError(f"fps = {fps}; valid: a whole number >= 1")
    task = str(store.info.get("env", "unknown")) if task is None else task
    try:
        info = json.dumps(dict(store.info), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"info = {dict(store.info)}: {error}; valid: finite numbers, text, lists, dicts") from error
    columns = _columns(store, fps)
    if wrong := [name for name in columns if "/" in name]:
        raise DatasetError(f"names {wrong}; valid: names without a /")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as root:
        whole = Path(root) / directory.name
        _write_table({name: _to_arrow(array) for name, array in columns.items()}, whole / "data")
        _write_table(_episode_table(store, columns, task), whole / "meta" / "episodes")
        tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([task], name="task"))
        tasks.to_parquet(whole / "meta" / "tasks.parquet")
        (whole / "meta" / "info.json").write_text(json.dumps(_description(store, columns, fps), indent=4))
        stats = {name: {key: value.tolist() for key, value in _stats(each).items()} for name, each in columns.items()}
        (whole / "meta" / "stats.json").write_text(json.dumps(stats, indent=4))
        (whole / INFO).write_text(info)
        whole.rename(directory)
    return directory


def load_lerobot(
    directory: Path | str,
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> EpisodeStore:
    """Read a LeRobot dataset (format v3.x) of numbers.

    ``observation.state`` alone is the observation; otherwise there is a dict of all ``observation.KEY``. Datasets from
    elsewhere may lack some of what :func:`save_lerobot` writes: rewards are then 0; ``next.done`` means terminated, and
    an episode without it is truncated at its end; the last observation stands there again in place of what the last
    step led to; ``info`` holds ``fps`` and ``robot_type``.

    Args:
        observation_space, action_space: of the environment; by default boxes without bounds (of images: 0 to 255) and
            [-1, 1].

    Raises:
        FileNotFoundError: there is no such dataset.
        DatasetError: another version of the format, videos or images, numbers that do not fit together, or actions
            outside [-1, 1] without an action_space.
    """
    directory = Path(directory)
    description = json.loads((directory / "meta" / "info.json").read_text())
    version, features = description["codebase_version"], description["features"]
    if not version.startswith("v3."):
        raise DatasetError(f"{directory}: codebase_version = {version!r}; valid: v3.x")
    for name, feature in features.items():
        if feature["dtype"] in ("image", "video", "string"):
            raise DatasetError(f"{directory}: {name} has dtype {feature['dtype']!r}; valid: numbers")
    table = _read_table(directory / "data").sort_by("index")
    if table.num_rows != description["total_frames"]:
        raise DatasetError(f"{directory} has {table.num_rows} frames; valid: {description['total_frames']}, as it says")
    columns = {name: _from_arrow(table, name, feature["shape"]) for name, feature in features.items()}
    if missing := [name for name in ("action", "episode_index") if name not in columns]:
        raise DatasetError(f"{directory}: {', '.join(missing)} missing; there are {', '.join(columns)}")

    flat = {name: _single(array) for name, array in columns.items()}
    end = np.append(np.diff(flat["episode_index"]) != 0, True)
    seen = _observations(directory, columns, end)
    single = list(seen) == ["state"] and not isinstance(observation_space, spaces.Dict)
    if observation_space is None:
        boxes: dict[str, spaces.Space[Any]] = {
            key: observation_box(array.shape[1:], array.dtype) for key, array in seen.items()
        }
        observation_space = boxes["state"] if single else spaces.Dict(boxes)
    action_space = action_space or action_box(columns["action"], columns["action"].shape[1:], directory)
    nothing = np.zeros(len(end), np.bool_)
    terminated = flat.get("next.terminated", flat.get("next.done", nothing))
    observation = {key: _to_tensor(array, _inner(observation_space, key, single)) for key, array in seen.items()}
    return EpisodeStore(
        observation=observation["state"] if single else observation,
        action=_to_tensor(columns["action"], action_space),
        reward=torch.from_numpy(flat.get("next.reward", nothing).astype(np.float32)),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(flat.get("next.truncated", end & ~terminated)),
        length=torch.from_numpy(np.diff(np.flatnonzero(end), prepend=-1)),
        observation_space=observation_space,
        action_space=action_space,
        extras={_extra(name): torch.from_numpy(flat[name]) for name in flat if _extra(name)},
        info=_info(directory, description),
    )


def _columns(store: EpisodeStore, fps: int) -> dict[str, Array]:
    """The features of all frames."""
    seen = store.observations_before()
    episode = store.episode
    step = torch.arange(store.num_steps, device=episode.device) - store.first[episode]
    success = {"next.success": store.extras["success"]} if "success" in store.extras else {}
    tensors = {
        **({STATE: seen} if isinstance(seen, Tensor) else {OBSERVATION + key: each for key, each in seen.items()}),
        "action": store.action,
        "next.reward": store.reward,
        "next.done": store.terminated | store.truncated,
        "next.terminated": store.terminated,
        "next.truncated": store.truncated,
        **success,
        **{EXTRAS + name: tensor for name, tensor in store.extras.items() if name != "success"},
        "timestamp": (step.double() / fps).float(),
        "frame_index": step,
        "episode_index": episode,
        "index": torch.arange(store.num_steps),
        "task_index": torch.zeros(store.num_steps, dtype=torch.int64),
    }
    arrays: dict[str, Array] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    return {name: _single(array) for name, array in arrays.items()}


def _description(store: EpisodeStore, columns: Mapping[str, Array], fps: int) -> dict[str, Any]:
    """What ``info.json`` says."""
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": store.num_episodes,
        "total_frames": store.num_steps,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{store.num_episodes}"},
        "data_path": f"data/{FILE}",
        "video_path": None,
        "features": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape[1:]) or [1], "names": None}
            for name, array in columns.items()
        },
    }


def _episode_table(store: EpisodeStore, columns: Mapping[str, Array], task: str) -> dict[str, pa.Array]:
    episodes = np.arange(store.num_episodes)
    first, length = store.first.cpu().numpy(), store.length.cpu().numpy()
    final = store.observation_at(torch.as_tensor(episodes).to(store.length), store.length)
    named = {STATE: final} if isinstance(final, Tensor) else {OBSERVATION + key: each for key, each in final.items()}
    none = np.zeros_like(episodes)
    arrays = {
        "episode_index": episodes,
        "length": length,
        "dataset_from_index": first,
        "dataset_to_index": first + length,
        **{f"{which}/{index}": none for which in ("data", "meta/episodes") for index in ("chunk_index", "file_index")},
        **{FINAL + name: tensor.cpu().numpy() for name, tensor in named.items()},
    }
    for name, array in columns.items():
        of_each = [_stats(each) for each in np.split(array, first[1:])]
        arrays |= {f"stats/{name}/{key}": np.stack([stats[key] for stats in of_each]) for key in of_each[0]}
    return {
        **{name: _to_arrow(array) for name, array in arrays.items()},
        "tasks": pa.array([[task]] * store.num_episodes),
    }


def _stats(array: Array) -> dict[str, Array]:
    """Over the frames; of single numbers as arrays [1]."""
    rows = array.reshape(len(array), *(array.shape[1:] or (1,)))
    exact = rows if rows.dtype.kind in "iu" else rows.astype(np.float64)
    numbers = rows.astype(np.float64)
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    return {
        "min": exact.min(0),
        "max": exact.max(0),
        "mean": numbers.mean(0),
        "std": numbers.std(0),
        "count": np.array([len(rows)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def _write_table(columns: Mapping[str, pa.Array], folder: Path) -> None:
    path = folder / FILE.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(dict(columns)), path)


def _read_table(folder: Path) -> pa.Table:
    """All files of a folder under each other."""
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no */*.parquet")
    return pa.concat_tables([pq.read_table(path) for path in paths])


def _to_arrow(array: Array) -> pa.Array:
    """Numbers, lists of fixed size, or lists of lists, as the ``datasets`` library lays arrays out."""
    if array.ndim == 1:
        return pa.array(array)
    inner = _to_arrow(array.reshape(-1, *array.shape[2:]))
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(inner, array.shape[1])
    return pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1], inner)


def _from_arrow(table: pa.Table, name: str, shape: list[int]) -> Array:
    """A column [rows, *shape]."""
    values = table.column(name).combine_chunks()
    while (
        pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type)
    ):
        values = values.flatten()
    whole = (table.num_rows, *shape)
    array: Array = values.to_numpy(zero_copy_only=False)
    if array.size != np.prod(whole) or array.dtype.kind not in "biuf":
        raise DatasetError(f"{name} has {array.size} entries of {array.dtype}; valid: numbers of shape {list(whole)}")
    return np.array(array.reshape(whole), np.float32 if array.dtype == np.float64 else array.dtype)


def _observations(directory: Path, columns: Mapping[str, Array], end: Array) -> dict[str, Array]:
    """By key, those of all frames with the final one after each episode's; ``end`` marks the last frames."""
    episodes = _read_table(directory / "meta" / "episodes").sort_by("episode_index")
    seen = {}
    for name in [name for name in columns if name.startswith(OBSERVATION)]:
        array = columns[name]
        saved = FINAL + name in episodes.column_names
        final = _from_arrow(episodes, FINAL + name, list(array.shape[1:])) if saved else array[end]
        seen[name.removeprefix(OBSERVATION)] = np.insert(array, np.flatnonzero(end) + 1, final, axis=0)
    if not seen:
        raise DatasetError(f"{directory}: no feature observation.NAME; there are {', '.join(columns)}")
    return seen


def _inner(space: spaces.Space[Any], key: str, single: bool) -> spaces.Space[Any]:
    if single or not isinstance(space, spaces.Dict):
        return space
    if key not in space.spaces:
        raise DatasetError(f"observation.{key} is not in the space {space}; valid: {', '.join(space.spaces)}")
    return space[key]


def _to_tensor(array: Array, space: spaces.Space[Any]) -> Tensor:
    return torch.from_numpy(array if space.shape else _single(array))


def _single(array: Array) -> Array:
    """[rows] in place of [rows, 1]."""
    return array[:, 0] if array.shape[1:] == (1,) else array


def _extra(name: str) -> str:
    """The name of the extra that a feature is; empty if it is none."""
    return "success" if name == "next.success" else name.removeprefix(EXTRAS) if name.startswith(EXTRAS) else ""


def _info(directory: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    if (directory / INFO).is_file():
        return dict(json.loads((directory / INFO).read_text()))
    return {name: description.get(name) for name in ("fps", "robot_type")}
