"""Families of tasks: against plain loops over single steps, the published splits, and the returns that are possible."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from decisionrl.envs.gridworld import (
    GridFamily,
    dark_key_to_door,
    darkroom,
    darkroom_large,
    darkroom_permuted,
    hidden_reach,
)

PUBLISHED = [darkroom, darkroom_permuted, darkroom_large, dark_key_to_door]

VARIANTS = {
    "darkroom": darkroom(),
    "large": darkroom_large(),
    "hard": darkroom(size=17, reward_once=True),
    "dpt": darkroom(size=10, horizon=100, start="corner", train_share=0.8, shuffle="numpy"),
    "toy_meta_gym": darkroom(start="random", action_order="toy_meta_gym"),
    "permuted": darkroom_permuted(),
    "permuted_once": darkroom_permuted(reward_once=True, action_order="toy_meta_gym", size=3, horizon=7),
    "key_to_door": dark_key_to_door(size=3),
    "key_to_door_ad": dark_key_to_door(size=4, start="random", action_order="toy_meta_gym"),
}

TOY_META_GYM = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))
AXES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(family: GridFamily, streams: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """First states [tasks, streams, 3] and ids [tasks, 1]."""
    uniform = torch.rand(family.num_tasks, streams, family.start_draws, generator=rng())
    return family.start(uniform), torch.arange(family.num_tasks)[:, None]


def best_returns(family: GridFamily) -> torch.Tensor:
    """Of the optimal action at every step, in each task."""
    state, task = started(family)
    total = torch.zeros(family.num_tasks, 1)
    for _ in range(family.horizon):
        state, reward = family.step(state, family.optimal_action(state, task), task)
        total += reward
    return total[:, 0]


class Room:
    """One copy of one task in plain Python, as the papers describe it."""

    def __init__(self, name: str, task: int, cell: list[int]) -> None:
        self.cell, self.size = cell, VARIANTS[name].size
        self.moves = TOY_META_GYM if name in ("toy_meta_gym", "permuted_once", "key_to_door_ad") else AXES
        cells = list(itertools.product(range(self.size), repeat=2))
        self.key = self.permutation = None
        if name.startswith("permuted"):
            self.permutation = list(itertools.permutations(range(5)))[task]
            self.goal = cells[-1]
        elif name.startswith("key_to_door"):
            self.key, self.goal = list(itertools.product(cells, cells))[task]
        else:
            self.goal = cells[task]
        self.once = name in ("hard", "permuted_once", "key_to_door", "key_to_door_ad")
        self.have_key = self.reached = False

    def step(self, action: int) -> int:
        if self.permutation is not None:
            action = self.permutation[action]
        moved = [x + move for x, move in zip(self.cell, self.moves[action], strict=True)]
        self.cell = [min(max(x, 0), self.size - 1) for x in moved]
        here = tuple(self.cell)
        if self.key is not None:
            if not self.have_key and here == self.key:
                self.have_key = True
                return 1
            if self.have_key and not self.reached and here == self.goal:
                self.reached = True
                return 1
            return 0
        if here == self.goal and not (self.once and self.reached):
            self.reached = True
            return 1
        return 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_of_all_tasks_is_the_step_of_each(name):
    family, chosen = VARIANTS[name], random.Random(0)
    state, task = started(family, 2)
    actions = torch.randint(5, (family.horizon, *state.shape[:2]), generator=rng(1))
    rows = [(i, j) for i in range(family.num_tasks) for j in range(2)]
    rows = chosen.sample(rows, min(len(rows), 100))
    rooms = {(i, j): Room(name, i, state[i, j, :2].tolist()) for i, j in rows}
    paid = 0
    for action in actions:
        state, reward = family.step(state, action, task)
        seen = family.observation(state)
        assert (state.dtype, reward.dtype) == (torch.int64, torch.float32)
        for (i, j), room in rooms.items():
            assert reward[i, j] == room.step(int(action[i, j]))
            assert seen[i, j].tolist() == room.cell
        paid += int(sum(reward[i, j] for i, j in rows))
    assert paid > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_optimal_action_is_worth_the_largest_return(name):
    family = VARIANTS[name]
    if family.start_at == "random":
        first = family.goals[:, 0]
        state, task = family.placed(first), torch.arange(family.num_tasks)
        total = torch.zeros(family.num_tasks)
        for _ in range(family.horizon):
            state, reward = family.step(state, family.optimal_action(state, task), task)
            total += reward
    else:
        total = best_returns(family)
    assert torch.equal(total, family.max_return)


def test_largest_returns_are_those_of_the_papers():
    for family, least, most in ((darkroom(), 13, 20), (darkroom_large(), 37, 50)):
        center = family.size // 2
        for task, (x0, x1) in enumerate(itertools.product(range(family.size), repeat=2)):
            distance = abs(x0 - center) + abs(x1 - center)
            assert family.max_return[task] == min(family.horizon + 1 - distance, family.horizon)
        assert (family.max_return.min(), family.max_return.max()) == (least, most)
    assert darkroom().max_return.mean() == pytest.approx(16.54, abs=0.005)
    assert (darkroom_permuted().max_return == 35).all()
    assert torch.equal(best_returns(darkroom_permuted()), torch.full((120,), 35.0))
    doors = dark_key_to_door()
    assert (doors.max_return == 2).all()
    assert torch.equal(best_returns(doors), doors.max_return)


def test_goals_that_are_too_far_are_worth_nothing():
    near = darkroom(horizon=3)
    distance = (near.goals[:, 0] - 4).abs().sum(1)
    assert torch.equal(near.max_return, (4 - distance).clamp(0, 3).float())
    assert torch.equal(best_returns(near), near.max_return)
    hard = darkroom(horizon=3, reward_once=True)
    assert torch.equal(hard.max_return, (distance <= 3).float())
    doors = dark_key_to_door(size=3, horizon=3, start="corner")
    assert set(doors.max_return.tolist()) == {0, 1, 2}  # four steps to the key; no time for the door; both
    assert torch.equal(best_returns(doors), doors.max_return)


@pytest.mark.parametrize("make", PUBLISHED)
def test_no_sequence_of_actions_beats_the_largest_return(make):
    """Every sequence of five actions, in a room so small that they lead anywhere."""
    family = make(size=2, horizon=5)
    actions = torch.tensor(list(itertools.product(range(5), repeat=5)))
    tasks = torch.arange(0, family.num_tasks, 7)[:, None]
    state = family.start(torch.zeros(len(tasks), len(actions), 2))
    total = torch.zeros(state.shape[:2])
    for action in actions.T:
        state, reward = family.step(state, action.expand(len(tasks), -1), tasks)
        total += reward
    assert torch.equal(total.amax(1), family.max_return[tasks[:, 0]])


@pytest.mark.parametrize(
    ("family", "train", "test"),
    [
        (darkroom(), 73, [38, 51, 62, 65, 33, 5, 53, 49]),
        (darkroom_permuted(), 108, [70, 51, 2, 8, 11, 19, 61, 50, 92, 13, 38, 30]),
        (darkroom_large(), 202, 23),
        (dark_key_to_door(), 6233, 328),
        (VARIANTS["dpt"], 80, [25, 37, 81, 46, 39, 65, 58, 12, 88, 70, 87, 36, 21, 83, 9, 96, 67, 64, 47, 44]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_splits_are_the_published_ones(family, train, test):
    train_ids, test_ids = family.split()
    assert len(train_ids) == train
    assert (test_ids.tolist() if isinstance(test, list) else len(test_ids)) == test
    assert sorted(torch.cat([train_ids, test_ids]).tolist()) == list(range(family.num_tasks))
    assert torch.equal(family.split(3)[0], family.split(3)[0])
    assert not torch.equal(family.split(3)[0], family.split(5)[0])


def test_test_goals_of_the_darkroom():
    goals = [(4, 2), (5, 6), (6, 8), (7, 2), (3, 6), (0, 5), (5, 8), (5, 4)]
    family = darkroom()
    assert [tuple(goal) for goal in family.goals[family.split()[1], 0].tolist()] == goals


def test_splits_of_the_decision_pretrained_transformer_shuffle_goals():
    goals = np.array(list(itertools.product(range(10), repeat=2)))
    np.random.RandomState(0).shuffle(goals)
    family = VARIANTS["dpt"]
    assert family.goals[torch.cat(family.split()), 0].tolist() == goals.tolist()


def test_permutations_name_the_primitive_that_is_executed():
    family = darkroom_permuted()
    cell = family.placed(torch.full((120, 5, 2), 4))
    moved = family.step(cell, torch.arange(5).expand(120, -1), torch.arange(120)[:, None])[0][..., :2] - 4
    for task, permutation in enumerate(itertools.permutations(range(5))):
        assert family.primitives[task].tolist() == list(permutation)
        assert [tuple(move) for move in moved[task].tolist()] == [AXES[primitive] for primitive in permutation]
        best = family.optimal_action(cell[task, 0], torch.tensor(task))
        assert best == permutation.index(0)  # down first, as the goal is below and to the right


def test_optimal_actions_go_along_the_first_axis_first():
    family, goal = darkroom(), 4 * 9 + 6
    for cell, action in (((2, 2), 0), ((7, 8), 1), ((4, 2), 2), ((4, 8), 3), ((4, 6), 4)):
        state = family.placed(torch.tensor(cell))
        assert family.optimal_action(state, torch.tensor(goal)) == action


def test_the_key_comes_before_the_door():
    family = dark_key_to_door()
    task = torch.tensor((4 * 9 + 5) * 81 + (4 * 9 + 3))  # the key right of the center, the door left of it
    state = family.start(torch.zeros(2))
    rewards, had = [], []
    for action in (3, 4, 2, 2, 4, 3, 3, 4, 2):  # the door without the key, the key, the door, and on
        state, reward = family.step(state, torch.tensor(action), task)
        rewards.append(int(reward))
        had.append(int(state[2]))
    assert rewards == [0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert had == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert family.success(state, task)


def test_a_door_where_the_key_was_asks_for_one_more_step():
    family = dark_key_to_door()
    center = 4 * 9 + 4
    for key, rewards in ((center, [1, 1, 0, 0]), (center + 2, [0, 1, 1, 0])):
        task = torch.tensor(key * 81 + key)
        state, got = family.start(torch.zeros(2)), []
        for _ in range(4):
            state, reward = family.step(state, family.optimal_action(state, task), task)
            got.append(int(reward))
        assert got == rewards
        assert family.max_return[task] == 2


def test_success_is_the_goal_or_all_that_is_rewarded_once():
    for once in (False, True):
        family, task = darkroom(reward_once=once), torch.tensor(4 * 9 + 5)
        state, flags = family.start(torch.zeros(2)), []
        for action in (4, 2, 2):
            state, _ = family.step(state, torch.tensor(action), task)
            flags.append(bool(family.success(state, task)))
        assert flags == [False, True, once]


def test_starts():
    assert darkroom().start(torch.rand(3, 2)).tolist() == [[4, 4, 0]] * 3
    assert darkroom(size=10, start="corner").start(torch.rand(3, 2)).tolist() == [[0, 0, 0]] * 3
    cells = darkroom(start="random").start(torch.rand(81_000, 2, generator=rng()))
    assert not cells[:, 2].any()
    count = (cells[:, 0] * 9 + cells[:, 1]).bincount()
    assert len(count) == 81
    assert ((count - 1000).abs() < 5 * math.sqrt(1000)).all()
    assert darkroom(start="random").start(torch.ones(2)).tolist() == [8, 8, 0]


def test_tensors_move_together():
    family = dark_key_to_door(size=3).to("meta")
    assert {family.device, family.moves.device, family.actions.device, family.max_return.device} == {
        torch.device("meta")
    }
    state, task = family.start(torch.zeros(4, 2, device="meta")), torch.zeros(4, dtype=torch.int64, device="meta")
    state, reward = family.step(state, family.optimal_action(state, task), task)  # no shape depends on what is in them
    assert (state.device.type, reward.shape) == ("meta", (4,))


@pytest.mark.parametrize("make", PUBLISHED)
@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        ("size", 1, "a whole number >= 2"),
        ("size", 9.5, "a whole number >= 2"),
        ("horizon", 0, "a whole number >= 1"),
        ("start", "edge", "center, corner, random"),
        ("action_order", "wasd", "axes, toy_meta_gym"),
        ("train_share", 1.0, r"in \(0, 1\)"),
        ("train_share", math.nan, r"in \(0, 1\)"),
        ("shuffle", "torch", "python, numpy"),
    ],
)
def test_options_that_cannot_be(make, option, value, valid):
    with pytest.raises(ValueError, match=f"{option} = {value!r}; valid: {valid}"):
        make(**{option: value})


def test_a_split_with_an_empty_part():
    with pytest.raises(ValueError, match=r"darkroom: train_share = 0.9 leaves 4 of 4 tasks .*; valid: from 1 to 3"):
        darkroom(size=2).split()


def test_reaching_moves_and_pays_as_stated():
    family = hidden_reach(tasks=6)
    state, task = family.start(torch.zeros(6, 2, 0)), torch.arange(6)[:, None]
    assert torch.equal(state, torch.zeros(6, 2, 3))
    position = np.zeros((6, 2, 3))
    for action in 0.2 * torch.rand(20, 6, 2, 3, generator=rng()) - 0.1:
        state, reward = family.step(state, action, task)
        for i, j in itertools.product(range(6), range(2)):
            for k in range(3):
                position[i, j, k] += min(max(float(action[i, j, k]), -0.05), 0.05)
            distance = math.dist(position[i, j], family.goals[i].tolist())
            assert float(reward[i, j]) == pytest.approx(10 * (1 - math.tanh(10 * distance)), abs=1e-4)
            assert bool(family.success(state, task)[i, j]) == (distance < 0.05)
    np.testing.assert_allclose(family.observation(state), position, atol=1e-6)


def test_reaching_straight_is_worth_the_largest_return():
    family = hidden_reach()
    state, task = family.start(torch.zeros(100, 0)), torch.arange(100)
    total = torch.zeros(100)
    for _ in range(family.horizon):
        state, reward = family.step(state, family.optimal_action(state, task), task)
        total += reward
    torch.testing.assert_close(total, family.max_return, rtol=1e-5, atol=0)
    assert family.success(state, task).all()
    assert total.min() > 400  # ten steps of 0.05 are enough for any goal; from then on 10 a step
    assert total.max() < 500


def test_goals_to_reach_are_determined_by_their_seed():
    family, again, other = hidden_reach(), hidden_reach(), hidden_reach(task_seed=1)
    assert torch.equal(family.goals, again.goals)
    assert not torch.equal(family.goals, other.goals)
    assert 0.45 < family.goals.abs().max() <= 0.5
    assert [len(part) for part in family.split()] == [50, 50]
    assert sorted(torch.cat(family.split()).tolist()) == list(range(100))
    for option, value in (("tasks", 1), ("goal_range", 0.0), ("horizon", -1), ("train_share", 2.0)):
        with pytest.raises(ValueError, match=f"{option} = {value}; valid: "):
            hidden_reach(**{option: value})


@pytest.mark.parametrize("name", [*VARIANTS, "hidden_reach"])
def test_a_state_is_what_was_seen_and_collected(name):
    family = VARIANTS.get(name) or hidden_reach(tasks=20)
    task = torch.arange(family.num_tasks)[:, None]
    state = family.start(torch.rand(family.num_tasks, 3, family.start_draws, generator=rng()))
    collected, rewarded = torch.zeros(state.shape[:-1]), 0
    for t in range(family.horizon):
        again = family.state_of(family.observation(state), collected)
        assert again.dtype == state.dtype
        assert torch.equal(again, state)
        assert torch.equal(family.optimal_action(again, task), family.optimal_action(state, task))
        action = family.optimal_action(state, task)
        if t % 2 and name != "hidden_reach":
            action = torch.randint(5, state.shape[:-1], generator=rng(t))
        state, reward = family.step(state, action, task)
        collected, rewarded = collected + reward, rewarded + int((reward > 0).sum())
    assert rewarded > family.num_tasks


def test_one_cell_has_a_state_for_each_reward_that_was_had():
    family = dark_key_to_door(size=3)
    cell, task = torch.tensor([[1, 1]]).expand(3, -1), torch.tensor([4 * 9 + 8])
    state = family.state_of(cell, torch.tensor([0.0, 1.0, 2.0]))
    assert state.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 2]]
    assert family.optimal_action(state, task).tolist() == [4, 0, 0], "to the key, which is here, then to the door"
