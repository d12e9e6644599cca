"""Learning histories: what learners saw, did and were given while they learned, in many tasks, on disk.

    write_histories("data/darkroom", layout, source)   # goes on where an earlier call was cut off
    histories = open_histories("data/darkroom")        # memory-mapped: nothing is read yet
    filtered = HistoryFilter()(histories.episode_returns(), histories.max_return, generator)
    batch = histories.select(filtered.index).windows(task, history, start, length=80)

On disk they are a directory of shards, one for every block of tasks, each with a .npy file for every field, and
``manifest.json``. A shard counts once the manifest says that it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap
from torch import Tensor

from decisionrl.experience.store import DatasetError
from decisionrl.files import replacing, sync

MANIFEST = "manifest.json"

VERSION = 1
"""Of the files; others are refused."""


class Transitions(NamedTuple):
    """Steps of several streams; a batch dimension or several, then the steps, then the shape of one value.

    ``next_observation`` is what the step led to: at the end of an episode the terminal observation, not that of the
    next episode's start.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor


FIELDS = Transitions._fields

DTYPES = ("uint8", "uint16", "int8", "int16", "int32", "int64", "float32")
"""That values may have on disk."""

Block = Mapping[str, np.ndarray[Any, Any]]
"""The fields of consecutive tasks, each [task, history, step, ...]."""

Source = Callable[[Int[Tensor, " task"]], Iterable[Transitions]]
"""From task ids to the transitions [task, history, steps, ...] of all histories, piece by piece in their order.
Those of a task may not depend on which others are there: shards are blocks of tasks."""


