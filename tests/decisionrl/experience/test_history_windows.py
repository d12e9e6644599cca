"""Windows of learning histories: against plain loops, every beginning as likely, labels by the rules of the tasks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decisionrl.envs.gridworld import GridFamily, dark_key_to_door, darkroom, hidden_reach
from decisionrl.experience.data import HISTORIES, open_histories_of
from decisionrl.experience.histories import LearningHistories, collect_histories, learning_histories, write_histories
from decisionrl.experience.history_windows import HistoryWindows
from decisionrl.experience.store import DatasetError
from decisionrl.names import UnknownNameError
from decisionrl.pipeline.history_filter import HistoryFilter
from decisionrl.recording.histories import HistoryPlan, histories

TASKS, PLACES, EPISODES, HORIZON = 3, 4, 7, 2
STEPS = EPISODES * HORIZON
IDS = [5, 0, 3]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def number(task: int, history: int, step: int) -> int:
    """Tells every step of all histories apart."""
    return 1000 * task + 100 * history + step


def numbered() -> LearningHistories:
    """Histories whose fields say where they are; tasks are in two blocks."""
    every = np.array([[[number(i, j, t) for t in range(STEPS)] for j in range(PLACES)] for i in range(TASKS)], np.int32)
    fields = {
        "observation": np.stack([every, -every], -1),
        "action": every + 1,
        "reward": (every % 7).astype(np.float32),
        "next_observation": np.stack([every + 50_000, every], -1),
    }
    blocks = [{name: array[part] for name, array in fields.items()} for part in (slice(0, 2), slice(2, 3))]
    return learning_histories(blocks, task=torch.tensor(IDS), max_return=torch.ones(TASKS), horizon=HORIZON)


@pytest.mark.parametrize(("episodes", "every"), [(1, 1), (3, 1), (3, 2), (2, 6), (7, 1), (1, 5)])
def test_windows_are_what_plain_loops_gather(episodes: int, every: int) -> None:
    windows = HistoryWindows(histories=numbered(), size=1, episodes=episodes, every=every)
    first_of_all = range(EPISODES - (episodes - 1) * every)
    rows = list(itertools.product(range(TASKS), range(PLACES), first_of_all))
    batch = windows.batch(*torch.tensor(rows).T)
    assert batch.reward.shape == (len(rows), windows.steps)
    assert windows.steps == episodes * HORIZON
    assert (batch.label, batch.weight) == (None, None)
    assert batch.next_observation is not None
    for row, (task, history, first) in enumerate(rows):
        for place, t in itertools.product(range(episodes), range(HORIZON)):
            here, at = number(task, history, (first + place * every) * HORIZON + t), place * HORIZON + t
            assert batch.observation[row, at].tolist() == [here, -here]
            assert batch.action[row, at] == here + 1
            assert batch.reward[row, at] == here % 7
            assert batch.start[row, at] == (t == 0)
            assert batch.next_observation[row, at].tolist() == [here + 50_000, here], "also where an episode ends"


def beginnings(windows: HistoryWindows, draws: int) -> list[tuple[int, int, int]]:
    """(task, history, first step) of each window of so many draws."""
    generator = rng(1)
    first = [windows(generator).observation[:, 0, 0] for _ in range(draws)]
    return [(n // 1000, n // 100 % 10, n % 100) for n in torch.cat(first).tolist()]


def test_all_beginnings_are_equally_likely() -> None:
    windows = HistoryWindows(histories=numbered(), size=1200, episodes=2, every=3)
    found = beginnings(windows, 40)
    counts = {each: found.count(each) for each in set(found)}
    wanted = set(itertools.product(range(TASKS), range(PLACES), range(0, (EPISODES - 3) * HORIZON, HORIZON)))
    assert counts.keys() == wanted, "the last one too, and none within an episode"
    expected = len(found) / len(wanted)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 83, "99.9 % of a chi-squared distribution with 47 degrees of freedom"


def test_a_generator_decides_what_is_drawn_and_nothing_else() -> None:
    windows = HistoryWindows(histories=numbered(), size=20)
    state = torch.get_rng_state()
    one, same, other = (windows(rng(seed)).observation for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_filtered_histories_are_of_their_own_task_and_as_frequent_as_chosen() -> None:
    index = torch.tensor([[3, 3, 3, 1], [0, 0, 0, 0], [2, 1, 2, 1]])
    windows = HistoryWindows(histories=numbered().select(index), size=1200, episodes=2)
    found = [(task, history) for task, history, _ in beginnings(windows, 20)]
    for task, places in enumerate(index.tolist()):
        share = {history: found.count((task, history)) / len(found) * TASKS for history in range(PLACES)}
        assert share == pytest.approx({each: places.count(each) / PLACES for each in range(PLACES)}, abs=0.03)


def test_nothing_is_drawn_from_the_part_of_a_history_that_is_left_out() -> None:
    windows = HistoryWindows(histories=numbered().beginning(0.5), size=500, episodes=2)
    steps = torch.cat([windows(rng(seed)).observation[..., 0] for seed in range(5)]) % 100
    assert set(steps.unique().tolist()) == set(range(4 * HORIZON)), "round(3.5) episodes, each of them"


def test_weights_are_those_of_the_histories_of_the_windows() -> None:
    weight = torch.arange(TASKS * PLACES, dtype=torch.float64).view(TASKS, PLACES) / 10
    windows = HistoryWindows(histories=numbered(), size=50, episodes=2, weight=weight)
    batch = windows(rng())
    assert batch.weight is not None
    task, history = batch.observation[:, 0, 0] // 1000, batch.observation[:, 0, 0] // 100 % 10
    assert torch.equal(batch.weight, weight[task, history])


# ------------------------------------------------------------------------------------------------------ labels


def teacher(family: Any) -> Any:
    """The optimal action, as the recipes have it."""

    def optimal(observation: Tensor, collected: Tensor, task: Tensor) -> Tensor:
        return family.optimal_action(family.state_of(observation, collected), task)  # type: ignore[no-any-return]

    return optimal


def explored(family: Any, ids: list[int], *, places: int = 3, episodes: int = 5) -> LearningHistories:
    """Episodes of random actions."""
    task = torch.tensor(ids)[:, None].expand(-1, places)
    generator, columns = rng(2), []
    for _ in range(episodes):
        state = family.start(torch.rand(*task.shape, family.start_draws, generator=generator))
        for _ in range(family.horizon):
            if hasattr(family, "num_actions"):
                action = torch.randint(family.num_actions, task.shape, generator=generator)
            else:
                action = 0.2 * torch.rand(*task.shape, 3, generator=generator) - 0.1
            following, reward = family.step(state, action, task)
            columns.append((family.observation(state), action, reward, family.observation(following)))
            state = following
    arrays = (torch.stack(each, 2).numpy() for each in zip(*columns, strict=True))
    block = dict(zip(("observation", "action", "reward", "next_observation"), arrays, strict=True))
    return learning_histories(
        [block], task=torch.tensor(ids), max_return=family.max_return[ids], horizon=family.horizon
    )


def expected_label(family: GridFamily, task: int, cell: list[int], rewards: int) -> int:
    """By the rules of the papers: to the goal, or to the key until it is had and then to the door; x0 first."""
    goals = family.goals[task].tolist()
    goal = goals[min(rewards, len(goals) - 1)] if family.once else goals[0]
    for axis, (up, down) in enumerate(((0, 1), (2, 3))):
        if cell[axis] != goal[axis]:
            return up if cell[axis] < goal[axis] else down
    return 4


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    "family",
    [darkroom(size=3, horizon=6), dark_key_to_door(size=3, horizon=12, start="random")],
    ids=["darkroom", "key_to_door"],
)
def test_labels_are_optimal_in_each_episode_of_its_own(family: GridFamily, every: int) -> None:
    ids = [0, 4, 8] if family.num_tasks == 9 else [4 * 9 + 5, 1 * 9 + 3, 4 * 9 + 4, 7 * 9 + 7]
    made = explored(family, ids)
    windows = HistoryWindows(histories=made, size=60, episodes=2, every=every, teacher=teacher(family))
    task = torch.randint(len(ids), (60,), generator=rng(3))
    batch = windows.batch(task, *(torch.randint(3, (60,), generator=rng(seed)) for seed in (4, 5)))
    assert batch.label is not None
    assert batch.label.shape == batch.action.shape
    after_a_reward = 0
    for row in range(60):
        rewards = 0
        for at in range(windows.steps):
            rewards = 0 if at % family.horizon == 0 else rewards
            found = batch.label[row, at]
            assert found == expected_label(family, ids[task[row]], batch.observation[row, at].tolist(), rewards)
            rewards += int(batch.reward[row, at])
            after_a_reward += rewards > 0
    assert after_a_reward > 50, "so that a key that was had was among them"


def test_a_key_of_an_earlier_episode_is_not_had() -> None:
    family = dark_key_to_door(size=3, horizon=3)
    task = 5 * 9 + 3  # the key is on one side of the start, the door on the other
    cells, action = [[1, 1], [1, 2], [1, 1]], [2, 3, 4]
    block = {
        "observation": np.array([[cells * 2]]),
        "action": np.array([[action * 2]]),
        "reward": np.array([[[1, 0, 0] * 2]]),
        "next_observation": np.array([[[[1, 2], [1, 1], [1, 1]] * 2]]),
    }
    made = learning_histories([block], task=torch.tensor([task]), max_return=torch.ones(1), horizon=3)
    windows = HistoryWindows(histories=made, size=1, episodes=2, teacher=teacher(family))
    label = windows(rng()).label
    assert label is not None
    assert label.tolist() == [[2, 3, 3] * 2]


def test_continuous_actions_are_labeled_too() -> None:
    family = hidden_reach(tasks=4, horizon=3)
    windows = HistoryWindows(histories=explored(family, [2, 0]), size=8, episodes=2, teacher=teacher(family))
    task = torch.tensor([0, 1] * 4)
    batch = windows.batch(task, torch.zeros_like(task), torch.zeros_like(task))
    goal = family.goals[torch.tensor([2, 0])[task]][:, None]
    assert batch.label is not None
    assert batch.label.dtype == torch.float32
    torch.testing.assert_close(batch.label, (goal - batch.observation).clamp(-0.05, 0.05))


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, r"size = 0; valid: a whole number >= 1"),
        ({"episodes": 0}, r"episodes = 0; valid: a whole number >= 1"),
        ({"every": 0}, r"every = 0; valid: a whole number >= 1"),
        ({"episodes": 8}, r"episodes = 8, every = 1: a window spans 8 episodes; valid: at most 7"),
        ({"episodes": 2, "every": 7}, r"episodes = 2, every = 7: a window spans 8 episodes; valid: at most 7"),
        ({"weight": torch.ones(TASKS)}, r"weight has shape \[3\]; valid: \[3, 4\]"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        HistoryWindows(histories=numbered(), **{"size": 2, **changes})


def test_windows_outside_the_histories_are_refused() -> None:
    windows = HistoryWindows(histories=numbered(), size=1, episodes=2, every=2)
    zero = torch.zeros(1, dtype=torch.int64)
    for row, name in (((zero + TASKS, zero, zero), "task"), ((zero, zero + PLACES, zero), "history")):
        with pytest.raises(ValueError, match=f"{name} is from"):
            windows.batch(*row)
    windows.batch(zero, zero, zero + EPISODES - 3)
    with pytest.raises(ValueError, match="start is from"):
        windows.batch(zero, zero, zero + EPISODES - 2)


# ------------------------------------------------------------------------------------------------ by name


PLAN: dict[str, Any] = {"env_options": {"size": 3, "horizon": 4}, "streams": 3, "steps": 12, "noise": 0.3, "seed": 4}


def test_what_is_collected_is_what_is_written(tmp_path: Any) -> None:
    plan = HistoryPlan(**PLAN)
    layout = plan.layout("train", tasks_per_shard=3)
    held, written = collect_histories(layout, plan.learn), write_histories(tmp_path / "made", layout, plan.learn)
    (recorded,) = histories(**PLAN, out=tmp_path)
    assert recorded.name == plan.name("train") == "darkroom-ppo-noise0.3-train-seed4"
    for other in (written, open_histories_of(str(recorded))):
        assert (held.horizon, held.episodes, held.info) == (other.horizon, other.episodes, other.info)
        assert torch.equal(held.task, other.task)
        assert torch.equal(held.max_return, other.max_return)
        for field in ("observation", "action", "reward", "next_observation"):
            arrays = [np.concatenate([block[field] for block in each.blocks]) for each in (held, other)]
            assert arrays[0].dtype == arrays[1].dtype
            np.testing.assert_array_equal(*arrays)


def test_a_plan_has_the_tasks_of_the_split() -> None:
    plan = HistoryPlan(**PLAN)
    for tasks, wanted in zip((plan.tasks("train"), plan.tasks("test")), darkroom(size=3).split(), strict=True):
        assert torch.equal(tasks, wanted)
    assert not torch.equal(HistoryPlan(**PLAN, split_seed=9).tasks("train"), plan.tasks("train"))
    assert plan.episodes == 3
    with pytest.raises(ValueError, match=r"steps = 10; valid: whole episodes of 4 steps"):
        HistoryPlan(**{**PLAN, "steps": 10})
    with pytest.raises(UnknownNameError, match="ppo"):
        HistoryPlan(source="pppo")
    with pytest.raises(ValueError, match=r"rates is empty"):
        HistoryPlan(**PLAN, rates=[])


def test_a_source_that_does_not_fit_is_refused_in_memory_too() -> None:
    plan = HistoryPlan(**PLAN)
    with pytest.raises(DatasetError, match="the source gave 8 steps; valid: 12"):
        collect_histories(plan.layout("train"), HistoryPlan(**{**PLAN, "steps": 8}).learn)


def test_labs_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HISTORIES, "lab/tiny-noise", PLAN)  # type: ignore[misc]
    made = open_histories_of("lab/tiny-noise")
    assert made.info["noise"] == 0.3
    assert open_histories_of("lab/tiny-noise") is made


@pytest.mark.parametrize("name", HISTORIES)
def test_labs_are_those_that_are_documented(name: str) -> None:
    plan = HistoryPlan(**HISTORIES[name])
    assert plan.noise == (0.3 if name.endswith("noise") else 0.0)
    assert plan.env == {"lab/darkroom-permuted": "darkroom_permuted", "lab/bandit": "bandit"}.get(name, "darkroom")


def test_names_that_stand_for_no_histories(tmp_path: Any) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lab/darkroom'"):
        open_histories_of("lab/darkrom")
    with pytest.raises(UnknownNameError, match="lab/darkroom"):
        open_histories_of("lab/gridworld")  # of episodes, not of histories
    for name in ("nowhere", tmp_path):
        with pytest.raises(DatasetError, match=r"no manifest\.json; valid: a directory of learning histories"):
            open_histories_of(name)


def test_the_filter_leaves_few_random_histories_in_the_lab_with_noise() -> None:
    from decisionrl.recording.tabular_sources import random_streams

    made = open_histories_of("lab/darkroom-noise")
    info = made.info
    random = random_streams(made.task, info["streams"], share=info["noise"], seed=info["seed"])
    assert random.float().mean() == 0.3
    returns = made.episode_returns()
    chosen = HistoryFilter()(returns, made.max_return, rng()).index
    assert 0 < random.gather(1, chosen).float().mean() < 0.08
    assert returns[random].mean() < 0.1 * returns[~random].mean()
    assert made.select(chosen).episode_returns().mean() > 1.2 * returns.mean()
