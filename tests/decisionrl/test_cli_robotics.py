"""The command line on demonstrations: train, cut and go on, measure the average, and what cannot be asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from decisionrl.checkpoint import load_newest
from decisionrl.composition import AveragedLearner
from decisionrl.experience.d4rl import save_d4rl
from decisionrl.experience.data import open_data
from decisionrl.experience.minari import save_minari
from decisionrl.experience.store import EpisodeStore
from decisionrl.run import CHECKPOINTS

OPTIONS = ("observations=3", "future=3", "batch=4", "warmup=2", "max_steps=8")
SMALL = [word for option in OPTIONS for word in ("--set", option)]


def test_a_run_tells_its_success_rate(run: Any) -> None:
    status, out, err = run("train", "ptp", *SMALL, "--set", "steps=20", "--checkpoint-every", "10")
    assert status == 0, err
    directory = Path("runs/ptp-return-side-seed0")
    told = json.loads((directory / "evaluation.json").read_text())
    assert f"success rate {told['success_rate']:.5g}  95 % interval" in out
    assert f"normalized score {100 * told['success_rate']:.1f}" in out
    config = json.loads((directory / "config.json").read_text())
    assert (config["env"], config["sizes"], config["steps"], config["observations"]) == (
        "decisionrl/ReturnSide-v0",
        "cpu",
        20,
        3,
    )
    assert "hidden" not in config

    status, final, err = run("evaluate", str(directory), "--episodes", "20", "--json")
    assert status == 0, err
    assert json.loads(final)["episodes"] == 20
    assert run("evaluate", str(directory), "--episodes", "4")[1].startswith("success rate")
    (directory / "final.safetensors").unlink()  # the weights that acted are in the checkpoint too
    assert run("evaluate", str(directory), "--episodes", "20", "--json")[1] == final
    state = load_newest(directory / CHECKPOINTS)
    assert state is not None
    trained = state["learner"]["learner"]["policy"]
    assert any(not torch.equal(value, trained[name]) for name, value in state["learner"]["policy"].items())


@pytest.mark.parametrize("killed_at", [2, 9])
def test_a_run_goes_on_where_it_was(run: Any, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    arguments = ["--data", "lab/count-visits", "--steps", "12", *SMALL, "--set", "action_steps=2"]
    arguments += ["--set", "evaluation=false", "--checkpoint-every", "1"]
    assert run("train", "diffusion_policy", *arguments, "--out", "whole")[0] == 0
    update, updates = AveragedLearner.update, 0

    def killed(self: AveragedLearner, batch: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == killed_at:
            raise ConnectionAbortedError
        return update(self, batch)

    monkeypatch.setattr(AveragedLearner, "update", killed)
    with pytest.raises(ConnectionAbortedError):
        run("train", "diffusion_policy", *arguments, "--out", "cut")
    assert run("train", "diffusion_policy", "--resume", "cut")[0] == 0
    assert Path("cut/final.safetensors").read_bytes() == Path("whole/final.safetensors").read_bytes()


def test_demonstrations_that_are_made_here_are_learned_from(run: Any) -> None:
    status, out, err = run(
        "make-dataset", "demonstrations", "--env", "decisionrl/CountVisits-v0", "--set", "episodes=8"
    )
    assert status == 0, err
    directory = out.split()[0]
    status, out, err = run("train", "ptp", "--data", directory, "--steps", "4", *SMALL)
    assert status == 0, err
    assert "success rate" in out


# ------------------------------------------------------------------------------------------ what cannot be used


def demonstrations(path: str, **changes: Any) -> None:
    """The lab's demonstrations, some of whose fields are others, in a flat file."""
    save_d4rl(dataclasses.replace(open_data("lab/return-side"), **changes), path)


def still(path: str) -> None:
    """Somebody who moves along one axis only."""
    action = open_data("lab/return-side").action.clone()
    action[:, 1] = 0.0
    demonstrations(path, action=action)


def unknown_position(directory: str) -> None:
    """A dataset in which somebody lost sight of the point in the fourth step of the third episode."""
    episodes = open_data("lab/return-side")
    assert isinstance(episodes.observation, torch.Tensor)
    written = save_minari(episodes, directory)
    import h5py

    with h5py.File(written / "data" / "main_data.hdf5", "r+") as file:
        file["episode_2"]["observations"][3, 0] = float("nan")


