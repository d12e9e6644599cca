"""Flat files of transitions: where episodes end, what is kept, and the way back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.experience.d4rl import load_d4rl, save_d4rl
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes


def flat(lengths: tuple[int, ...] = (3, 2, 4), ends: str = "tet") -> dict[str, Any]:
    """Episodes that end in a terminal (t) or a timeout (e); observations count steps: 100 e + t."""
    rows = [(e, t, steps) for e, steps in enumerate(lengths) for t in range(steps)]
    last = np.array([t == steps - 1 for _, t, steps in rows])
    kind = np.array([ends[e] for e, _, _ in rows])
    seen = np.array([[100 * e + t, 0.5] for e, t, _ in rows], np.float32)
    return {
        "observations": seen,
        "next_observations": seen + np.array([1, 0], np.float32),
        "actions": np.linspace(-1, 1, len(rows), dtype=np.float32)[:, None],
        "rewards": np.arange(len(rows), dtype=np.float32),
        "terminals": last & (kind == "t"),
        "timeouts": last & (kind == "e"),
        "infos/goal": np.arange(len(rows)),
    }


def npz(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def steps_seen(store: EpisodeStore) -> list[list[float]]:
    """The first number of every observation, by episode."""
    assert isinstance(store.observation, Tensor)
    return [part[:, 0].tolist() for part in store.observation.split((store.length + 1).tolist())]


def test_a_file_with_next_observations_keeps_every_step(tmp_path: Path) -> None:
    arrays = flat()
    store = load_d4rl(npz(tmp_path / "a.npz", arrays))
    assert steps_seen(store) == [[0, 1, 2, 3], [100, 101, 102], [200, 201, 202, 203, 204]]
    assert store.length.tolist() == [3, 2, 4]
    assert store.action.tolist() == arrays["actions"].tolist()
    assert store.reward.tolist() == arrays["rewards"].tolist()
    assert store.terminated.tolist() == arrays["terminals"].tolist()
    assert store.truncated.tolist() == arrays["timeouts"].tolist()
    assert store.extras["goal"].tolist() == list(range(9))
    assert store.action_space == spaces.Box(-1, 1, (1,))


def test_without_next_observations_the_step_before_a_timeout_is_lost(tmp_path: Path) -> None:
    arrays = flat((3, 2, 4, 1, 3), "teeet")
    del arrays["next_observations"]
    store = load_d4rl(npz(tmp_path / "a.npz", arrays))
    assert steps_seen(store) == [[0, 1, 2, 2], [100, 101], [200, 201, 202, 203], [400, 401, 402, 402]]
    assert store.length.tolist() == [3, 1, 3, 3]
    assert store.reward.tolist() == [0, 1, 2, 3, 5, 6, 7, 10, 11, 12]
    assert store.terminated.nonzero().flatten().tolist() == [2, 9]
    assert store.truncated.nonzero().flatten().tolist() == [3, 6]
    assert store.extras["goal"].tolist() == store.reward.tolist()


def test_a_file_may_end_in_the_middle_of_an_episode(tmp_path: Path) -> None:
    cut = {name: array[:-2] for name, array in flat().items()}
    store = load_d4rl(npz(tmp_path / "a.npz", cut))
    assert steps_seen(store)[-1] == [200, 201, 202]
    assert store.truncated.tolist() == [False, False, False, False, True, False, True]
    del cut["next_observations"]
    assert steps_seen(load_d4rl(npz(tmp_path / "a.npz", cut)))[-1] == [200, 201]


def test_unmarked_resets_end_episodes(tmp_path: Path) -> None:
    arrays = flat()
    marked = load_d4rl(npz(tmp_path / "a.npz", arrays))
    del arrays["timeouts"]
    store = load_d4rl(npz(tmp_path / "a.npz", arrays))
    assert steps_seen(store) == steps_seen(marked)
    assert torch.equal(store.truncated, marked.truncated)
    arrays["next_observations"] += np.float32(1e-6)  # rounding is no reset
    assert load_d4rl(npz(tmp_path / "a.npz", arrays)).length.tolist() == [3, 2, 4]


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("discrete", [False, True])
def test_a_store_comes_back(tmp_path: Path, suffix: str, discrete: bool) -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number, steps in enumerate((4, 1, 6)):
        seen = rng.integers(0, 9, steps + 1) if discrete else rng.normal(size=(steps + 1, 2)).astype(np.float32)
        done = rng.integers(2, 5, steps) if discrete else rng.uniform(-3, 3, (steps, 2)).astype(np.float32)
        last = np.arange(steps) == steps - 1
        episodes.append(
            {
                "observation": seen,
                "action": done,
                "reward": rng.normal(size=steps).astype(np.float32),
                "terminated": last & (number != 1),
                "truncated": last & (number != 0),
                "success": last,
            }
        )
    box = spaces.Box(np.array([-np.inf, -9], np.float32), np.inf, (2,))
    store = store_episodes(
        episodes,
        observation_space=spaces.Discrete(9) if discrete else box,
        action_space=spaces.Discrete(3, start=2) if discrete else spaces.Box(-3, 3, (2,)),
        info={"env": "Ö-v0", "random_score": -1.5},
    )
    save_d4rl(store, tmp_path / f"store{suffix}")
    back = load_d4rl(tmp_path / f"store{suffix}")
    for name in ("observation", "action", "reward", "terminated", "truncated", "length"):
        assert torch.equal(getattr(back, name), getattr(store, name)), name
        assert getattr(back, name).dtype == getattr(store, name).dtype
    assert torch.equal(back.extras["success"], store.extras["success"])
    assert (back.observation_space, back.action_space) == (store.observation_space, store.action_space)
    assert back.info == {"env": "Ö-v0", "random_score": -1.5}


def test_groups_of_an_hdf5_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in flat().items():
            file.create_dataset(name, data=array)
        file.create_dataset("metadata/algorithm", data="SAC")
        file.create_dataset("infos/whole", data=np.zeros(4))
    store = load_d4rl(path)
    assert list(store.extras) == ["goal"]
    assert store.length.tolist() == [3, 2, 4]


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    def load(**changes: Any) -> EpisodeStore:
        arrays = {**flat(), **changes}
        return load_d4rl(npz(tmp_path / "a.npz", {name: each for name, each in arrays.items() if each is not None}))

    with pytest.raises(DatasetError, match="rewards is missing; there are actions, "):
        load(rewards=None)
    with pytest.raises(DatasetError, match="timeouts and next_observations are missing; valid: at least one"):
        load(timeouts=None, next_observations=None)
    with pytest.raises(DatasetError, match="actions has 8 rows; valid: 9, those of rewards"):
        load(actions=flat()["actions"][:8])
    broken = flat()["observations"]
    broken[4, 1] = np.inf
    with pytest.raises(DatasetError, match=r"observations\[4, 1\] = inf; valid: finite numbers"):
        load(observations=broken)
    with pytest.raises(DatasetError, match=r"actions are float32 from -2.0 to 2.0; valid: real numbers in \[-1, 1\]"):
        load(actions=2 * flat()["actions"])
    with pytest.raises(DatasetError, match=r"actions are int64 from 0 to 8; valid: .* or give action_space"):
        load(actions=np.arange(9))
    with pytest.raises(DatasetError, match="no step says what it led to"):
        load_d4rl(npz(tmp_path / "a.npz", {**short(), "timeouts": np.ones(2)}))
    with pytest.raises(DatasetError, match="rewards is empty"):
        load(**{name: array[:0] for name, array in flat().items()})
    assert load_d4rl(
        npz(tmp_path / "a.npz", {**flat(), "actions": np.arange(9)}), action_space=spaces.Discrete(9)
    ).action_space == spaces.Discrete(9)


def short() -> dict[str, Any]:
    return {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2), "terminals": [0, 0]}


def test_paths_that_are_no_flat_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"suffix = '.pkl'; valid: .hdf5, .h5, .npz"):
        load_d4rl(tmp_path / "a.pkl")
    for suffix in (".npz", ".hdf5"):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(FileNotFoundError):
            load_d4rl(path)
        path.write_text("text")
        with pytest.raises(DatasetError, match=f"not an {suffix[1:]} file"):
            load_d4rl(path)


def test_hdf5_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[offline\]'"):
        load_d4rl(tmp_path / "a.hdf5")


def test_stores_that_fit_no_flat_file(tmp_path: Path) -> None:
    episode = {
        "action": np.zeros((2, 1), np.float32),
        "reward": np.zeros(2),
        "terminated": np.zeros(2, bool),
        "truncated": np.array([False, True]),
    }
    box, path = spaces.Box(-1, 1, (1,)), tmp_path / "a.npz"
    seen = np.zeros((3, 1), np.float32)
    named = store_episodes(
        [{"observation": {"a": seen}, **episode}], observation_space=spaces.Dict({"a": box}), action_space=box
    )
    with pytest.raises(DatasetError, match=r"observation has the keys \['a'\]; valid: one tensor"):
        save_d4rl(named, path)
    endless = store_episodes(
        [{"observation": seen, **episode, "truncated": np.zeros(2, bool)}], observation_space=box, action_space=box
    )
    with pytest.raises(DatasetError, match="episode 0, step 1: terminated = False, truncated = False; valid: one of"):
        save_d4rl(endless, path)
    binary = store_episodes(
        [{"observation": seen, **episode}], observation_space=spaces.MultiBinary(1), action_space=box
    )
    with pytest.raises(DatasetError, match=r"space = MultiBinary\(1\); valid: Box or Discrete"):
        save_d4rl(binary, path)
    assert not path.exists()
