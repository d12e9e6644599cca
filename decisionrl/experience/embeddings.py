"""Recorded episodes with every frame encoded once, for training on long contexts (arXiv 2505.09561), and kept in files.

    recorded = record_demonstrations(env_options={"pixels": True})
    store = cached_embeddings("embeddings.safetensors", recorded, encoder)

The file knows the encoder and the observations that it was made with, and is refused with others.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from decisionrl import checkpoint
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.trajectories import each_key
from decisionrl.modes import evaluating
from decisionrl.policies.encoders import Encoder
from decisionrl.policies.evaluation import Observation

KIND = "embeddings"

_DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that hold no settings: the mode, hooks, and parts that are looked at by themselves."""


class StaleCacheError(DatasetError):
    """Embeddings in a file are not those of this encoder and these observations; says which of them differs."""


def embedded(
    episodes: EpisodeStore, encoder: Encoder, *, batch_size: int = 64, dtype: torch.dtype = torch.float32
) -> EpisodeStore:
    """The episodes with embeddings [rows, Do] in place of observations, and all else as it was.

    Every frame is encoded once and by itself, in evaluation mode and without gradients; random crops and dropout are
    therefore off. ``info["embeddings"]`` is the :func:`fingerprint` of the encoder.

    Args:
        episodes: their observations fit the encoder; they may be on another device.
        encoder: left in the mode it is in.
        batch_size: frames that are encoded at a time.
        dtype: float32, float64, or float16, which takes half the room at an error of about 0.1 %.

    Raises:
        DatasetError: an option has no valid value, or an embedding is not finite.
        TypeError: see :func:`fingerprint`.
    """
    if batch_size < 1:
        raise DatasetError(f"batch_size = {batch_size}; valid: at least 1")
    if dtype not in _DTYPES:
        raise DatasetError(f"dtype = {dtype}; valid: {', '.join(map(str, _DTYPES))}")
    digest = fingerprint(encoder)
    rows, at = episodes.num_steps + episodes.num_episodes, episodes.length.device
    device = next(chain(encoder.parameters(), encoder.buffers()), episodes.length).device
    embedding = torch.empty(rows, encoder.features, dtype=dtype, device=at)
    with torch.no_grad(), evaluating(encoder):
        for first in range(0, rows, batch_size):
            frames = slice(first, first + batch_size)
            embedding[frames] = encoder.forward(_seen(episodes.observation, frames, device))
    return _with_embeddings(episodes, embedding, digest)


