"""Learning histories: gathering against plain loops, views without copies, files that a crash leaves usable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decisionrl.experience.histories import (
    FIELDS,
    HistoryLayout,
    LearningHistories,
    Transitions,
    learning_histories,
    open_histories,
    write_histories,
)
from decisionrl.experience.store import DatasetError

TASKS, HISTORIES, EPISODES, HORIZON = 5, 3, 4, 2
STEPS = EPISODES * HORIZON


def layout(**changes: Any) -> HistoryLayout:
    default: dict[str, Any] = {
        "task": [30, 10, 50, 20, 40],
        "max_return": [1.0, 2.0, 3.0, 4.0, 5.0],
        "histories": HISTORIES,
        "episodes": EPISODES,
        "horizon": HORIZON,
        "observation_shape": (2,),
        "tasks_per_shard": 2,
        "info": {"env": "numbers", "seed": 0},
    }
    return HistoryLayout(**default | changes)


def everything(tasks: Tensor) -> Transitions:
    """All steps of some tasks: values that are told apart."""
    history, step = torch.arange(HISTORIES)[:, None], torch.arange(STEPS)
    number = tasks[:, None, None] + 60 * history + step
    observation = torch.stack([number, 255 - number], -1)
    reward = torch.sin(number.double()).float()
    return Transitions(observation, number % 5, reward, observation.flip(-1))


def source(tasks: Tensor) -> Iterator[Transitions]:
    whole = everything(tasks)
    for start in range(0, STEPS, HORIZON):
        yield Transitions(*(each[:, :, start : start + HORIZON] for each in whole))


def files(directory: Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


@pytest.fixture
def written(tmp_path: Path) -> LearningHistories:
    return write_histories(tmp_path / "numbers", layout(), source)


def test_what_is_written_is_read(written: LearningHistories, tmp_path: Path) -> None:
    whole = everything(torch.tensor(layout().task))
    task, history = torch.cartesian_prod(torch.arange(TASKS), torch.arange(HISTORIES)).T
    got = written.windows(task, history, torch.zeros_like(task), STEPS)
    for value, wanted in zip(got, whole, strict=True):
        assert value.equal(wanted.flatten(0, 1))
    assert [value.dtype for value in got] == [torch.int64, torch.int64, torch.float32, torch.int64]
    assert written.task.tolist() == [30, 10, 50, 20, 40]
    assert written.max_return.tolist() == [1, 2, 3, 4, 5]
    assert written.info == {"env": "numbers", "seed": 0}
    assert (written.num_tasks, written.num_histories, written.num_steps) == (TASKS, HISTORIES, STEPS)
    assert {each.name for each in (tmp_path / "numbers").iterdir()} == {
        "manifest.json",
        "shard-00000",
        "shard-00001",
        "shard-00002",
    }


def test_reading_is_lazy(written: LearningHistories) -> None:
    for block in written.blocks:
        for name in FIELDS:
            assert isinstance(block[name], np.memmap)
            assert block[name].mode == "r"
    assert [len(block["reward"]) for block in written.blocks] == [2, 2, 1]
    assert written.blocks[0]["observation"].dtype == np.uint8


def test_windows_are_what_plain_loops_gather(written: LearningHistories) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, length = 40, 3
    task = torch.randint(TASKS, (batch,), generator=generator)
    history = torch.randint(HISTORIES, (batch,), generator=generator)
    start = torch.randint(STEPS - length + 1, (batch,), generator=generator)
    whole = everything(written.task)
    got = written.windows(task, history, start, length)
    for row in range(batch):
        for step in range(length):
            for value, wanted in zip(got, whole, strict=True):
                assert value[row, step].equal(wanted[task[row], history[row], start[row] + step])


def test_episode_returns_are_plain_sums(written: LearningHistories) -> None:
    reward = everything(written.task).reward
    returns = written.episode_returns()
    assert returns.shape == (TASKS, HISTORIES, EPISODES)
    for task in range(TASKS):
        for history in range(HISTORIES):
            for episode in range(EPISODES):
                steps = reward[task, history, episode * HORIZON : (episode + 1) * HORIZON]
                assert returns[task, history, episode] == pytest.approx(sum(steps.tolist()), abs=1e-6)


def test_rewards_of_whole_numbers_sum_beyond_their_dtype() -> None:
    block = {name: np.full((1, 1, 300), 200, np.uint8) for name in FIELDS}
    made = learning_histories([block], task=torch.zeros(1), max_return=torch.ones(1), horizon=300)
    assert made.episode_returns().tolist() == [[[60000.0]]]
    window = made.windows(*torch.zeros(3, 1, dtype=torch.int64), length=2)
    assert window.reward.dtype == torch.float32


def test_selected_histories_stand_in_the_places_without_a_copy(written: LearningHistories) -> None:
    index = torch.tensor([[2, 2, 0], [0, 1, 2], [1, 1, 1], [0, 0, 2], [2, 1, 0]])
    selected = written.select(index)
    assert selected.blocks is written.blocks
    returns = written.episode_returns()
    for task in range(TASKS):
        assert selected.episode_returns()[task].equal(returns[task, index[task]])
    once = torch.tensor([4, 0]), torch.tensor([0, 1]), torch.tensor([1, 2]), 4
    stored = torch.tensor([4, 0]), torch.tensor([2, 2]), torch.tensor([1, 2]), 4
    for got, wanted in zip(selected.windows(*once), written.windows(*stored), strict=True):
        assert got.equal(wanted)
    again = selected.select(torch.tensor([[1, 2]] * TASKS))  # of the places, not of what is stored
    assert again.index.equal(index[:, 1:])
    assert again.episode_returns().equal(selected.episode_returns()[:, 1:])


def test_the_first_half_has_the_first_episodes(written: LearningHistories) -> None:
    half = written.beginning(0.5)
    assert (half.episodes, half.num_steps) == (2, 4)
    assert half.episode_returns().equal(written.episode_returns()[:, :, :2])
    assert written.beginning(0.75).beginning(1 / 3).episodes == 1
    assert written.beginning(1.0).episode_returns().equal(written.episode_returns())
    with pytest.raises(ValueError, match=r"start is from 3 to 3, with length = 2; valid: from 0 to 2"):
        half.windows(torch.tensor([0]), torch.tensor([0]), torch.tensor([3]), 2)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1, 0.1, float("nan")])
def test_a_share_has_an_episode_at_least(written: LearningHistories, share: float) -> None:
    with pytest.raises(ValueError, match=r"share = .* of 4 episodes; valid: in \(0, 1\], at least one episode"):
        written.beginning(share)


def test_what_is_outside_is_refused(written: LearningHistories) -> None:
    zero = torch.tensor([0])
    for arguments, message in (
        ((torch.tensor([5]), zero, zero, 1), "task is from 5 to 5, with length = 1; valid: from 0 to 4"),
        ((zero, torch.tensor([-1]), zero, 1), "history is from -1 to -1, with length = 1; valid: from 0 to 2"),
        ((zero, zero, torch.tensor([7]), 2), "start is from 7 to 7, with length = 2; valid: from 0 to 6"),
        ((zero, zero, zero, 9), "length = 9; valid: from 1 to 8"),
        ((zero, zero, zero, 0), "length = 0; valid: from 1 to 8"),
    ):
        with pytest.raises(ValueError, match=message):
            written.windows(*arguments)
    with pytest.raises(ValueError, match="index is from 0 to 3; valid: from 0 to 2"):
        written.select(torch.tensor([[0, 3]] * TASKS))
    with pytest.raises(ValueError, match=r"index has shape \[2, 3\]; valid: \[5, places\]"):
        written.select(torch.zeros(2, 3, dtype=torch.int64))


class PowerFailureError(RuntimeError):
    pass


@pytest.mark.parametrize("pieces", [0, 3, 4, 7, 11])
def test_writing_goes_on_to_the_same_files(tmp_path: Path, pieces: int) -> None:
    left = pieces

    def failing(tasks: Tensor) -> Iterator[Transitions]:
        nonlocal left
        for piece in source(tasks):
            if not left:
                raise PowerFailureError
            left -= 1
            yield piece

    with pytest.raises(PowerFailureError):
        write_histories(tmp_path / "cut", layout(), failing)
    complete = pieces // EPISODES
    with pytest.raises(DatasetError, match=f"has {complete} of 3 shards; valid: all"):
        open_histories(tmp_path / "cut")
    asked: list[int] = []

    def counting(tasks: Tensor) -> Iterator[Transitions]:
        asked.append(len(tasks))
        return source(tasks)

    write_histories(tmp_path / "cut", layout(), counting)
    assert asked == [2, 2, 1][complete:]
    write_histories(tmp_path / "whole", layout(), source)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_shard_that_the_manifest_does_not_name_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    write_histories(path, layout(), source)
    whole = files(path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"complete": 2}))
    (path / "shard-00002" / "reward.npy").write_bytes(b"half a shard")
    write_histories(path, layout(), source)
    assert files(path) == whole


def test_what_is_complete_is_not_written_again(tmp_path: Path) -> None:
    write_histories(tmp_path, layout(), source)

    def never(tasks: Tensor) -> Iterator[Transitions]:
        raise PowerFailureError

    assert write_histories(tmp_path, layout(), never).num_tasks == TASKS


def test_progress_counts_the_steps_of_all_histories(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_histories(tmp_path, layout(), source, progress=lambda done, steps: told.append((done, steps)))
    per_episode = HISTORIES * HORIZON
    assert [done for done, _ in told[:5]] == [2 * per_episode * each for each in (1, 2, 3, 4, 5)]
    assert told[-1] == (TASKS * HISTORIES * STEPS,) * 2


def test_another_layout_is_refused(tmp_path: Path) -> None:
    write_histories(tmp_path, layout(), source)
    with pytest.raises(DatasetError, match="has seed = 0, not 1; valid: the same settings, or another directory"):
        write_histories(tmp_path, layout(info={"env": "numbers", "seed": 1}), source)
    with pytest.raises(DatasetError, match="has horizon = 2, not 4"):
        write_histories(tmp_path, layout(horizon=4), source)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("not yours")
    with pytest.raises(DatasetError, match=r"has files but no manifest\.json"):
        write_histories(tmp_path / "other", layout(), source)


def test_a_source_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def short(tasks: Tensor) -> Iterator[Transitions]:
        yield next(source(tasks))

    def narrow(tasks: Tensor) -> Iterator[Transitions]:
        yield everything(tasks[:1])

    with pytest.raises(DatasetError, match="the source gave 2 steps; valid: 8"):
        write_histories(tmp_path / "short", layout(), short)
    with pytest.raises(
        DatasetError, match=r"the source gave observation of shape \[1, 3, 8, 2\]; valid: \[2, 3, 8, 2\]"
    ):
        write_histories(tmp_path / "narrow", layout(), narrow)
    with pytest.raises(DatasetError, match=r"reward has values from .* that uint8 does not hold"):
        write_histories(tmp_path / "fractions", layout(reward_dtype="uint8"), source)
    with pytest.raises(DatasetError, match=r"observation has values from .* to 2.. that int8 does not hold"):
        write_histories(tmp_path / "large", layout(observation_dtype="int8"), source)


def test_damage_is_named(tmp_path: Path) -> None:
    path, whole = tmp_path / "damaged", tmp_path / "whole"
    write_histories(whole, layout(), source)

    def damaged(file: str, content: bytes | None, message: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        if content is None:
            (path / file).unlink()
        else:
            (path / file).write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            open_histories(path)

    reward = (whole / "shard-00001/reward.npy").read_bytes()
    damaged("shard-00001/action.npy", None, r"shard-00001/action\.npy is missing; valid: a file for each of")
    damaged("shard-00001/reward.npy", reward[:-4], r"shard-00001/reward\.npy is damaged")
    damaged("shard-00001/reward.npy", b"", r"shard-00001/reward\.npy is damaged")
    damaged("shard-00002/reward.npy", reward, r"is float32 of shape \[2, 3, 8\]; valid: float32 of shape \[1, 3, 8\]")
    damaged("shard-00001/action.npy", reward, r"is float32 of shape .*; valid: uint8 of shape \[2, 3, 8\]")
    damaged("manifest.json", None, r"has no manifest\.json; valid: a directory of learning histories")
    damaged("manifest.json", b'{"version": 1,', r"manifest\.json is damaged")
    damaged("manifest.json", b"[]", r"manifest\.json is damaged; valid: version, complete and layout")
    damaged("manifest.json", b'{"version": 1, "complete": 0, "layout": {}}', r"manifest\.json is damaged: .*missing")
    damaged("manifest.json", b'{"version": 9, "complete": 0, "layout": {}}', "has version = 9; valid: 1")


def test_arrays_that_do_not_fit_are_named() -> None:
    def block(tasks: int = 2, steps: int = 4) -> dict[str, np.ndarray[Any, Any]]:
        return {name: np.zeros((tasks, 3, steps), np.uint8) for name in FIELDS}

    def made(*blocks: Any, horizon: int = 2, tasks: int = 2) -> LearningHistories:
        return learning_histories(blocks, task=torch.arange(tasks), max_return=torch.ones(tasks), horizon=horizon)

    assert made(block(), block(1), tasks=3).num_tasks == 3
    without = {name: value for name, value in block().items() if name != "action"}
    with pytest.raises(DatasetError, match="block 0 has no action; valid: observation, action, reward"):
        made(without)
    with pytest.raises(
        DatasetError, match=r"block 0: action is uint8 of shape \[2, 3, 2\]; valid: uint8 of shape \[2, 3, 4\]"
    ):
        made(block() | {"action": block(steps=2)["action"]})
    with pytest.raises(DatasetError, match=r"block 1: observation is uint8 of shape \[2, 3, 6\]"):
        made(block(), block(steps=6), tasks=4)
    with pytest.raises(DatasetError, match="histories have 4 steps; valid: whole episodes of horizon = 3"):
        made(block(), horizon=3)
    with pytest.raises(DatasetError, match=r"task has shape \[3\], max_return \[3\]; valid: \[2\]"):
        made(block(), tasks=3)
    with pytest.raises(DatasetError, match="blocks is empty"):
        made()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon = 0; valid: a whole number >= 1"),
        ({"task": []}, "task has 0 ids, max_return 5 numbers"),
        ({"reward_dtype": "object"}, "reward_dtype = 'object'; valid: uint8"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(**changes)
