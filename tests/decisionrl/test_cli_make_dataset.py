"""``decisionrl make-dataset``: sets recorded from the command line, and requests that it refuses."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from decisionrl.experience.minari import load_minari

"""Exit status, stdout, stderr."""

WORLD = """
import gymnasium, numpy as np
from gymnasium import spaces

class Push(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    gain = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time, np.float32), self.gain * float(action[0]), False, self.time == 5, {}

class Idle(Push):
    gain = 0.0
"""

TINY = ("hidden=[16]", "batch_size=16", "learning_rate=0.01", "learning_starts=20", "rollout_steps=40")
MORE = ("evaluate_every=60", "reference_episodes=20", "layout=arrow")
SMALL = [word for each in (*TINY, *MORE) for word in ("--set", each)]


@pytest.fixture
def run(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``decisionrl make-dataset`` in a folder with the module ``pushing``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pushing", raising=False)
    (tmp_path / "pushing.py").write_text(WORLD)
    return functools.partial(run, "make-dataset")


def test_sets_are_recorded_told_of_and_summed_up(run: Any) -> None:
    request = ("sac", "--env", "pushing:Push", "--steps", "240", "--seed", "3", "--out", "sets")
    status, out, err = run(*request, *SMALL)
    assert status == 0, err
    assert "60 of 240 steps, 12 episodes: return" in err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [
        f"sets/push-{kind}" for kind in ("replay", "medium-replay", "medium", "expert", "medium-expert")
    ]
    for line in lines:
        store = load_minari(line.split()[0])
        assert (store.info["seed"], store.info["training_steps"]) == (3, 240)
        mean = float(store.returns.mean())
        numbers = r"(\d+) episodes  (\d+) steps  mean return (\S+)  normalized score (\S+)$"
        found = re.search(numbers, line)
        assert found is not None
        assert found.groups() == (
            str(store.num_episodes),
            str(store.num_steps),
            f"{mean:.5g}",
            f"{store.normalized_score(mean):.1f}",
        )

    status, out, err = run(*request, *SMALL)
    assert (status, out) == (2, "")
    assert "sets/push-replay is there already" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sacc", "--env", "pushing:Push"], "unknown maker 'sacc'; did you mean 'sac'?"),
        (["sac"], "Missing option '--env'"),
        (["sac", "--env", "Hoper-v5"], "env = 'Hoper-v5'"),
        (["sac", "--env", "pushing:Pull"], "its environments: Push, Idle"),
        (
            ["sac", "--env", "pushing:Push", "--set", "bach_size=3"],
            "unknown argument of maker sac 'bach_size'; did you",
        ),
        (["sac", "--env", "pushing:Push", "--set", "hidden=3"], "hidden = 3 is no argument of maker sac; valid: "),
        (["sac", "--env", "pushing:Push", "--set", "medium=2"], "medium = 2; valid: in (0, 1]"),
        (["sac", "--env", "pushing:Push", "--set", "medium"], "--set 'medium': valid is KEY=VALUE"),
        (["sac", "--env", "pushing:Push", "--steps", "0"], "'--steps': 0 is not in the range x>=1"),
    ],
)
def test_a_wrong_request_says_why_and_leaves_nothing_behind(
    run: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert any(message in line for line in err.splitlines()), err
    assert "Traceback" not in err
    assert not (tmp_path / "data").exists()


def test_an_option_that_the_maker_does_not_take(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stepless(*, env: str, seed: int, out: str) -> list[Path]:
        raise AssertionError("not to be called")

    monkeypatch.setattr("decisionrl.recording.maker", lambda name: stepless)
    status, _, err = run("sac", "--env", "pushing:Push", "--steps", "9")
    assert status == 2
    assert "maker sac takes no --steps" in err


def test_training_in_vain_fails_in_one_line(run: Any) -> None:
    status, out, err = run("sac", "--env", "pushing:Idle", "--steps", "60", *SMALL)
    assert (status, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("decisionrl: pushing:Idle: the best return in 60 steps of SAC is 0")
    assert "Traceback" not in err


def test_learning_histories_are_summed_up(run: Any) -> None:
    request = ("histories", "--env", "darkroom", "--out", "sets", "--set", "streams=2", "--set", "steps=40")
    status, out, err = run(*request, "--set", 'env_options={"size": 5, "horizon": 10}')
    assert status == 0, err
    (line,) = out.splitlines()
    assert line.startswith(
        f"{Path('sets/darkroom-ppo-train-seed0')}  22 tasks  2 histories each, of 4 episodes  mean return "
    )
    status, out, err = run("histories", "--env", "darkrom", "--out", "sets")
    assert (status, out) == (2, "")
    assert "did you mean 'darkroom'" in err
