"""Segments and preference pairs as files, and the labels and files of others.

A file of segments or pairs holds places in a store of episodes, not the episodes. Here a label is the probability that
the **second** segment is preferred; ``from_...`` and ``to_...`` convert other conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.arrays import (
    Array,
    Arrays,
    action_box,
    check_finite,
    column,
    observation_box,
    read_npz,
    write_npz,
)
from decisionrl.experience.preferences import PreferencePairs, Segments
from decisionrl.experience.store import DatasetError, EpisodeStore

SCORE = "score_"


def save_segments(path: str | Path, segments: Segments, scores: Mapping[str, Tensor]) -> None:
    """Write an npz file of ``episode``, ``start``, ``length``, ``score_NAME`` for every named score, and the numbers of
    episodes and steps of the store. ``segments.score`` itself has no name and is written only if ``scores`` has it.

    Raises:
        DatasetError: a score is not one finite number for each segment.
    """
    for score in scores.values():
        segments.scored(score)  # raises where it does not fit
    arrays = {"episode": segments.episode, "start": segments.start}
    arrays |= {SCORE + name: score for name, score in scores.items()}
    write_npz(path, _with_store(arrays, segments))


def load_segments(path: str | Path, episodes: EpisodeStore, *, score: str | None = None) -> Segments:
    """The segments of :func:`save_segments`, with the score of that name.

    Raises:
        DatasetError: no such score, a missing column, or the file belongs to other episodes.
    """
    arrays = _of_store(read_npz(path), episodes, path)
    named = _scores(arrays)
    if score is not None and score not in named:
        raise DatasetError(
            f"{path}: score = {score!r}; valid: {', '.join(sorted(named)) or 'none, as it has no score'}"
        )
    device = episodes.length.device
    return Segments(
        episodes=episodes,
        episode=_whole(arrays, "episode", path).to(device),
        start=_whole(arrays, "start", path).to(device),
        length=int(column(arrays, "length", path)),
        score=None if score is None else torch.from_numpy(arrays[SCORE + score]).to(device),
    )


def score_names(path: str | Path) -> list[str]:
    """The names of the scores in a file of :func:`save_segments`, in the order in which they were given."""
    return _scores(read_npz(path))


def save_pairs(path: str | Path, pairs: PreferencePairs) -> None:
    """Write an npz file of ``episode_1``, ``start_1``, ``episode_2``, ``start_2``, ``label``, all [pairs], ``length``,
    and the numbers of episodes and steps of the store. Segments that are in no pair are not written, nor are scores."""
    segments = pairs.segments
    arrays = {"label": pairs.label}
    for side, rows in (("1", pairs.first), ("2", pairs.second)):
        arrays |= {f"episode_{side}": segments.episode[rows], f"start_{side}": segments.start[rows]}
    write_npz(path, _with_store(arrays, segments))


def load_pairs(path: str | Path, episodes: EpisodeStore) -> PreferencePairs:
    """The pairs of :func:`save_pairs`; each place of a segment is one row of ``segments``, however many pairs share it.

    Raises:
        DatasetError: a missing column, a pair outside its episodes, or the file belongs to other episodes.
    """
    arrays = _of_store(read_npz(path), episodes, path)
    sides = [torch.stack([_whole(arrays, f"{name}_{side}", path) for name in ("episode", "start")], 1) for side in "12"]
    if len(sides[0]) != len(sides[1]):
        raise DatasetError(f"{path}: {len(sides[0])} first and {len(sides[1])} second segments; valid: as many")
    places, rows = torch.unique(torch.cat(sides), dim=0, return_inverse=True)
    device = episodes.length.device
    first, second = rows.to(device).chunk(2)
    segments = Segments(
        episodes=episodes,
        episode=places[:, 0].to(device),
        start=places[:, 1].to(device),
        length=int(column(arrays, "length", path)),
    )
    label = torch.from_numpy(column(arrays, "label", path)).to(device)
    return PreferencePairs(segments=segments, first=first, second=second, label=label)


def from_two_column(labels: Any) -> Float[Tensor, " pairs"]:
    """Labels [pairs, 2] of Preference Transformer (arXiv 2303.00957) and OPPO (arXiv 2305.16217): [1, 0] prefers the
    first, [0, 1] the second, [0.5, 0.5] neither.

    Raises:
        DatasetError: a row does not hold two probabilities.
    """
    columns = _real(labels)
    if columns.dim() != 2 or columns.shape[1] != 2:
        raise DatasetError(f"labels have shape {tuple(columns.shape)}; valid: [pairs, 2]")
    valid = (columns >= 0).all(1) & ((columns.sum(1) - 1).abs() < 1e-6)
    _check_labels(valid, columns, "two numbers >= 0 with sum 1, such as [1, 0], [0, 1] and [0.5, 0.5]")
    return columns[:, 1]


def to_two_column(label: Float[Tensor, " pairs"]) -> Float[Tensor, "pairs 2"]:
    """The inverse of :func:`from_two_column`."""
    return torch.stack([1 - label, label], 1)


def from_signed(labels: Any) -> Float[Tensor, " pairs"]:
    """Labels of B-Pref (arXiv 2111.03026) and of Preference Transformer's files: 0 prefers the first, 1 the second, -1
    neither.

    Raises:
        DatasetError: another value.
    """
    values = _real(labels)
    _check_labels((values == 0) | (values == 1) | (values == -1), values, "0, 1, or -1 for a tie")
    return torch.where(values == -1, 0.5, values)


def to_signed(label: Float[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
    """The inverse of :func:`from_signed`.

    Raises:
        DatasetError: a label between 0, 0.5 and 1, for which this convention has no word.
    """
    _check_labels((label == 0) | (label == 0.5) | (label == 1), label, "0, 0.5 or 1")
    return torch.where(label == 0.5, -1, label).long()


def load_cpl_segments(path: str | Path, *, score: str, action_space: spaces.Space[Any] | None = None) -> Segments:
    """Segments of Contrastive Preference Learning (arXiv 2310.13639): an npz file of ``obs`` [N, k, ...], ``action``
    [N, k, ...], ``reward`` [N, k] and scores [N] such as ``rl_sum``, larger being better (of ``rl_l2`` that is not so).

    Every segment is an episode of the store. The file does not say what the last step of a segment led to: the last
    observation stands there again.

    Args:
        score: which of the file's scores.
        action_space: default Box(-1, 1).

    Raises:
        DatasetError: missing columns, shapes that do not fit, values that are not finite.
    """
    arrays = read_npz(path)
    found = column(arrays, score, path)
    episodes = _store_of_segments(
        *(column(arrays, name, path) for name in ("obs", "action", "reward")), action_space=action_space, where=path
    )
    return _whole_episodes(episodes).scored(torch.from_numpy(found))


def load_cpl_pairs(
    path: str | Path, *, label: str = "label", action_space: spaces.Space[Any] | None = None
) -> PreferencePairs:
    """Pairs of Contrastive Preference Learning, in either of its formats, over a store whose episodes are the segments.

    With ``obs_1``, ``action_1``, ``reward_1``, ``obs_2``, ...: record i is a pair, and ``label`` [N] the probability
    that the second is preferred. Otherwise as in :func:`load_cpl_segments`: ``label`` is a score, and segment i is
    compared with segment i + N/2 of N, the higher score being preferred and equal scores a tie (its comparison mode).

    Raises:
        DatasetError: missing columns, shapes that do not fit, values that are not finite, labels outside [0, 1].
    """
    arrays = read_npz(path)
    if "action_1" in arrays:
        first, second = (
            [column(arrays, f"{name}_{side}", path) for name in ("obs", "action", "reward")] for side in "12"
        )
        given = _real(column(arrays, label, path))
        return _pairs_of_halves(first, second, given, action_space=action_space, where=path)
    segments = load_cpl_segments(path, score=label, action_space=action_space)
    half = len(segments) // 2
    first_row = torch.arange(half)
    assert segments.score is not None
    before, after = segments.score[:half], segments.score[half : 2 * half]
    preferred = (after > before).float() + 0.5 * (after == before)
    return PreferencePairs(segments=segments, first=first_row, second=first_row + half, label=preferred)


def human_pairs(arrays: Mapping[str, Any], *, action_space: spaces.Space[Any] | None = None) -> PreferencePairs:
    """Pairs from the arrays in which Preference Transformer and OPPO keep human labels: ``observations``, ``actions``,
    ``observations_2``, ``actions_2``, all [N, k, ...], and ``labels`` [N, 2], see :func:`from_two_column`.

    Every segment is an episode of the store, and its rewards, which nobody recorded, are 0. ``fixed_timestep_1`` and
    ``fixed_timestep_2`` [N, k], the steps' numbers in the episodes they were cut from, become
    ``extras["timestep"]``. What the last step of a segment led to is not known: the last observation stands
    there again.

    Args:
        action_space: default Box(-1, 1).

    Raises:
        DatasetError: missing columns, shapes that do not fit, values that are not finite or no labels.
    """
    where = "human labels"

    def side(suffix: str) -> list[Array]:
        observations, actions = (column(arrays, name + suffix, where) for name in ("observations", "actions"))
        return [observations, actions, np.zeros(actions.shape[:2], np.float32)]

    timesteps = [np.asarray(arrays[name]) for name in ("fixed_timestep_1", "fixed_timestep_2") if name in arrays]
    return _pairs_of_halves(
        side(""),
        side("_2"),
        from_two_column(column(arrays, "labels", where)),
        action_space=action_space,
        where=where,
        extras={"timestep": np.concatenate(timesteps)} if timesteps else None,
    )


def _pairs_of_halves(
    first: list[Array],
    second: list[Array],
    label: Tensor,
    *,
    action_space: spaces.Space[Any] | None,
    where: str | Path,
    extras: Mapping[str, Array] | None = None,
) -> PreferencePairs:
    """Pairs whose segments are the records of two lists of arrays: observations, actions, rewards."""
    for name, one, other in zip(("observations", "actions", "rewards"), first, second, strict=True):
        if one.shape != other.shape or len(one) != len(label):
            raise DatasetError(
                f"{where}: {name} of the first are {one.shape}, of the second {other.shape}, with {len(label)} labels; "
                "valid: equal shapes, one record a label"
            )
        check_finite(one, f"{name} of the first", where)
        check_finite(other, f"{name} of the second", where)
    both = [np.concatenate(halves) for halves in zip(first, second, strict=True)]
    segments = _whole_episodes(_store_of_segments(*both, action_space=action_space, where=where, extras=extras))
    row = torch.arange(len(label))
    return PreferencePairs(segments=segments, first=row, second=row + len(label), label=label)


def _store_of_segments(
    observations: Array,
    actions: Array,
    rewards: Array,
    *,
    action_space: spaces.Space[Any] | None,
    where: str | Path,
    extras: Mapping[str, Array] | None = None,
) -> EpisodeStore:
    named = {"observations": observations, "actions": actions, "rewards": rewards, **(extras or {})}
    if rewards.ndim != 2 or not rewards.size:
        raise DatasetError(f"{where}: rewards have shape {rewards.shape}; valid: [segments, steps], neither of them 0")
    for name, array in named.items():
        if array.shape[:2] != rewards.shape:
            raise DatasetError(
                f"{where}: {name} have shape {array.shape}; valid: {rewards.shape} first, the same steps everywhere"
            )
        check_finite(array, name, where)
    count, length = rewards.shape
    last = np.zeros((count, length), bool)
    last[:, -1] = True
    flat = {name: _flat(array) for name, array in named.items()}
    return EpisodeStore(
        observation=_flat(np.concatenate([observations, observations[:, -1:]], 1)),
        action=flat["actions"],
        reward=flat["rewards"],
        terminated=_flat(np.zeros_like(last)),
        truncated=_flat(last),
        length=torch.full((count,), length),
        observation_space=observation_box(observations.shape[2:], observations.dtype),
        action_space=action_space or action_box(actions, actions.shape[2:], where),
        extras={name: flat[name] for name in extras or {}},
    )


def _whole_episodes(episodes: EpisodeStore) -> Segments:
    count = episodes.num_episodes
    return Segments(
        episodes=episodes,
        episode=torch.arange(count),
        start=torch.zeros(count, dtype=torch.int64),
        length=int(episodes.length[0]),
    )


def _with_store(arrays: Mapping[str, Tensor], segments: Segments) -> Arrays:
    written = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    return {**_store_size(segments.episodes), "length": np.asarray(segments.length), **written}


def _store_size(episodes: EpisodeStore) -> Arrays:
    """By which a file knows its store again."""
    return {"episodes": np.asarray(episodes.num_episodes), "steps": np.asarray(episodes.num_steps)}


def _of_store(arrays: Arrays, episodes: EpisodeStore, path: str | Path) -> Arrays:
    for name, size in _store_size(episodes).items():
        if (found := int(column(arrays, name, path))) != int(size):
            raise DatasetError(f"{path}: made for data of {found} {name}; these have {int(size)}")
    return arrays


def _scores(arrays: Arrays) -> list[str]:
    return [name.removeprefix(SCORE) for name in arrays if name.startswith(SCORE)]


def _whole(arrays: Arrays, name: str, path: str | Path) -> Int[Tensor, " n"]:
    found = column(arrays, name, path)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise DatasetError(f"{path}: {name} is {found.dtype} {found.shape}; valid: whole numbers [n]")
    return torch.from_numpy(found).long()


def _flat(array: Array) -> Tensor:
    """[segments, steps, ...] as [segments * steps, ...]; real numbers in single precision, as in every store."""
    tensor = torch.from_numpy(array).flatten(0, 1)
    return tensor.float() if tensor.is_floating_point() else tensor


def _real(labels: Any) -> Tensor:
    tensor = torch.as_tensor(labels)
    return tensor if tensor.is_floating_point() else tensor.float()


def _check_labels(valid: Tensor, labels: Tensor, wanted: str) -> None:
    if not valid.all():
        row = int((~valid).nonzero()[0, 0])
        raise DatasetError(f"labels[{row}] = {labels[row].tolist()}; valid: {wanted}")