@dataclass(frozen=True, kw_only=True)
class HistoryLayout:
    """What is written: every history has ``episodes`` episodes of ``horizon`` steps.

    Attributes:
        task: ids.
        max_return: the largest return that each task allows.
        histories: of each task.
        observation_shape, action_shape: of one step.
        observation_dtype, action_dtype, reward_dtype: on disk, names of NumPy's.
        tasks_per_shard: in each shard but the last.
        info: plain values about the data, as JSON has them.

    Raises:
        ValueError: a number out of its range, or ids and returns that do not fit together.
    """

    task: Sequence[int]
    max_return: Sequence[float]
    histories: int
    episodes: int
    horizon: int
    observation_shape: Sequence[int] = ()
    action_shape: Sequence[int] = ()
    observation_dtype: str = "uint8"
    action_dtype: str = "uint8"
    reward_dtype: str = "float32"
    tasks_per_shard: int = 128
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("histories", "episodes", "horizon", "tasks_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; valid: a whole number >= 1")
        if not self.task or len(self.task) != len(self.max_return):
            sizes = f"task has {len(self.task)} ids, max_return {len(self.max_return)} numbers"
            raise ValueError(f"{sizes}; valid: as many, at least one")
        for name in ("observation_dtype", "action_dtype", "reward_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} = {getattr(self, name)!r}; valid: {', '.join(DTYPES)}")

    @property
    def num_shards(self) -> int:
        return -(-len(self.task) // self.tasks_per_shard)

    @property
    def num_steps(self) -> int:
        """Of each history."""
        return self.episodes * self.horizon

    def shard_tasks(self, shard: int) -> Sequence[int]:
        """The ids of its tasks."""
        return self.task[shard * self.tasks_per_shard : (shard + 1) * self.tasks_per_shard]

    def arrays(self, shard: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of each field."""
        steps = (len(self.shard_tasks(shard)), self.histories, self.num_steps)
        observation = (*steps, *self.observation_shape), np.dtype(self.observation_dtype)
        action = (*steps, *self.action_shape), np.dtype(self.action_dtype)
        reward = steps, np.dtype(self.reward_dtype)
        return dict(zip(FIELDS, (observation, action, reward, observation), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningHistories:
    """Histories of equally many steps, episodes of equally many steps: step = episode * horizon + step in it.

    Tasks are addressed by their row, 0 to ``num_tasks`` - 1; ``task`` has their ids. ``learning_histories`` makes one
    of arrays, ``open_histories`` of a directory.

    Attributes:
        blocks: the fields of consecutive tasks, in memory or memory-mapped.
        task: ids.
        max_return: the largest return that each task allows.
        horizon: steps of an episode.
        episodes: of each history, from its beginning; the blocks may have more.
        index: the stored history that stands in each place.
        info: plain values about the data.
    """

    blocks: Sequence[Block] = field(repr=False)
    task: Int[Tensor, " task"]
    max_return: Float[Tensor, " task"]
    horizon: int
    episodes: int
    index: Int[Tensor, "task history"] = field(repr=False)
    info: Mapping[str, Any]

    @property
    def num_tasks(self) -> int:
        return len(self.task)

    @property
    def num_histories(self) -> int:
        """Places of each task."""
        return self.index.shape[1]

    @property
    def num_steps(self) -> int:
        """Of each history."""
        return self.episodes * self.horizon

    def episode_returns(self) -> Float[Tensor, "task history episode"]:
        """Undiscounted sums of rewards, in float32."""
        returns = []
        for block in self.blocks:
            reward = block["reward"][:, :, : self.num_steps]
            by_episode = reward.reshape(*reward.shape[:2], self.episodes, self.horizon)
            returns.append(torch.from_numpy(by_episode.sum(-1, dtype=np.float32)))
        return torch.cat(returns).take_along_dim(self.index[..., None], 1)

    def windows(
        self, task: Int[Tensor, " batch"], history: Int[Tensor, " batch"], start: Int[Tensor, " batch"], length: int
    ) -> Transitions:
        """``length`` steps from step ``start`` of each of these histories on: [batch, length, ...].

        Whole numbers become int64, whatever they are on disk; rewards and other fractions float32.

        Args:
            task: rows, not ids; like the others on the CPU, where the result is.
            history: places.

        Raises:
            ValueError: one of them is outside the data.
        """
        if not 1 <= length <= self.num_steps:
            raise ValueError(f"length = {length}; valid: from 1 to {self.num_steps}, the steps of a history")
        limits = (
            ("task", task, self.num_tasks),
            ("history", history, self.num_histories),
            ("start", start, self.num_steps - length + 1),
        )
        for name, value, limit in limits:
            if len(value) and not (value.min() >= 0 and value.max() < limit):
                found = f"{name} is from {int(value.min())} to {int(value.max())}"
                raise ValueError(f"{found}, with length = {length}; valid: from 0 to {limit - 1}")
        row, stored = task.numpy(), self.index[task, history].numpy()
        step = start.numpy()[:, None] + np.arange(length)
        block = np.searchsorted(self._first, row, side="right") - 1
        first = self.blocks[0]
        out = {name: np.empty((*step.shape, *first[name].shape[3:]), first[name].dtype) for name in FIELDS}
        for number in np.unique(block):
            chosen = np.flatnonzero(block == number)
            at = (row[chosen, None] - self._first[number], stored[chosen, None], step[chosen])
            for name in FIELDS:
                out[name][chosen] = self.blocks[number][name][at]
        wide = {name: _wide(out[name]) for name in FIELDS}
        return Transitions(**wide | {"reward": wide["reward"].float()})

    def select(self, index: Int[Tensor, "task place"]) -> LearningHistories:
        """These histories of each task, in this order and with repeats, without a copy of what they are made of.

        Raises:
            ValueError: the shape does not fit, or there is no such history.
        """
        if index.ndim != 2 or len(index) != self.num_tasks or not index.shape[1]:
            raise ValueError(f"index has shape {list(index.shape)}; valid: [{self.num_tasks}, places]")
        if index.min() < 0 or index.max() >= self.num_histories:
            found = f"index is from {int(index.min())} to {int(index.max())}"
            raise ValueError(f"{found}; valid: from 0 to {self.num_histories - 1}")
        return replace(self, index=self.index.gather(1, index.cpu()))

    def beginning(self, share: float) -> LearningHistories:
        """The first share of each history, rounded to whole episodes, without a copy; 0.5 makes the partial histories
        of LHF (arXiv 2505.15143).

        Raises:
            ValueError: the share is not in (0, 1], or is less than an episode.
        """
        episodes = round(share * self.episodes) if 0 < share <= 1 else 0
        if not episodes:
            raise ValueError(f"share = {share} of {self.episodes} episodes; valid: in (0, 1], at least one episode")
        return replace(self, episodes=episodes)

    @cached_property
    def _first(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The row of each block's first task."""
        sizes = [len(block["reward"]) for block in self.blocks]
        return np.cumsum([0, *sizes[:-1]])


def learning_histories(
    blocks: Sequence[Block],
    *,
    task: Int[Tensor, " task"],
    max_return: Float[Tensor, " task"],
    horizon: int,
    info: Mapping[str, Any] | None = None,
) -> LearningHistories:
    """Histories from their arrays, none of which is copied.

    Raises:
        DatasetError: a field is missing, or numbers of tasks, histories or steps do not fit together.
    """
    if not blocks:
        raise DatasetError("blocks is empty; valid: at least one block of tasks")
    for number, block in enumerate(blocks):
        if missing := set(FIELDS) - set(block):
            raise DatasetError(f"block {number} has no {', '.join(sorted(missing))}; valid: {', '.join(FIELDS)}")
        wanted = (len(block["reward"]), *blocks[0]["reward"].shape[1:3])
        for name in FIELDS:
            each, like = block[name], blocks[0][name]
            if each.shape[:3] != wanted or each.shape[3:] != like.shape[3:] or each.dtype != like.dtype:
                found = f"block {number}: {name} is {each.dtype} of shape {list(each.shape)}"
                raise DatasetError(f"{found}; valid: {like.dtype} of shape {[*wanted, *like.shape[3:]]}")
    tasks = sum(len(block["reward"]) for block in blocks)
    if task.shape != (tasks,) or max_return.shape != (tasks,):
        found = f"task has shape {list(task.shape)}, max_return {list(max_return.shape)}"
        raise DatasetError(f"{found}; valid: [{tasks}], the tasks of the blocks")
    histories, steps = blocks[0]["reward"].shape[1:3]
    if horizon < 1 or not steps or steps % horizon:
        raise DatasetError(f"histories have {steps} steps; valid: whole episodes of horizon = {horizon}")
    return LearningHistories(
        blocks=tuple(blocks),
        task=task,
        max_return=max_return,
        horizon=horizon,
        episodes=steps // horizon,
        index=torch.arange(histories).expand(tasks, -1),
        info=dict(info or {}),
    )


def open_histories(directory: Path | str) -> LearningHistories:
    """The histories of a directory, memory-mapped; only the headers of the files are read.

    Raises:
        DatasetError: the directory was not written to its end, or a file is missing or is not what it should be.
    """
    path = Path(directory)
    manifest = _manifest(path)
    layout = _layout(path, manifest)
    if manifest["complete"] != layout.num_shards:
        found = f"{path} has {manifest['complete']} of {layout.num_shards} shards"
        raise DatasetError(f"{found}; valid: all, which going on writing it brings about")
    return _described([_opened(path, layout, shard) for shard in range(layout.num_shards)], layout)


def write_histories(
    directory: Path | str,
    layout: HistoryLayout,
    source: Source,
    *,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> LearningHistories:
    """Write the shards that are not complete yet, and open the directory.

    A call that was cut off at any instant is made good by the same call: the files become those of an uninterrupted
    one, bit for bit if ``source`` does the same again.

    Args:
        source: gives the transitions of each shard's tasks.
        progress: is told after every piece how many steps of all histories are written, and how many there are.

    Raises:
        DatasetError: the directory has another layout, or the source gives what does not fit this one.
    """
    path = Path(directory)
    complete = _begun(path, layout)
    per_task = layout.histories * layout.num_steps
    for shard in range(complete, layout.num_shards):
        name, temporary = _shard_name(shard), path / f".{_shard_name(shard)}.tmp"
        for leftover in (temporary, path / name):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        before = shard * layout.tasks_per_shard * per_task
        tasks = len(layout.shard_tasks(shard))

        def report(steps: int, before: int = before, tasks: int = tasks) -> None:
            progress(before + tasks * layout.histories * steps, len(layout.task) * per_task)

        _write_shard(temporary, layout, shard, source, report)
        temporary.replace(path / name)
        sync(path)
        _save_manifest(path, layout, complete=shard + 1)
    return open_histories(path)


def collect_histories(layout: HistoryLayout, source: Source) -> LearningHistories:
    """The histories that :func:`write_histories` would write, in memory.

    Raises:
        DatasetError: the source gives what does not fit the layout.
    """
    blocks = []
    for shard in range(layout.num_shards):
        block = {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.arrays(shard).items()}
        _fill(block, layout, shard, source, lambda done: None)
        blocks.append(block)
    return _described(blocks, layout)


def _described(blocks: Sequence[Block], layout: HistoryLayout) -> LearningHistories:
    return learning_histories(
        blocks,
        task=torch.tensor(layout.task),
        max_return=torch.tensor(layout.max_return, dtype=torch.float32),
        horizon=layout.horizon,
        info=layout.info,
    )


def _write_shard(
    directory: Path, layout: HistoryLayout, shard: int, source: Source, report: Callable[[int], None]
) -> None:
    files = {name: directory / f"{name}.npy" for name in FIELDS}
    arrays = {
        name: open_memmap(files[name], mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in layout.arrays(shard).items()
    }
    _fill(arrays, layout, shard, source, report)
    for name, array in arrays.items():
        array.flush()
        sync(files[name])
    sync(directory)


def _fill(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    layout: HistoryLayout,
    shard: int,
    source: Source,
    report: Callable[[int], None],
) -> None:
    """Put the transitions of a shard's tasks into its arrays."""
    done = 0
    for piece in source(torch.tensor(layout.shard_tasks(shard))):
        steps = piece.reward.shape[-1]
        for name, array in arrays.items():
            _put(name, array[:, :, done : done + steps], getattr(piece, name))
        done += steps
        report(done)
    if done != layout.num_steps:
        raise DatasetError(f"the source gave {done} steps; valid: {layout.num_steps}, those of a history")


def _put(name: str, place: np.ndarray[Any, Any], value: Tensor) -> None:
    if tuple(value.shape) != place.shape:
        raise DatasetError(f"the source gave {name} of shape {list(value.shape)}; valid: {list(place.shape)}")
    place[...] = value.cpu().numpy()
    # Whole numbers wrap around in a type that is too small, and fractions lose theirs.
    if place.dtype.kind in "iu" and not np.array_equal(place, value.cpu().numpy()):
        found = f"{name} has values from {value.min().item()} to {value.max().item()}"
        raise DatasetError(f"{found} that {place.dtype} does not hold; valid: a dtype that does")


def _begun(path: Path, layout: HistoryLayout) -> int:
    """The number of complete shards, after a check that what is there is the beginning of what is to be written."""
    if not (path / MANIFEST).exists():
        if path.exists() and any(not each.name.startswith(".") for each in path.iterdir()):
            raise DatasetError(f"{path} has files but no {MANIFEST}; valid: a new directory, or one of histories")
        path.mkdir(parents=True, exist_ok=True)
        _save_manifest(path, layout, complete=0)
        return 0
    manifest = _manifest(path)
    there, wanted = ({**plain, **plain["info"]} for plain in (_plain(_layout(path, manifest)), _plain(layout)))
    for name in wanted | there:
        if name != "info" and there.get(name) != wanted.get(name):
            found = f"{path} has {name} = {there.get(name)}, not {wanted.get(name)}"
            raise DatasetError(f"{found}; valid: the same settings, or another directory")
    return int(manifest["complete"])


def _save_manifest(path: Path, layout: HistoryLayout, *, complete: int) -> None:
    with replacing(path / MANIFEST) as temporary:
        content = {"version": VERSION, "complete": complete, "layout": _plain(layout)}
        temporary.write_text(json.dumps(content, indent=1))


def _plain(layout: HistoryLayout) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(layout)))
    return plain


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} has no {MANIFEST}; valid: a directory of learning histories") from error
    except ValueError as error:
        raise DatasetError(f"{path / MANIFEST} is damaged: {error}") from error
    if not isinstance(manifest, dict) or not {"version", "complete", "layout"} <= set(manifest):
        raise DatasetError(f"{path / MANIFEST} is damaged; valid: version, complete and layout")
    if manifest["version"] != VERSION:
        raise DatasetError(f"{path} has version = {manifest['version']}; valid: {VERSION}")
    return manifest


def _layout(path: Path, manifest: Mapping[str, Any]) -> HistoryLayout:
    try:
        return HistoryLayout(**manifest["layout"])
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path / MANIFEST} is damaged: {error}") from error


def _opened(path: Path, layout: HistoryLayout, shard: int) -> Block:
    block = {}
    for name, (shape, dtype) in layout.arrays(shard).items():
        file = path / _shard_name(shard) / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise DatasetError(f"{file} is missing; valid: a file for each of {', '.join(FIELDS)}") from error
        except (ValueError, OSError, EOFError) as error:
            raise DatasetError(f"{file} is damaged: {error}") from error
        if array.shape != shape or array.dtype != dtype:
            found = f"{file} is {array.dtype} of shape {list(array.shape)}"
            raise DatasetError(f"{found}; valid: {dtype} of shape {list(shape)}, as {MANIFEST} says")
        block[name] = array
    return block


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def _wide(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor.long()
