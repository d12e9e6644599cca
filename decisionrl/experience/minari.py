"""Episode stores as Minari datasets, written and read in both of Minari's layouts; nothing is downloaded."""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes

Layout = Literal["hdf5", "arrow"]
"""One HDF5 file for all episodes, or an Arrow file for each."""

ROOT = "MINARI_DATASETS_PATH"
"""The environment variable that names the folder in which Minari looks for its datasets."""

INFO = "decisionrl_info"
"""The entry of a dataset's metadata that holds the store's ``info``."""


def minari_module() -> ModuleType:
    """Minari.

    Raises:
        ImportError: minari or h5py is not installed.
    """
    try:
        import h5py  # noqa: F401  - minari imports it only when it reads, with a hint at another extra
        import minari
    except ImportError as error:
        raise ImportError(
            f"Minari datasets need minari and h5py ({error}): pip install 'decisionrl[offline]'"
        ) from error
    return minari  # type: ignore[no-any-return]


def save_minari(
    store: EpisodeStore,
    directory: Path | str,
    *,
    layout: Layout = "hdf5",
    name: str | None = None,
    env_spec: EnvSpec | None = None,
    algorithm_name: str | None = None,
    author: str | None = None,
    author_email: str | None = None,
    code_permalink: str | None = None,
    description: str | None = None,
) -> Path:
    """Write a store as a Minari dataset (format of Minari 0.5) and return its directory.

    Minari itself finds it as ``minari.load_dataset(name)`` where the directory is, or is linked as, ``ROOT/name`` and
    ``MINARI_DATASETS_PATH=ROOT``. Arrays are kept as they are (images too: no JPEG), cast to the dtype of their
    space where that is wider; an episode of T steps has T + 1 observations. ``store.extras`` become Minari's
    ``infos``, with a row of zeros in front, which belongs to the reset. ``store.info`` is kept in the metadata, its
    ``random_score`` and ``expert_score`` also as Minari's ``ref_min_score`` and ``ref_max_score``.

    Args:
        directory: where to; it appears when the dataset is whole.
        name: Minari's id ``(namespace/)name-vN``; by default the directory's name, with ``-v0`` if it has no version.
        env_spec: with which ``MinariDataset.recover_environment`` makes the environment again.

    Raises:
        ImportError: minari or h5py is not installed.
        FileExistsError: the directory is there already.
        ValueError: a name or a layout that Minari does not know.
        DatasetError: ``store.info`` is not made of what JSON knows.
    """
    minari = minari_module()
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"directory = {directory} is there already; valid: a new one")
    name = _versioned(directory.name) if name is None else name
    _check_name(minari, name)
    if layout not in ("hdf5", "arrow"):
        raise ValueError(f"layout = {layout!r}; valid: 'hdf5', 'arrow'")
    try:
        info = json.loads(json.dumps(dict(store.info), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"info = {dict(store.info)}: {error}; valid: finite numbers, text, lists, dicts") from error
    more: dict[str, Any] = {INFO: info}
    scores = {"ref_min_score": "random_score", "ref_max_score": "expert_score"}
    more |= {theirs: info[ours] for theirs, ours in scores.items() if ours in info}
    if env_spec is not None:
        more["env_spec"] = env_spec.to_json()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as root:
        with _datasets_in(Path(root)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one for every optional argument that is left out
            written = minari.create_dataset_from_buffers(
                name,
                list(_buffers(store)),
                observation_space=store.observation_space,
                action_space=store.action_space,
                data_format=layout,
                jpeg_encoding=False,
                algorithm_name=algorithm_name,
                author=author,
                author_email=author_email,
                code_permalink=code_permalink,
                description=description,
            )
            written.storage.update_metadata(more)
        (Path(root) / name).rename(directory)
    return directory


def load_minari(
    id_or_directory: Path | str,
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> EpisodeStore:
    """Read a Minari dataset: a directory with ``data/metadata.json``, or the id of one in Minari's local folder.

    Floats of 64 bits become float32. Every array in Minari's ``infos`` that holds a number or more for each step is
    in ``extras``; nested entries and text are not. ``info`` is that of the store that was saved or, of a dataset from
    elsewhere, ``dataset_id``, ``env``, ``algorithm_name``, ``random_score`` and ``expert_score`` as far as it names
    them.

    Args:
        observation_space, action_space: what the policy was made for; None takes the dataset's.

    Raises:
        ImportError: minari or h5py is not installed.
        DatasetError: there is no such dataset, it has other spaces, or its episodes do not fit together.
    """
    minari = minari_module()
    dataset = _opened(minari, id_or_directory)
    for which, wanted in (("observation_space", observation_space), ("action_space", action_space)):
        found = getattr(dataset, which)
        if wanted is not None and found != wanted:
            raise DatasetError(f"{id_or_directory}: {which} is {found}; valid: {wanted}, which the policy is made for")
    episodes = [_episode(episode) for episode in dataset.iterate_episodes()]
    if (steps := sum(len(each["reward"]) for each in episodes)) != dataset.total_steps:
        raise DatasetError(f"{id_or_directory} has {steps} steps; valid: {dataset.total_steps}, as its metadata says")
    return store_episodes(
        episodes,
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
        info=_info(dataset),
    )


def _versioned(name: str) -> str:
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def _check_name(minari: ModuleType, name: str) -> None:
    try:
        minari.dataset.minari_dataset.parse_dataset_id(name)
    except (ValueError, TypeError) as error:  # TypeError: no version
        raise ValueError(f"name = {name!r}; valid: (namespace/)name-vN of letters, digits, - and _") from error


@contextmanager
def _datasets_in(root: Path) -> Iterator[None]:
    """Minari's folder is ``root`` meanwhile; it does not bear a relative one."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(root.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


def _buffers(store: EpisodeStore) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    seen = _arrays(store.observation, store.observation_space)
    action = _arrays(store.action, store.action_space)
    reward, terminated, truncated = (each.cpu().numpy() for each in (store.reward, store.terminated, store.truncated))
    extras = {name: tensor.cpu().numpy() for name, tensor in store.extras.items()}
    for number, (first, length) in enumerate(zip(store.first.tolist(), store.length.tolist(), strict=True)):
        steps = slice(first, first + length)
        yield EpisodeBuffer(
            id=number,
            observations=_sliced(seen, slice(first + number, first + number + length + 1)),
            actions=_sliced(action, steps),
            rewards=reward[steps],
            terminations=terminated[steps],
            truncations=truncated[steps],
            infos={name: _after_reset(array[steps]) for name, array in extras.items()},
        )


def _arrays(value: Any, space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _arrays(value[key], each) for key, each in space.spaces.items()}
    array = value.cpu().numpy()
    return array.astype(np.result_type(array.dtype, space.dtype), copy=False)


def _sliced(value: Any, rows: slice) -> Any:
    return {key: _sliced(each, rows) for key, each in value.items()} if isinstance(value, dict) else value[rows]


def _after_reset(rows: np.ndarray[Any, Any]) -> Any:
    padded = np.concatenate([np.zeros_like(rows[:1]), rows])
    return padded if padded.ndim > 1 else list(padded)  # Minari's Arrow layout cannot read one-dimensional arrays back


def _opened(minari: ModuleType, id_or_directory: Path | str) -> Any:
    data = Path(id_or_directory) / "data"
    try:
        if (data / "metadata.json").is_file():
            return minari.MinariDataset(data)
        return minari.load_dataset(str(id_or_directory), download=False)
    except (FileNotFoundError, ValueError) as error:
        raise DatasetError(
            f"{id_or_directory} is no Minari dataset: {error}; valid: a directory with data/metadata.json, or the id "
            f"of a dataset in Minari's folder (environment variable {ROOT})"
        ) from error


def _episode(episode: Any) -> dict[str, Any]:
    steps = len(episode.rewards)
    infos = {} if episode.infos is None else episode.infos
    extras = {name: array[1:] for name, array in infos.items() if _is_step_array(array, steps)}
    return {
        **extras,
        "observation": _tensors(episode.observations),
        "action": _tensors(episode.actions),
        "reward": torch.tensor(episode.rewards),
        "terminated": torch.tensor(episode.terminations),
        "truncated": torch.tensor(episode.truncations),
    }


def _is_step_array(value: Any, steps: int) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.shape[:1] == (steps + 1,)


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(each) for key, each in value.items()}
    return torch.tensor(value)


def _info(dataset: Any) -> dict[str, Any]:
    metadata = dataset.storage.metadata
    if INFO in metadata:
        return dict(metadata[INFO])
    names = {"algorithm_name": "algorithm_name", "ref_min_score": "random_score", "ref_max_score": "expert_score"}
    info = {ours: metadata[theirs] for theirs, ours in names.items() if metadata.get(theirs) is not None}
    if dataset.env_spec is not None:
        info["env"] = dataset.env_spec.id
    return {"dataset_id": dataset.spec.dataset_id, **info}
