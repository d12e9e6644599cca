"""Push-T: how the block moves, what the score is, and what the scripted pusher makes of it."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from decisionrl.envs.make import make_world
from decisionrl.envs.robotics.pusht import Observed, PushTEnv
from decisionrl.envs.robotics.pusht_expert import (
    BEFORE,
    BLOCK,
    CENTER_OF_MASS,
    CONTACT,
    GOAL,
    INERTIA,
    INWARD,
    PLACES,
    Pose,
    PushTExpert,
    blocked,
    pose_of,
    pushed,
)
from decisionrl.recording.demonstrations import record_demonstrations
from decisionrl.seeding import generator

pytest.importorskip("gym_pusht")

ENV = "decisionrl/PushT-v0"


@pytest.fixture(scope="module")
def env() -> PushTEnv:
    return PushTEnv()


def played(env: PushTEnv, seed: int) -> tuple[list[float], list[float], bool]:
    """Rewards and coverages of an episode of the expert, and whether it succeeded."""
    env.reset(seed=seed)
    expert, rewards, coverages, over = PushTExpert(), [], [], False
    while not over:
        _, reward, terminated, truncated, info = env.step(expert.act(env.state))
        rewards.append(reward)
        coverages.append(info["coverage"])
        over = terminated or truncated
    return rewards, coverages, terminated


def state_with(pose: Pose, agent: complex) -> list[float]:
    """What ``reset_to_state`` wants, which turns the block around its center of mass after placing it."""
    unturned = complex(pose.center) - CENTER_OF_MASS
    return [agent.real, agent.imag, unturned.real, unturned.imag, float(np.angle(pose.turn))]


def test_the_block_is_gym_pushts(env: PushTEnv) -> None:
    env.reset(seed=0)
    block = env._physics.block
    assert complex(*block.center_of_gravity) == CENTER_OF_MASS
    assert block.moment / block.mass == pytest.approx(INERTIA)
    vertices = {complex(*vertex) - CENTER_OF_MASS for shape in block.shapes for vertex in shape.get_vertices()}
    assert vertices == set(BLOCK.tolist())


def test_the_goal_is_gym_pushts(env: PushTEnv) -> None:
    env.reset(options={"reset_to_state": state_with(GOAL, 30 + 30j)})
    pose = pose_of(complex(*env.state[2:4]), env.state[4])
    assert abs(pose.center - GOAL.center) < 1e-9
    _, reward, success, truncated, info = env.step(np.array([30.0, 30.0], np.float32))
    assert (reward, success, truncated, info["success"]) == (1.0, True, False, True)
    assert info["coverage"] == pytest.approx(1)


@pytest.mark.parametrize("contact", [0, 9, 17, 24, 33, -6, -1])
def test_pushes_move_the_block_as_predicted(env: PushTEnv, contact: int) -> None:
    start = pose_of(240 + 200j, 0.7)
    touching = CONTACT[contact] - 15 * INWARD[contact]
    env.reset(options={"reset_to_state": state_with(start, complex(start.at(touching)))})
    for depth in np.linspace(0, 30, 16)[1:]:
        target = start.then(pushed(CONTACT[contact], INWARD[contact], depth)).at(touching)
        env.step(np.array([target.real, target.imag]))
    for _ in range(10):
        env.step(np.array([target.real, target.imag]))
    predicted = start.then(pushed(CONTACT[contact], INWARD[contact], 30.0))
    found = pose_of(complex(*env.state[2:4]), env.state[4])
    assert abs(found.center - start.center) > 12
    assert abs(found.center - predicted.center) < 1
    assert abs(np.angle(found.turn / predicted.turn)) < 0.03


def test_a_push_is_many_small_ones() -> None:
    contact, inward = CONTACT[3], INWARD[3]
    pose = Pose(np.asarray(0j), np.asarray(1 + 0j))
    for _ in range(1000):
        pose = pose.then(pushed(contact, inward, 0.04))
    whole = pushed(contact, inward, 40.0)
    assert abs(pose.center - whole.center) < 1e-9
    assert abs(pose.turn - whole.turn) < 1e-9
    lever = contact.real * inward.imag - contact.imag * inward.real
    step = pushed(contact, inward, 1e-6)
    assert step.center / 1e-6 == pytest.approx(inward / (1 + lever**2 / INERTIA), abs=1e-6)
    assert np.angle(step.turn) / 1e-6 == pytest.approx(lever / (INERTIA + lever**2))


def test_a_push_through_the_center_of_mass_does_not_turn() -> None:
    motion = pushed(np.asarray(-45j), np.asarray(1j), 20.0)
    assert motion.center == 20j
    assert motion.turn == 1


def test_what_is_in_the_way() -> None:
    """Against points along the line that are too close to the bar or the stem, in a square sense."""
    random = np.random.default_rng(0)
    ends = random.uniform(-150, 150, (2, 300)) + 1j * random.uniform(-150, 150, (2, 300))
    points = ends[0] + np.linspace(0, 1, 2001)[:, None] * (ends[1] - ends[0]) + CENTER_OF_MASS
    bar = (abs(points.real) < 60 + 23) & (abs(points.imag - 15) < 15 + 23)
    stem = (abs(points.real) < 15 + 23) & (abs(points.imag - 75) < 45 + 23)
    expected = (bar | stem).any(0)
    assert 50 < expected.sum() < 250
    np.testing.assert_array_equal(blocked(ends[0], ends[1]), expected)


def test_places_are_free_and_contacts_are_on_the_outline() -> None:
    assert not blocked(PLACES, PLACES).any()
    np.testing.assert_allclose(BEFORE, CONTACT - 23 * INWARD)
    edges = np.stack([BLOCK, np.roll(BLOCK, -1)], 1)
    for contact, inward in zip(CONTACT, INWARD, strict=True):
        along = [abs(contact - a) + abs(contact - b) - abs(b - a) for a, b in edges]
        a, b = edges[int(np.argmin(along))]
        assert min(along) < 1e-9
        assert ((b - a) * np.conj(inward)).real == 0  # the normal is one
        assert not blocked(contact - 23 * inward, contact - 40 * inward)  # and it points inwards


def test_the_expert_covers_the_outline(env: PushTEnv) -> None:
    for seed in range(10):
        rewards, coverages, success = played(env, seed)
        assert success
        assert max(coverages) > 0.95
        assert sum(rewards) == pytest.approx(1)
        assert len(rewards) < 200


def test_rewards_sum_up_to_the_best_score(env: PushTEnv) -> None:
    env.reset(options={"reset_to_state": state_with(Pose(GOAL.center + 20, GOAL.turn), 60 + 256j)})
    rewards, coverages = [], []
    for _ in range(40):  # through the block and on
        _, reward, terminated, truncated, info = env.step(np.array([500.0, 256.0], np.float32))
        rewards.append(reward)
        coverages.append(info["coverage"])
        assert not terminated
        assert not truncated
    assert min(rewards) == 0
    assert coverages[-1] < max(coverages)
    assert sum(rewards) == pytest.approx(max(coverages) / 0.95)


def test_an_episode_depends_on_its_seed_alone(env: PushTEnv) -> None:
    fresh = PushTEnv()
    played(env, 3)
    env.reset(seed=5)
    fresh.reset(seed=5)
    expert, over = PushTExpert(), False
    while not over:
        np.testing.assert_array_equal(env.state, fresh.state)
        action = expert.act(env.state)
        _, reward, over, _, info = env.step(action)
        _, same_reward, same_over, _, same_info = fresh.step(action)
        assert over == same_over
        # the last digits of shapely's areas are not the same every time
        assert (reward, info["coverage"]) == pytest.approx((same_reward, same_info["coverage"]), abs=1e-12)


def test_episodes_are_truncated() -> None:
    env = PushTEnv(max_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.array([0.0, 0.0], np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    "state",
    [
        pytest.param([240, 230, 240, 220, 0.3], id="the agent on the block"),
        pytest.param([300, 300, 70, 256, 1.6], id="the block in a wall"),
        pytest.param([20, 20, 60, 60, 2.4], id="the agent between the block and a corner"),
        pytest.param([450, 450, 400, 400, -0.8], id="the block at the end of its range"),
    ],
)
def test_the_expert_starts_anywhere(env: PushTEnv, state: list[float]) -> None:
    env.reset(options={"reset_to_state": state})
    expert, over = PushTExpert(), False
    for _ in range(300):
        _, _, over, _, _ = env.step(expert.act(env.state))
        if over:
            break
    assert over


def test_the_expert_stays_where_no_push_is_possible() -> None:
    far = np.array([20.0, 30.0, 2000.0, 2000.0, 0.0])
    expert = PushTExpert()
    for _ in range(9):
        np.testing.assert_array_equal(expert.act(far), np.array([20, 30], np.float32))


@pytest.mark.parametrize("obs_type", ["state", "environment_state_agent_pos", "pixels_agent_pos", "pixels"])
def test_it_is_a_gymnasium_environment(obs_type: Observed) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*not having a spec.*|.*Box action space.*|.*Box observation space.*"
        )
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        check_env(PushTEnv(obs_type=obs_type), skip_render_check=True)


def test_films() -> None:
    env = PushTEnv(render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (680, 680, 3)


def test_it_is_a_world() -> None:
    world = make_world(ENV, num_envs=2, options={"max_steps": 4})
    observation = world.reset([0, 1])
    assert isinstance(observation, torch.Tensor)
    assert observation.shape == (2, 5)
    for _ in range(4):
        step = world.step(torch.zeros(2, 2))
    assert step.truncated.all()
    assert step.over == [0, 1]


def test_demonstrations() -> None:
    recorded = record_demonstrations(env=ENV, episodes=3, seed=1)
    again = record_demonstrations(env=ENV, episodes=3, seed=1)
    torch.testing.assert_close(recorded.observation, again.observation, rtol=0, atol=0)
    assert recorded.num_episodes == 3
    assert recorded.info["success_rate"] == 1
    torch.testing.assert_close(recorded.returns, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    last = recorded.length.cumsum(0) - 1
    assert recorded.extras["success"].nonzero().flatten().tolist() == last.tolist()
    assert recorded.terminated.nonzero().flatten().tolist() == last.tolist()
    assert recorded.action.dtype == torch.float32
    assert recorded.action.min() >= 0
    assert recorded.action.max() <= 512

    replayed = PushTEnv()
    starts = torch.randint(2**31, (3,), generator=generator(1, "demonstrations/starts"))
    seen, _ = replayed.reset(seed=int(starts[0]))
    for step in range(int(recorded.length[0])):
        np.testing.assert_array_equal(recorded.observation[step].numpy(), seen.astype(np.float32))
        seen, reward, *_ = replayed.step(recorded.action[step].numpy())
        assert reward == pytest.approx(float(recorded.reward[step]))


def test_demonstrations_in_pixels() -> None:
    recorded = record_demonstrations(env=ENV, episodes=1, env_options={"obs_type": "pixels_agent_pos"}, seed=3)
    assert isinstance(recorded.observation, dict)
    frames = int(recorded.length[0]) + 1
    assert recorded.observation["pixels"].shape == (frames, 96, 96, 3)
    assert recorded.observation["pixels"].dtype == torch.uint8
    assert recorded.observation["agent_pos"].shape == (frames, 2)
    assert recorded.terminated.tolist() == [False] * (frames - 2) + [True]
    with pytest.raises(ValueError, match="the expert succeeded in 0 of 11 episodes"):
        record_demonstrations(env=ENV, episodes=1, env_options={"max_steps": 6})


def test_what_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="obs_type = 'keypoints'; valid: state, "):
        PushTEnv(obs_type="keypoints")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_steps = 0; valid: "):
        PushTEnv(max_steps=0)
    with pytest.raises(ValueError, match="episodes = 0; valid: "):
        record_demonstrations(env=ENV, episodes=0)
    for state in (np.zeros(4), np.full(5, np.nan)):
        with pytest.raises(ValueError, match="valid: 5 finite numbers"):
            PushTExpert().act(state)


def test_a_missing_gym_pusht_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[pusht\]'"):
        PushTEnv()


def test_the_expert_needs_no_gym_pusht() -> None:
    script = "import sys, decisionrl.envs.robotics.pusht_expert; sys.exit('gym_pusht' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