def cached_embeddings(
    path: Path | str,
    episodes: EpisodeStore,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> EpisodeStore:
    """:func:`embedded`, read from the file if there is one, and else written to it.

    Raises:
        StaleCacheError: the file is of another encoder, other observations or another dtype.
        DatasetError: the file is damaged; or see :func:`embedded`.
    """
    path = Path(path)
    if not path.exists():
        store = embedded(episodes, encoder, batch_size=batch_size, dtype=dtype)
        save_embeddings(path, store, encoder, episodes)
        return store
    store = load_embeddings(path, encoder, episodes)
    assert isinstance(store.observation, Tensor)
    if store.observation.dtype != dtype:
        raise StaleCacheError(
            f"{path} holds {store.observation.dtype}, not {dtype}; valid: dtype = {store.observation.dtype}, or delete "
            "the file, which is then made anew"
        )
    return store


def save_embeddings(path: Path | str, store: EpisodeStore, encoder: Encoder, episodes: EpisodeStore) -> None:
    """Write the embeddings of a store and, to know them again, fingerprints of the encoder and the observations.

    A crash leaves the old file or the new one. Actions and all else are not written, as the episodes have them.

    Args:
        store: what :func:`embedded` made of the episodes.

    Raises:
        StaleCacheError: the store is of another encoder, or the encoder has changed since.
        DatasetError: the store is not of these episodes.
    """
    digest = fingerprint(encoder)
    if store.info.get("embeddings") != digest:
        raise StaleCacheError(
            f"info['embeddings'] = {store.info.get('embeddings')!r}; valid: {digest!r}, the encoder's fingerprint: "
            "embeddings that this encoder made, as it is now"
        )
    if not torch.equal(store.length, episodes.length):
        raise DatasetError("store.length differs from episodes.length; valid: embeddings of these episodes")
    state = {"kind": KIND, "encoder": digest, "observations": data_fingerprint(episodes)}
    checkpoint.save(Path(path), state | {"embeddings": store.observation})


def load_embeddings(path: Path | str, encoder: Encoder, episodes: EpisodeStore) -> EpisodeStore:
    """The episodes with the embeddings of a file that :func:`save_embeddings` wrote.

    Raises:
        FileNotFoundError: there is none.
        StaleCacheError: it is of another encoder or other observations.
        DatasetError: it is damaged, or holds something else.
    """
    path = Path(path)
    path.stat()
    try:
        state = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        raise DatasetError(f"{error}; valid: delete the file, and it is made anew") from error
    if state.get("kind") != KIND:
        raise DatasetError(f"{path} holds no embeddings; valid: a file that save_embeddings wrote")
    here = {"encoder": fingerprint(encoder), "observations": data_fingerprint(episodes)}
    if stale := [name for name, digest in here.items() if state[name] != digest]:
        made = " and ".join(f"{name} {state[name][:12]}, not {here[name][:12]}" for name in stale)
        raise StaleCacheError(
            f"{path} was made with {made}; valid: the {' and '.join(stale)} it was made with, or delete the file, "
            "which is then made anew"
        )
    return _with_embeddings(episodes, state["embeddings"].to(episodes.length.device), here["encoder"])


def fingerprint(encoder: nn.Module) -> str:
    """SHA-256 of what decides a module's output: its parts' classes and settings, and every parameter and buffer.

    Settings are all attributes that are numbers, text, dtypes, functions and classes with a name, tensors, or lists,
    tuples and dicts of these. Neither the mode nor the device counts, and of code only the names.

    Raises:
        TypeError: an attribute is of another kind, and it cannot be told whether two of them are the same.
    """
    digest = hashlib.sha256()
    for name, module in encoder.named_modules(remove_duplicate=False):
        kind = type(module)
        digest.update(f"{name}: {kind.__module__}.{kind.__qualname__}\n".encode())
        settings = [(key, vars(module)[key]) for key in sorted(set(vars(module)) - _OF_EVERY_MODULE)]
        for key, value in chain(settings, module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            place = f"{name}.{key}".removeprefix(".")
            digest.update(f"{place} = {_told(value, place)}\n".encode())
    return digest.hexdigest()


def data_fingerprint(episodes: EpisodeStore) -> str:
    """SHA-256 of the observations of episodes and of the episodes' lengths."""
    told = _told({"observation": episodes.observation, "length": episodes.length}, "episodes")
    return hashlib.sha256(told.encode()).hexdigest()


def _seen(observation: Observation, frames: slice, device: torch.device) -> Observation:
    return each_key(lambda each: each[0][frames].to(device), [observation])  # type: ignore[no-any-return]


def _with_embeddings(episodes: EpisodeStore, embedding: Tensor, digest: str) -> EpisodeStore:
    return dataclasses.replace(
        episodes,
        observation=embedding,
        observation_space=spaces.Box(-np.inf, np.inf, embedding.shape[1:], _DTYPES[embedding.dtype]),
        info={**episodes.info, "embeddings": digest},
    )


def _told(value: Any, place: str) -> str:
    """Text that is the same for equal values only, and for them in every process."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(raw.data).hexdigest()}"
    if isinstance(value, Mapping):
        told = (f"{key!r}: {_told(value[key], f'{place}[{key!r}]')}" for key in sorted(value, key=repr))
        return f"{{{', '.join(told)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_told(each, f'{place}[{i}]') for i, each in enumerate(value))}]"
    named = getattr(value, "__qualname__", "<")
    if "<" in named:  # of a lambda, or a function in a function, the name does not say what it does
        raise TypeError(
            f"{place} is a {type(value).__name__}; valid in an encoder: modules, tensors, numbers, text, functions "
            "and classes with a name, lists, tuples and dicts of these"
        )
    return f"{value.__module__}.{named}"
