"""LeRobot datasets: what is written is read back, has the layout of v3.0, and others' datasets are read too."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces

from decisionrl.experience.lerobot import load_lerobot, save_lerobot
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes
from decisionrl.recording.demonstrations import record_demonstrations

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def made(lengths=(3, 1, 4), *, observation=None, action=None, **extras) -> EpisodeStore:
    rng = np.random.default_rng(0)
    observation = observation or (lambda rows: rng.normal(size=(rows, 2)).astype(np.float32))
    action = action or (lambda rows: rng.uniform(-1, 1, size=(rows, 3)).astype(np.float32))
    episodes = [
        {
            "observation": observation(steps + 1),
            "action": action(steps),
            "reward": rng.normal(size=steps).astype(np.float32),
            "terminated": np.arange(steps) == (steps - 1 if number % 2 else -1),
            "truncated": np.arange(steps) == (-1 if number % 2 else steps - 1),
            **{name: each(steps) for name, each in extras.items()},
        }
        for number, steps in enumerate(lengths)
    ]
    return store_episodes(
        episodes,
        observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32),
        action_space=spaces.Box(-1, 1, (3,), np.float32),
        info={"env": "Mine-v0", "numbers": [1, 2.5]},
    )


def same(first: EpisodeStore, second: EpisodeStore) -> None:
    for name in ("observation", "action", "reward", "terminated", "truncated", "length"):
        a, b = getattr(first, name), getattr(second, name)
        pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) else [(a, b)]
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs), name
    assert first.extras.keys() == second.extras.keys()
    for name in first.extras:
        assert torch.equal(first.extras[name], second.extras[name])
        assert first.extras[name].dtype == second.extras[name].dtype
    assert (first.observation_space, first.action_space) == (second.observation_space, second.action_space)
    assert first.info == second.info


def test_round_trip(tmp_path):
    store = made(success=lambda steps: np.arange(steps) == 2, place=lambda steps: np.ones((steps, 2), np.float32))
    assert save_lerobot(store, tmp_path / "set", fps=10) == tmp_path / "set"
    same(load_lerobot(tmp_path / "set"), store)
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def test_round_trip_of_images(tmp_path):
    store = record_demonstrations(env_options={"pixels": True}, episodes=4)
    save_lerobot(store, tmp_path / "set", fps=10)
    same(load_lerobot(tmp_path / "set"), store)


def test_round_trip_of_dicts_and_whole_numbers(tmp_path):
    rng = np.random.default_rng(1)
    observation_space = spaces.Dict({"far": spaces.Box(0, 9, (1,), np.float32), "near": spaces.Discrete(5)})
    store = store_episodes(
        [
            {
                "observation": {
                    "far": rng.uniform(size=(steps + 1, 1)).astype(np.float32),
                    "near": rng.integers(5, size=steps + 1),
                },
                "action": rng.integers(4, size=steps),
                "reward": np.ones(steps, np.float32),
                "terminated": np.zeros(steps, bool),
                "truncated": np.arange(steps) == steps - 1,
            }
            for steps in (2, 5)
        ],
        observation_space=observation_space,
        action_space=spaces.Discrete(4),
    )
    save_lerobot(store, tmp_path / "set", fps=1)
    spaces_of = {"observation_space": observation_space, "action_space": spaces.Discrete(4)}
    same(load_lerobot(tmp_path / "set", **spaces_of), store)
    with pytest.raises(DatasetError, match="give action_space"):
        load_lerobot(tmp_path / "set", observation_space=observation_space)


def test_the_layout(tmp_path):
    store = made(success=lambda steps: np.arange(steps) == 2)
    save_lerobot(store, tmp_path / "set", fps=10, task="go home")
    root = tmp_path / "set"
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 10)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 8, 1)
    assert info["splits"] == {"train": "0:3"}
    assert root / info["data_path"].format(chunk_index=0, file_index=0) == root / DATA
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": None}
    assert info["features"]["next.done"] == {"dtype": "bool", "shape": [1], "names": None}
    frames = pq.read_table(root / DATA)
    assert frames.column_names == list(info["features"])
    assert frames.schema.field("action").type == pa.list_(pa.float32(), 3)
    assert frames["frame_index"].to_pylist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert frames["episode_index"].to_pylist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert frames["index"].to_pylist() == list(range(8))
    assert frames["timestamp"].to_pylist() == pytest.approx([0, 0.1, 0.2, 0, 0, 0.1, 0.2, 0.3])
    assert frames["next.done"].to_pylist() == [False, False, True, True, False, False, False, True]
    assert frames["next.success"].to_pylist() == [False, False, True, False, False, False, True, False]
    episodes = pq.read_table(root / EPISODES)
    assert episodes["length"].to_pylist() == [3, 1, 4]
    assert episodes["dataset_from_index"].to_pylist() == [0, 3, 4]
    assert episodes["dataset_to_index"].to_pylist() == [3, 4, 8]
    assert episodes["tasks"].to_pylist() == [["go home"]] * 3
    assert episodes["data/file_index"].to_pylist() == episodes["meta/episodes/chunk_index"].to_pylist() == [0, 0, 0]
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert (list(tasks.index), tasks["task_index"].tolist()) == (["go home"], [0])

    action = store.action.double()
    stats = json.loads((root / "meta/stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    assert stats["action"]["mean"] == pytest.approx(action.mean(0).tolist())
    assert stats["action"]["std"] == pytest.approx(action.std(0, correction=0).tolist())
    assert (stats["action"]["count"], stats["index"]["max"], stats["next.done"]["mean"]) == ([8], [7], [3 / 8])
    assert stats["action"]["q50"] == pytest.approx(action.quantile(0.5, dim=0).tolist())
    assert episodes["stats/action/min"].to_pylist()[2] == pytest.approx(action[4:].amin(0).tolist())
    assert episodes["stats/action/count"].to_pylist() == [[3], [1], [4]]


def test_a_dataset_from_elsewhere(tmp_path):
    """Two files, out of order, no rewards and no ends, nothing of our own."""
    root = tmp_path / "set"
    for file, rows in ((1, [3, 2]), (0, [0, 1])):
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {
            "observation.state": [[float(row), 0.5] for row in rows],
            "action": [[row / 10] for row in rows],
            "episode_index": [row // 3 for row in rows],
            "index": rows,
        }
        pq.write_table(pa.table(table), path)
    (root / EPISODES).parent.mkdir(parents=True)
    pq.write_table(pa.table({"episode_index": [0, 1], "length": [3, 1]}), root / EPISODES)
    features = {"observation.state": [2], "action": [1], "episode_index": [1], "index": [1]}
    info = {
        "codebase_version": "v3.0",
        "fps": 30,
        "robot_type": "arm",
        "total_frames": 4,
        "features": {name: {"dtype": "float32", "shape": shape} for name, shape in features.items()},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    store = load_lerobot(root)
    assert store.length.tolist() == [3, 1]
    assert isinstance(store.observation, torch.Tensor)
    assert store.observation[:, 0].tolist() == [0, 1, 2, 2, 3, 3]
    assert store.action.flatten().tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert (store.action.shape, store.action.dtype) == ((4, 1), torch.float32)
    assert store.reward.tolist() == [0] * 4
    assert not store.terminated.any()
    assert store.truncated.tolist() == [False, False, True, True]
    assert store.info == {"fps": 30, "robot_type": "arm"}

    def changed(**changes):
        (root / "meta/info.json").write_text(json.dumps(info | changes))

    changed(codebase_version="v2.1")
    with pytest.raises(DatasetError, match=r"codebase_version = 'v2.1'; valid: v3.x"):
        load_lerobot(root)
    changed(total_frames=5)
    with pytest.raises(DatasetError, match="has 4 frames; valid: 5"):
        load_lerobot(root)
    changed(features=info["features"] | {"observation.images.top": {"dtype": "video", "shape": [3, 8, 8]}})
    with pytest.raises(DatasetError, match=r"observation.images.top has dtype 'video'; valid: numbers"):
        load_lerobot(root)
    changed(features={name: each for name, each in info["features"].items() if name != "observation.state"})
    with pytest.raises(DatasetError, match=r"no feature observation.NAME"):
        load_lerobot(root)
    changed(features=info["features"] | {"action": {"dtype": "float32", "shape": [2]}})
    with pytest.raises(DatasetError, match=r"action has 4 entries of float64; valid: numbers of shape \[4, 2\]"):
        load_lerobot(root)
    with pytest.raises(FileNotFoundError):
        load_lerobot(tmp_path / "nowhere")


def test_what_cannot_be_saved(tmp_path):
    store = made(**{"a/b": lambda steps: np.ones(steps, np.float32)})
    with pytest.raises(DatasetError, match=r"valid: names without a /"):
        save_lerobot(store, tmp_path / "set", fps=10)
    with pytest.raises(ValueError, match="fps = 0; valid"):
        save_lerobot(made(), tmp_path / "set", fps=0)
    with pytest.raises(FileExistsError, match="is there already"):
        save_lerobot(made(), tmp_path, fps=10)
    assert not list(tmp_path.iterdir())
