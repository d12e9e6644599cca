"""The command line on environments: train, measure, film, resume, and what it says of environments that break."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from decisionrl import checkpoint

SMALL = ("--set", "horizon=16", "--set", "num_envs=2", "--set", "epochs=1")

ENVIRONMENTS = """
import gymnasium
import numpy as np


class Fine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    taken = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.time += 1
        type(self).taken += 1
        return np.zeros(3, np.float32), float(action), False, self.time == 20, {}


class NanReward(Fine):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float("nan") if self.taken > 700 else reward, terminated, truncated, info


class WrongShape(Fine):
    def step(self, action):
        return np.zeros(4, np.float32), *super().step(action)[1:]


class Raises(Fine):
    def step(self, action):
        raise KeyError("wheel")
"""


@pytest.fixture
def run(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command in a folder with a module of environments."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "worlds_of_mine", raising=False)
    (tmp_path / "worlds_of_mine.py").write_text(ENVIRONMENTS)
    return run


def test_a_run_on_an_environment_of_ones_own(run: Any) -> None:
    status, out, err = run("train", "ppo", "--env", "worlds_of_mine:Fine", "--steps", "640", *SMALL, "--out", "mine")
    assert status == 0, err
    assert "mean return" in out
    config = json.loads(Path("mine/config.json").read_text())
    assert (config["env"], config["horizon"], config["num_envs"]) == ("worlds_of_mine:Fine", 16, 2)
    assert Path("mine/learning_curve.png").stat().st_size > 1000
    measured = json.loads(Path("mine/evaluation.json").read_text())
    assert measured["mean_length"] == 20
    assert 0 <= measured["low"] <= measured["mean_return"] <= measured["high"] <= 20

    status, out, err = run("evaluate", "mine", "--episodes", "3", "--json")
    assert status == 0, err
    assert json.loads(out)["episodes"] == 3


def test_presets_hold_where_nothing_else_is_asked_for(run: Any) -> None:
    assert run("train", "ppo", "--env", "CartPole-v1", "--steps", "300", "--set", "epochs=1", "--out", "cart")[0] == 0
    config = json.loads(Path("cart/config.json").read_text())
    assert (config["horizon"], config["gamma"], config["epochs"]) == (32, 0.98, 1)


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
def test_a_film(run: Any, ending: str) -> None:
    pytest.importorskip("pygame")
    pytest.importorskip("imageio_ffmpeg")
    run("train", "ppo", "--env", "CartPole-v1", "--steps", "64", *SMALL, "--out", "cart")
    status, out, err = run("evaluate", "cart", "--episodes", "2", "--video", f"film{ending}", "--json")
    assert status == 0, err
    assert json.loads(out)["video"] == f"film{ending}"
    assert Path(f"film{ending}").stat().st_size > 1000


def test_films_that_cannot_be_made(run: Any) -> None:
    run("train", "ppo", "--env", "worlds_of_mine:Fine", "--steps", "64", *SMALL, "--out", "mine")
    status, _, err = run("evaluate", "mine", "--episodes", "2", "--video", "film.txt")
    assert status == 2
    assert ".mp4 or .gif" in err
    status, _, err = run("evaluate", "mine", "--episodes", "2", "--video", "film.mp4")
    assert status == 2
    assert "worlds_of_mine:Fine" in err
    assert "rgb_array" in err
    assert not Path("film.mp4").exists()


def test_a_run_that_breaks_keeps_its_last_checkpoint(run: Any) -> None:
    arguments = (
        "--env",
        "worlds_of_mine:NanReward",
        "--steps",
        "2000",
        *SMALL,
        "--checkpoint-every",
        "64",
        "--out",
        "bad",
    )
    status, _, err = run("train", "ppo", *arguments)
    assert status == 1
    assert "worlds_of_mine:NanReward" in err
    assert "reward is nan" in err
    assert "step" in err
    state = checkpoint.load_newest(Path("bad/checkpoints"))
    assert state is not None
    assert 0 < state["step"] <= 700


@pytest.mark.parametrize(
    ("env", "says", "status"),
    [
        ("worlds_of_mine:WrongShape", ["copy 0", "(4,)", "(3,)", "observation"], 1),
        ("worlds_of_mine:Raises", ["copy 0", "KeyError", "wheel"], 1),
        ("worlds_of_mine:Missing", ["no Missing", "Fine"], 2),
        ("no_such_module:Fine", ["no_such_module", "cannot be imported"], 2),
        ("NoSuchEnv-v0", ["NoSuchEnv"], 2),
        ("CartPole-v77", ["v77", "v1"], 2),
        ("Blackjack-v1", ["observation_space", "Tuple", "valid"], 2),
    ],
)
def test_environments_that_cannot_be_used(run: Any, env: str, says: list[str], status: int) -> None:
    code, _, err = run("train", "ppo", "--env", env, "--steps", "64", *SMALL)
    assert code == status
    for words in says:
        assert words in err
    assert "Traceback" not in err


def test_requests_that_do_not_fit(run: Any) -> None:
    for arguments, says in (
        (("--set", "horizn=3"), "horizon"),
        (("--set", "horizon=soon"), "horizon = 'soon'"),
        (("--set", "num_envs=0"), "num_envs = 0"),
        (("--set", "clip=-1"), "low = -1"),
    ):
        status, _, err = run("train", "ppo", "--env", "CartPole-v1", "--steps", "64", *arguments)
        assert status == 2, arguments
        assert says in err
    assert not Path("runs").exists()


def test_a_run_goes_on_where_it_was(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--env", "CartPole-v1", "--steps", "640", *SMALL, "--checkpoint-every", "64")
    assert run("train", "ppo", *arguments, "--out", "whole")[0] == 0
    from decisionrl.minibatches import MinibatchLearner

    update, updates = MinibatchLearner.update, 0

    def killed(self: MinibatchLearner, batch: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == 13:
            raise ConnectionAbortedError
        return update(self, batch)

    monkeypatch.setattr(MinibatchLearner, "update", killed)
    with pytest.raises(ConnectionAbortedError):
        run("train", "ppo", *arguments, "--out", "cut")
    assert run("train", "ppo", "--resume", "cut")[0] == 0
    for name in ("final.safetensors",):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


def test_the_list_says_what_recipes_fit(run: Any) -> None:
    _, out, _ = run("list", "recipes")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "any environment" in lines["ppo"]
    assert "1707.06347" in lines["ppo"]
    assert "inventory" in lines["hdpo"]
