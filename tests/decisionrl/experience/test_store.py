"""Episode stores against plain lists of episodes: windows, selections, single rows, and data that is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from recorded import LENGTHS, episodes, store
from torch import Tensor

from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes

FIELDS = ("action", "reward", "terminated", "truncated")


def unpacked(own: EpisodeStore) -> list[dict[str, Any]]:
    """The episodes of a store as lists, by counting rows."""
    made, step, seen = [], 0, 0
    assert isinstance(own.observation, Tensor)
    for steps in own.length.tolist():
        fields = {name: getattr(own, name)[step : step + steps].tolist() for name in FIELDS}
        fields["observation"] = own.observation[seen : seen + steps + 1].tolist()
        fields["goal"] = own.extras["goal"][step : step + steps].tolist()
        made.append(fields)
        step, seen = step + steps, seen + steps + 1
    return made


def lists(value: Any) -> Any:
    return {key: lists(each) for key, each in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()


def test_a_store_holds_the_episodes_one_after_another() -> None:
    own = store()
    assert unpacked(own) == [lists(each) for each in episodes()]
    assert (own.num_episodes, own.num_steps) == (4, 14)
    assert own.length.tolist() == list(LENGTHS)
    assert own.first.tolist() == [0, 4, 5, 11]
    assert own.episode.tolist() == [0] * 4 + [1] + [2] * 6 + [3] * 3
    returns = [sum(np.float64(each["reward"])) for each in episodes()]
    assert own.returns.dtype == torch.float64
    assert own.returns.tolist() == pytest.approx(returns, abs=1e-12)


def test_wide_numbers_are_narrowed_and_whole_ones_kept() -> None:
    wide = [
        {**each, "action": each["action"].astype(np.float64), "reward": each["reward"].tolist()} for each in episodes()
    ]
    own = store_episodes(wide, observation_space=store().observation_space, action_space=spaces.Box(-1, 1, (3,)))
    assert own.action.dtype == own.reward.dtype == torch.float32
    assert own.extras["goal"].dtype == torch.int64
    assert torch.equal(own.action, store().action)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_windows_are_rows_of_their_episode_and_then_zeros(length: int, named: bool) -> None:
    own, made = store(named=named), [lists(each) for each in episodes(named=named)]
    places = [(e, t) for e, steps in enumerate(LENGTHS) for t in range(steps)]
    batch = own.windows(*torch.tensor(places).unbind(1), length)
    assert batch.complete == (length == 1)
    for row, (e, start) in enumerate(places):
        for column in range(length):
            t = start + column
            inside = t < LENGTHS[e]
            assert bool(batch.mask[row, column]) == inside
            assert int(batch.extras["timestep"][row, column]) == (t if inside else 0)
            for name in (*FIELDS, "goal"):
                found = (batch.extras[name] if name == "goal" else getattr(batch, name))[row, column].tolist()
                expected = made[e][name][t] if inside else np.zeros_like(made[e][name][0]).tolist()
                assert found == expected, name
            seen = batch.observation if named else {"": batch.observation}
            for key, tensor in seen.items():  # type: ignore[union-attr]
                steps = made[e]["observation"][key] if named else made[e]["observation"]
                expected = steps[t] if inside else np.zeros_like(steps[0]).tolist()
                assert tensor[row, column].tolist() == expected
    assert (batch.log_prob == 0).all()


def test_windows_with_what_each_step_led_to() -> None:
    own, made = store(), [lists(each) for each in episodes()]
    batch = own.windows(torch.tensor([2, 1, 0]), torch.tensor([4, 0, 3]), 3, following=True)
    led_to = batch.extras["next_observation"]
    for row, (e, start) in enumerate(((2, 4), (1, 0), (0, 3))):
        for column in range(3):
            inside = start + column < LENGTHS[e]
            expected = made[e]["observation"][start + column + 1] if inside else [0.0, 0.0]
            assert led_to[row, column].tolist() == expected
    assert "next_observation" not in own.windows(torch.tensor([0]), torch.tensor([0]), 2).extras
    with pytest.raises(DatasetError, match="next_observation: valid with observations that are one tensor, not a dict"):
        store(named=True).windows(torch.tensor([0]), torch.tensor([0]), 2, following=True)


@pytest.mark.parametrize("named", [False, True])
def test_single_observations(named: bool) -> None:
    own, made = store(named=named), [lists(each) for each in episodes(named=named)]
    places = [(e, t) for e, steps in enumerate(LENGTHS) for t in range(steps + 1)]
    found = own.observation_at(*torch.tensor(places).unbind(1))
    before = own.observations_before()
    for key in ("at", "room") if named else ("",):
        there = {e: made[e]["observation"][key] if named else made[e]["observation"] for e in range(4)}
        one = found[key] if isinstance(found, dict) else found
        all_steps = before[key] if isinstance(before, dict) else before
        assert one.tolist() == [there[e][t] for e, t in places]
        assert all_steps.tolist() == [there[e][t] for e, t in places if t < LENGTHS[e]]


@pytest.mark.parametrize("chosen", [[2], [3, 0], [1, 1, 2, 0, 3]])
def test_a_selection_is_a_store_of_those_episodes(chosen: list[int]) -> None:
    own = store(env="Room-v0").select(torch.tensor(chosen))
    assert unpacked(own) == [lists(episodes()[e]) for e in chosen]
    assert own.info == {"env": "Room-v0"}
    named = store(named=True).select(torch.tensor(chosen))
    assert isinstance(named.observation, dict)
    rooms = [room for e in chosen for room in episodes(named=True)[e]["observation"]["room"].tolist()]
    assert named.observation["room"].tolist() == rooms


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("named", [False, True])
def test_windows_on_another_device_are_the_same(named: bool) -> None:
    own = store(named=named)
    episode, start = torch.tensor([2, 0, 1]), torch.tensor([4, 0, 0])
    expected = own.windows(episode, start, 3)
    found = own.to("cuda").windows(episode.cuda(), start.cuda(), 3)
    assert found.action.device.type == "cuda"
    for field in dataclasses.fields(expected):
        before, after = getattr(expected, field.name), getattr(found.to("cpu"), field.name)
        if isinstance(before, dict):
            assert all(torch.equal(after[key], each) for key, each in before.items())
        elif isinstance(before, Tensor):
            assert torch.equal(after, before)


def test_the_constants_of_a_score_are_0_and_100() -> None:
    own = store(random_score=-20.272305, expert_score=3234.3)
    assert own.normalized_score(-20.272305) == pytest.approx(0, abs=1e-12)
    assert own.normalized_score(3234.3) == pytest.approx(100, abs=1e-12)
    assert own.normalized_score((3234.3 - 20.272305) / 2) == pytest.approx(50)
    with pytest.raises(DatasetError, match=r"random_score = None, expert_score = None; valid: two different numbers"):
        store().normalized_score(0)
    with pytest.raises(DatasetError, match=r"random_score = 1, expert_score = 1; valid: two different numbers"):
        store(random_score=1, expert_score=1).normalized_score(0)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("length", torch.tensor([4, 1, 9, 0]), "length: every episode needs at least one step"),
        ("length", torch.zeros(0, dtype=torch.int64), "there must be an episode"),
        ("length", torch.tensor([4, 1, 6, 4]), "action has 14 rows; valid: 15, as episodes have 15 steps"),
        ("length", torch.tensor([4, 1, 9]), "observation has 18 rows; valid: 17"),
        ("reward", torch.zeros(13), "reward has 13 rows; valid: 14"),
        ("truncated", torch.zeros(15, dtype=torch.bool), "truncated has 15 rows; valid: 14"),
        ("extras", {"goal": torch.zeros(3)}, r"extras\['goal'\] has 3 rows; valid: 14"),
        ("action_space", spaces.Box(-1, 1, (2,)), r"action has shape \(3,\) a step; valid: \(2,\), the shape of"),
        ("observation_space", spaces.Discrete(3), r"observation has shape \(2,\) a step; valid: \(\), the shape of"),
        ("observation_space", spaces.Dict({"a": spaces.Discrete(2)}), r"observation does not have the keys \['a'\]"),
    ],
)
def test_fields_that_do_not_fit(name: str, changed: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(store(), **{name: changed})


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("observation", 7, "observation is not finite in episode 2, step 0; valid: finite numbers"),
        ("observation", 6, "observation is not finite in episode 1, step 1;"),
        ("action", 10, "action is not finite in episode 2, step 5;"),
        ("reward", 4, "reward is not finite in episode 1, step 0;"),
    ],
)
def test_numbers_that_are_not_finite_are_found(name: str, row: int, message: str) -> None:
    broken = getattr(store(), name).clone()
    broken[row, ...] = torch.nan
    broken[-1, ...] = torch.inf
    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(store(), **{name: broken})


def test_not_finite_in_a_dict_names_the_key() -> None:
    own = store(named=True)
    assert isinstance(own.observation, dict)
    broken = own.observation["at"].clone()
    broken[8, 1] = -torch.inf
    with pytest.raises(DatasetError, match=r"observation\['at'\] is not finite in episode 2, step 1"):
        dataclasses.replace(own, observation={**own.observation, "at": broken})


def test_episodes_that_do_not_fit_together() -> None:
    vector, action = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (3,))

    def stored(made: list[dict[str, Any]]) -> EpisodeStore:
        return store_episodes(made, observation_space=vector, action_space=action)

    with pytest.raises(DatasetError, match="episodes is empty; valid: at least one episode"):
        stored([])
    made = episodes()
    del made[2]["goal"]
    with pytest.raises(DatasetError, match=r"episode 2 has fields \['action', .*valid: .* the same others in every"):
        stored(made)
    made = episodes()
    del made[0]["reward"]
    with pytest.raises(DatasetError, match=r"episode 0 has fields .*valid: observation, action, reward"):
        stored(made)
    made = episodes()
    made[3]["observation"] = made[3]["observation"][:-1]
    with pytest.raises(DatasetError, match="episode 3: observation has 3 rows; valid: 4"):
        stored(made)
    made = episodes()
    made[1]["truncated"] = np.zeros(2, bool)
    with pytest.raises(DatasetError, match="episode 1: truncated has 2 rows; valid: 1"):
        stored(made)