def two_views(directory: str) -> None:
    """Demonstrations of which two things were seen."""
    view = spaces.Box(-1, 1, (2,))
    steps = 6
    ends = torch.tensor([False, False, True] * 2)
    episodes = EpisodeStore(
        observation={"wrist": torch.zeros(steps + 2, 2), "scene": torch.zeros(steps + 2, 2)},
        action=torch.linspace(-1, 1, 2 * steps).view(steps, 2),
        reward=torch.zeros(steps),
        terminated=ends,
        truncated=torch.zeros_like(ends),
        length=torch.tensor([3, 3]),
        observation_space=spaces.Dict({"wrist": view, "scene": view}),
        action_space=view,
    )
    save_minari(episodes, directory)
    Path("one_camera.py").write_text(
        "import gymnasium\n"
        "import numpy as np\n"
        "from gymnasium import spaces\n\n\n"
        "class OneCamera(gymnasium.Env):\n"
        "    observation_space = spaces.Dict({'scene': spaces.Box(-1, 1, (2,)), 'gripper': spaces.Box(-1, 1, (1,))})\n"
        "    action_space = spaces.Box(-1, 1, (2,))\n\n"
        "    def reset(self, **how):\n"
        "        return {'scene': np.zeros(2, np.float32), 'gripper': np.zeros(1, np.float32)}, {}\n"
    )


WRONG: dict[str, tuple[Any, list[str], list[str]]] = {
    "no such data": (None, ["ptp", "--data", "lab/return-sid"], ["did you mean 'lab/return-side'", "lab/count-visits"]),
    "actions that never change": (
        lambda: still("still.npz"),
        ["ptp", "--data", "still.npz"],
        ["action of still.npz never changes in dimensions [1]", "constant_actions = 'center'"],
    ),
    "not a number": (
        lambda: unknown_position("blind"),
        ["ptp", "--data", "blind"],
        ["observation is not finite in episode 2, step 3", "valid: finite numbers"],
    ),
    "other observations": (
        lambda: two_views("views"),
        ["ptp", "--data", "views", "--set", "sizes=cpu", "--env", "one_camera:OneCamera"],
        [
            "observation_space of views has the keys scene, wrist; valid: gripper, scene",
            "OneCamera",
            "missing: gripper; too many: wrist",
        ],
    ),
    "discrete actions": (
        None,
        ["ptp", "--data", "lab/gridworld"],
        ["action_space of lab/gridworld is Discrete(4)", "valid for diffusion: a Box of floats"],
    ),
    "an environment of the data that is not there": (
        lambda: demonstrations("away.npz", info={"env": "Nowhere-v3"}),
        ["ptp", "--data", "away.npz", "--set", "sizes=cpu"],
        ["away.npz is from an environment that cannot be made here", "Nowhere", "evaluation = false"],
    ),
    "no such mode": (
        None,
        ["ptp", "--set", "past_tokens=predicted"],
        ["past_tokens = 'predicted'", "valid: predict, unsupervised, absent"],
    ),
    "no such network": (None, ["ptp", "--set", "network=mlp"], ["network = 'mlp'", "valid: transformer, unet"]),
    "no such sizes": (None, ["ptp", "--set", "sizes=small"], ["sizes = 'small'", "valid: paper, medium, cpu"]),
    "no such remedy": (
        None,
        ["ptp", "--set", "constant_actions=drop"],
        ["constant_actions = 'drop'", "valid: error, center"],
    ),
    "candidates that nothing tells apart": (
        None,
        ["ptp", "--set", "candidates=3", "--set", "past_tokens=absent"],
        ["candidates = 3", "past_tokens = 'predict'"],
    ),
    "more actions than are predicted": (
        None,
        ["diffusion_policy", "--set", "action_steps=5"],
        ["action_steps = 5", "valid: 1 to future = 4"],
    ),
    "more past than there is": (None, ["ptp", "--set", "past_steps=16"], ["past_steps = 16", "1 to 7"]),
    "no observation": (None, ["ptp", "--set", "observations=0"], ["observations = 0", "valid: at least 1"]),
    "tokens that cannot be halved": (
        None,
        ["diffusion_policy", "--set", "network=unet"],
        ["observations = 2, future = 4: 5 action tokens", "observations - 1 + future is a multiple of 2"],
    ),
    "preferences among demonstrations": (
        None,
        ["cpl", "--data", "lab/return-side"],
        ["lab/return-side has no segments", "valid: a lab with teachers"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_says_why_and_leaves_nothing_behind(run: Any, wrong: str) -> None:
    prepare, arguments, words = WRONG[wrong]
    if prepare is not None:
        prepare()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, out, err = run("train", *arguments)
    assert (status, out) == (2, ""), err
    for each in words:
        assert each in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_arguments_of_another_kind(run: Any) -> None:
    for assignment, message in (
        ("network=3", "network = 3 is no argument of recipe ptp; valid: transformer, unet"),
        ("past_steps=all", "past_steps = 'all' is no argument of recipe ptp; valid: int or none"),
        ("hidden=[8]", "unknown argument of recipe ptp 'hidden'"),
        ("past_token=absent", "unknown argument of recipe ptp 'past_token'; did you mean 'past_tokens'?"),
    ):
        status, out, err = run("train", "ptp", "--set", assignment)
        assert (status, out) == (2, "")
        assert message in err


def test_still_actions_can_be_asked_for(run: Any) -> None:
    still("still.npz")
    arguments = ["--data", "still.npz", "--steps", "2", *SMALL, "--set", "sizes=cpu"]
    assert run("train", "ptp", *arguments, "--set", "constant_actions=center")[0] == 0
