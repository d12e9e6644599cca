"""Tasks that need memory: who remembers solves them, who forgets cannot, and a copy's episode is its own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from decisionrl.envs.make import make_world
from decisionrl.envs.robotics.memory import MemoryEnv, MemoryVectorEnv, MemoryWorld, pictured, rendered
from decisionrl.envs.robotics.memory_tasks import ARENA, CountVisits, ReturnSide, WayPoints

RETURN, COUNT = "decisionrl/ReturnSide-v0", "decisionrl/CountVisits-v0"

SETTINGS = [
    ("return_side", {}),
    ("return_side", {"step_length": 0.15}),
    ("return_side", {"delay": 4}),
    ("return_side", {"noise": 0.0}),
    ("count_visits", {}),
    ("count_visits", {"step_length": 0.15}),
    ("count_visits", {"visits": 1}),
    ("count_visits", {"visits": 4, "step_length": 0.15}),
]


def made(task: str, copies: int = 1000, **options: Any) -> MemoryWorld:
    world = MemoryWorld(task, num_envs=copies, **options)
    world.reset(range(copies))
    return world


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def played(world: MemoryWorld, by: WayPoints) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns, and positions [steps + 1, copies, 2]."""
    total, running = torch.zeros(world.num_envs), torch.ones(world.num_envs, dtype=torch.bool)
    positions = [world.position]
    for _ in range(world.max_steps):
        step = world.step(by.act(world.position))
        total += torch.where(running, step.reward, 0)
        running &= ~(step.terminated | step.truncated)
        positions.append(world.position)
    assert not running.any()
    return total, torch.stack(positions)


def random_actions(steps: int, copies: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.rand(steps, copies, 2, generator=rng(seed)) - 1.5  # some lie outside the box


@pytest.mark.parametrize(("task", "options"), SETTINGS)
def test_experts_succeed(task, options):
    world = made(task, **options)
    returns, _ = played(world, world.task.expert(world.position, rng()))
    assert returns.mean() >= 0.99


def test_whoever_forgets_the_side_succeeds_half_of_the_time():
    world = made("return_side", 10_000)
    guess = torch.randint(2, (10_000,), generator=rng(1)) * 2.0 - 1
    assert isinstance(world.task, ReturnSide)
    returns, _ = played(world, world.task.way_points(guess, world.position, rng()))
    assert returns.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("visits", "bound"), [(2, 1 / 4), (3, 4 / 27)])
def test_whoever_forgets_the_count_succeeds_as_often_as_the_best_coin_lets_him(visits, bound):
    world = made("count_visits", 10_000, visits=visits, max_steps=200)
    assert isinstance(world.task, CountVisits)
    rates = []
    for again in (0.3, (visits - 1) / visits, 0.9):
        count = torch.empty(10_000).geometric_(1 - again, generator=rng(2)).long().clamp(max=visits + 1)
        world.reset(range(10_000))
        returns, _ = played(world, world.task.way_points(count, world.position, rng()))
        rates.append(float(returns.mean()))
        assert rates[-1] == pytest.approx(again ** (visits - 1) * (1 - again), abs=0.02)
    assert rates[1] == pytest.approx(bound, abs=0.02)
    assert max(rates) == rates[1]


def test_nothing_from_the_junction_on_tells_the_side():
    """The window of 5 with which the expert decides where to go from the junction; one more tells all."""
    world = made("return_side", 20_000)
    side = world.hidden
    way = torch.tensor([[0.0, 0.0], [0.0, 0.55], [0.0, 0.0], [0.75, 0.0]]).repeat(20_000, 1, 1)
    way[:, -1, 0] *= side
    _, positions = played(world, WayPoints(way, torch.zeros(20_000, 4, dtype=torch.int64), step_length=0.3))
    decision = 7
    assert (torch.linalg.vector_norm(positions[decision], dim=1) < 0.06).float().mean() > 0.999
    window = positions[decision - 4 : decision + 1].permute(1, 0, 2).flatten(1)
    standard = (window - window.mean(0)) / window.std(0)
    fit = torch.linalg.lstsq(standard[:10_000], side[:10_000, None]).solution
    right = ((standard[10_000:] @ fit)[:, 0].sign() == side[10_000:]).float().mean()
    assert right == pytest.approx(0.5, abs=0.02)
    assert (positions[decision - 5][:, 0].sign() == side).float().mean() > 0.999


def test_the_windows_after_the_first_and_the_second_visit_are_alike():
    world = made("count_visits", 5000)
    way = torch.tensor([[0.0, 0.0], [-0.45, 0.0], [0.0, 0.0], [-0.45, 0.0], [0.0, 0.0], [0.6, 0.0]]).repeat(5000, 1, 1)
    _, positions = played(world, WayPoints(way, torch.zeros(5000, 6, dtype=torch.int64), step_length=0.3))
    first, second = positions[2:7], positions[6:11]  # from home to home, a trip being four steps
    assert (first.mean(1) - second.mean(1)).abs().max() < 0.002
    assert (first.std(1) - second.std(1)).abs().max() < 0.002
    before = positions[1].mean(0), positions[5].mean(0)
    assert (before[0] - before[1]).abs().max() > 0.1


def test_the_two_sides_mirror_each_other():
    world = made("return_side", 2000, noise=0.0)
    side = world.hidden
    twin = made("return_side", 2000, noise=0.0)
    twin._position = world.position * torch.tensor([-1.0, 1.0])
    twin._progress = twin._progress[0] * -1, twin._progress[1]
    returns, positions = played(world, world.task.expert(world.position, rng()))
    mirrored_returns, mirrored = played(twin, twin.task.expert(twin.position, rng()))
    torch.testing.assert_close(mirrored, positions * torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-6)
    assert torch.equal(returns, mirrored_returns)
    assert 0.45 < (side > 0).float().mean() < 0.55
    assert torch.equal(twin.hidden, -side)


def test_starts_and_noise_have_the_stated_distribution():
    world = made("return_side", 20_000, noise=0.02)
    offset = world.position - torch.stack([0.75 * world.hidden, torch.zeros(20_000)], 1)
    assert offset.abs().max() <= 0.08 + 1e-6
    assert offset.std(0) == pytest.approx(np.full(2, 0.08 / 3**0.5), rel=0.03)
    before = world.position
    world.step(torch.zeros(20_000, 2))
    first = world.position - before
    before = world.position
    world.step(torch.zeros(20_000, 2))
    second = world.position - before
    for noise in (first, second):
        assert noise.mean(0).abs().max() < 0.001
        assert noise.std(0) == pytest.approx(np.full(2, 0.02), rel=0.03)
        kurtosis = ((noise / noise.std(0)) ** 4).mean(0)
        assert kurtosis == pytest.approx(np.full(2, 3.0), abs=0.2)
    together = torch.cat([offset, first, second, world.hidden[:, None]], 1)
    correlation = torch.corrcoef(together.T) - torch.eye(7)
    assert correlation.abs().max() < 0.03


@pytest.mark.parametrize("task", ["return_side", "count_visits"])
def test_an_episode_does_not_depend_on_the_other_copies(task):
    actions = random_actions(20, 37)
    many = MemoryWorld(task, num_envs=37, oracle=True)
    seen = [many.reset(range(100, 137))]
    steps = [many.step(each) for each in actions]
    seen += [step.observation for step in steps]
    for i in (0, 17, 36):
        one = MemoryWorld(task, num_envs=1, oracle=True)
        assert torch.equal(one.reset([100 + i])[0], seen[0][i])
        for t, step in enumerate(steps):
            alone = one.step(actions[t, [i]])
            assert torch.equal(alone.observation[0], seen[t + 1][i])
            assert torch.equal(alone.reward[0], step.reward[i])
            assert torch.equal(alone.terminated[0], step.terminated[i])
    assert torch.equal(MemoryWorld(task, num_envs=37, oracle=True).reset(range(100, 137)), seen[0])
    assert not torch.equal(many.reset(range(137, 174)), seen[0])


@pytest.mark.parametrize(
    ("task", "options"), [*SETTINGS, ("return_side", {"oracle": True}), ("return_side", {"pixels": True})]
)
def test_the_single_environment_plays_the_same_episodes(task, options):
    world = MemoryWorld(task, num_envs=5, **options)
    current = world.reset(range(5))
    env = MemoryEnv(task, **options)
    rows = [env.reset(seed=i)[0] for i in range(5)]
    assert np.array_equal(current.numpy(), np.stack(rows))
    by = world.task.expert(world.position, rng())
    actions, steps = [], []
    for _ in range(world.max_steps):
        actions.append(by.act(world.position))
        steps.append(world.step(actions[-1]))
    for i in range(5):
        env.reset(seed=i)
        for action, step in zip(actions, steps, strict=True):
            observation, reward, terminated, truncated, info = env.step(action[i].numpy())
            assert np.array_equal(observation, step.observation[i].numpy())
            assert (reward, terminated, truncated) == (step.reward[i], step.terminated[i], step.truncated[i])
            assert info == {"success": reward == 1}
            if terminated or truncated:
                break
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(actions[0][i].numpy())


def test_some_copies_begin_anew_while_the_others_go_on():
    actions = random_actions(12, 4)
    world, other = MemoryWorld("return_side", num_envs=4), MemoryWorld("return_side", num_envs=4)
    world.reset([1, 2, 3, 4])
    other.reset([1, 8, 3, 9])
    for action in actions[:5]:
        world.step(action)
    restarted = world.restart([3, 1], [9, 8])
    assert torch.equal(restarted[[1, 3]], other.position[[1, 3]])
    for action in actions[5:]:
        step, wanted = world.step(action), other.step(action)
        assert torch.equal(step.observation[[1, 3]], wanted.observation[[1, 3]])
    alone = MemoryWorld("return_side", num_envs=4)
    alone.reset([1, 2, 3, 4])
    for action in actions:
        last = alone.step(action)
    assert torch.equal(last.observation[[0, 2]], step.observation[[0, 2]])


@pytest.mark.parametrize("task", ["return_side", "count_visits"])
def test_a_saved_world_goes_on_as_it_was(task):
    actions = random_actions(10, 6)
    world = made(task, 6, oracle=True)
    for action in actions[:4]:
        world.step(action)
    state = world.state_dict()
    wanted = [world.step(action) for action in actions[4:]]
    other = made(task, 6, oracle=True)
    other.reset(range(50, 56))
    other.load_state_dict(state)
    for action, step in zip(actions[4:], wanted, strict=True):
        for got, want in zip(other.step(action), step, strict=True):
            assert torch.equal(got, want) if isinstance(got, torch.Tensor) else got == want
    with pytest.raises(ValueError, match="num_envs = 3; the saved world has 6"):
        made(task, 3).load_state_dict(state)


def test_the_oracle_sees_the_hidden_variable():
    world = made("return_side", 50, oracle=True)
    assert world.observation_space.shape == (3,)
    assert torch.equal(world.observation[:, 2], world.observation[:, 0].sign())
    counting = made("count_visits", 50, oracle=True)
    assert counting.observation_space.high[2] == 3
    assert (counting.observation[:, 2] == 0).all()
    by = counting.task.expert(counting.position, rng())
    counts = [counting.observation[:, 2]]
    for _ in range(8):
        away = (counting.position - torch.tensor([-0.45, 0.0])).norm(dim=1) >= 0.15
        counts.append(counting.step(by.act(counting.position)).observation[:, 2])
        came = away & ((counting.position - torch.tensor([-0.45, 0.0])).norm(dim=1) < 0.15)
        assert torch.equal(counts[-1] - counts[-2], came.float())
    assert counts[-1].max() == 2


def test_what_is_failure():
    world = made("count_visits", 1, noise=0.0, visits=1)
    for action in ([0, 1], [0, 0.5], [1, 0], [1, 0]):
        step = world.step(torch.tensor([action]))
    assert (step.reward.item(), step.terminated.item(), step.over) == (0, True, [0])
    twice = made("count_visits", 1, noise=0.0, visits=1)
    steps = []
    for action in ([0, 1], [0, 0.5], [-1, 0], [-0.5, 0], [1, 0], [0.5, 0], [-1, 0], [-0.5, 0]):
        steps.append(twice.step(torch.tensor([action])))
    assert [step.terminated.item() for step in steps].index(True) >= 6
    wrong = made("return_side", 500, noise=0.0)
    assert isinstance(wrong.task, ReturnSide)
    assert not played(wrong, wrong.task.way_points(-wrong.hidden, wrong.position, rng()))[0].any()


def test_the_hub_counts_after_the_delay():
    world = made("return_side", 200, delay=3)
    impatient = ReturnSide().expert(world.position, rng())
    patient = world.task.expert(world.position, rng())
    assert played(world, impatient)[0].mean() < 0.5
    world.reset(range(200))
    assert played(world, patient)[0].mean() == 1


@pytest.mark.parametrize(("task", "options", "steps"), [("return_side", {}, 22), ("count_visits", {"visits": 3}, 28)])
def test_episodes_are_truncated(task, options, steps):
    world = made(task, 3, **options)
    for t in range(steps):
        step = world.step(torch.zeros(3, 2), idle=[1])
        assert step.truncated.tolist() == [t == steps - 1] * 3
    assert step.over == [0, 2]
    assert not step.terminated.any()


def test_truncation_at_a_number_of_steps_of_ones_own():
    world = make_world(RETURN, num_envs=2, max_steps=3)
    world.reset([0, 1])
    flags = [world.step(torch.zeros(2, 2)).truncated.tolist() for _ in range(3)]
    assert flags == [[False, False], [False, False], [True, True]]


def test_the_blob_is_brightest_where_the_point_is():
    scale = 31 / (2 * ARENA)
    column, row = torch.tensor([0, 5, 16, 31]), torch.tensor([31, 20, 3, 0])
    position = torch.stack([column / scale - ARENA, ARENA - row / scale], 1)
    image = rendered(position)
    assert (image.shape, image.dtype) == ((4, 1, 32, 32), torch.uint8)
    for each, i, j in zip(image[:, 0], row.tolist(), column.tolist(), strict=True):
        assert each[i, j] == 255
        assert (each == 255).sum() == 1
    # by hand, away from the center of a pixel
    x, y = 0.31, -0.47
    image = rendered(torch.tensor([[x, y]]))[0, 0]
    for i in range(32):
        for j in range(32):
            distance = ((x + ARENA) * scale - j) ** 2 + ((ARENA - y) * scale - i) ** 2
            assert float(image[i, j]) == pytest.approx(255 * np.exp(-distance / (2 * 1.5**2)), abs=0.51)


@pytest.mark.parametrize(
    ("identifier", "options"), [(RETURN, {}), (RETURN, {"pixels": True}), (COUNT, {"oracle": True})]
)
def test_gymnasium_finds_nothing_wrong(identifier, options):
    check_env(gymnasium.make(identifier, **options).unwrapped, skip_render_check=True)
    world = make_world(identifier, num_envs=7, options=options)
    assert isinstance(world, MemoryWorld)
    assert world.num_envs == 7
    for observation in world.reset(range(7)):
        assert world.observation_space.contains(observation.numpy())
    assert isinstance(make_world(f"decisionrl.envs:{identifier}"), MemoryWorld)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_vector_environment_restarts_each_copy_by_itself(mode):
    envs = gymnasium.make_vec(COUNT, num_envs=30, vectorization_mode="vector_entry_point", vector_kwargs={}, visits=1)
    assert isinstance(envs.unwrapped, MemoryVectorEnv)
    envs = MemoryVectorEnv("count_visits", num_envs=30, autoreset_mode=mode, max_steps=9)
    seen, info = envs.reset(seed=5)
    singles = [MemoryEnv("count_visits", max_steps=9) for _ in range(30)]
    assert np.array_equal(seen, np.stack([env.reset(seed=5 + i)[0] for i, env in enumerate(singles)]))
    assert not info["success"].any()
    space = envs.action_space
    space.seed(0)
    ended = np.zeros(30, bool)  # before this step
    first = np.ones(30, bool)  # still in the first episode
    for _ in range(25):
        action = space.sample()
        seen, reward, terminated, truncated, info = envs.step(action)
        over = terminated | truncated
        assert not (over & ended & (mode == AutoresetMode.NEXT_STEP)).any()
        for i in np.flatnonzero(first):
            observation, wanted, *flags, _ = singles[i].step(action[i])
            final = mode == AutoresetMode.SAME_STEP and any(flags)
            assert np.array_equal(info["final_obs"][i] if final else seen[i], observation)
            assert (reward[i], terminated[i], truncated[i]) == (wanted, *flags)
        if mode == AutoresetMode.SAME_STEP and over.any():
            assert np.array_equal(info["_final_obs"], over)
        begun = ended if mode == AutoresetMode.NEXT_STEP else over
        assert (np.abs(seen[begun] - [0, -0.45]) <= 0.0801).all()
        ended, first = over, first & ~over
    assert not first.any()


def test_what_is_not_valid():
    with pytest.raises(ValueError, match="task = 'juggle'; valid: return_side, count_visits"):
        MemoryWorld("juggle")
    with pytest.raises(ValueError, match="at most one of them"):
        MemoryWorld("return_side", oracle=True, pixels=True)
    for task, option, value in (
        ("return_side", "delay", -1),
        ("return_side", "step_length", 0.5),
        ("return_side", "noise", -0.1),
        ("return_side", "max_steps", 0),
        ("count_visits", "visits", 5),
    ):
        with pytest.raises(ValueError, match=f"{option} = {value}; valid: "):
            MemoryWorld(task, **{option: value})
    with pytest.raises(ValueError, match="num_envs = 0; valid"):
        MemoryWorld("return_side", num_envs=0)
    with pytest.raises(ValueError, match=r"action has shape \[2\]; valid: \[3, 2\]"):
        made("return_side", 3).step(torch.zeros(2))
    with pytest.raises(ValueError, match="1 seeds; valid: 2"):
        made("return_side", 3).restart([0, 1], [4])
    with pytest.raises(ValueError, match="workers = 2; valid: 0"):
        make_world(RETURN, num_envs=2, workers=2)
    with pytest.raises(ValueError, match="DISABLED"):
        MemoryVectorEnv("return_side", autoreset_mode="Disabled")


def test_pictures_show_places_and_the_way():
    places = {"return_side": [ReturnSide.HUB, (0.75, 0), (-0.75, 0)]}
    places["count_visits"] = [CountVisits.HOME, CountVisits.BOWL, CountVisits.EXIT]

    def color(picture, place):
        column, row = (round((each + ARENA) / (2 * ARENA) * 239) for each in (place[0], -place[1]))
        return tuple(picture[row, column].tolist())

    for task, known in places.items():
        picture = pictured(task, np.array([[-1.0, -1.0], [-1.0, 1.0]]))
        assert (picture.shape, picture.dtype) == ((240, 240, 3), np.uint8)
        assert len({color(picture, place) for place in [*known, (1, 1), (-1, 0.5), (-1, 1)]}) == 6
        assert color(picture, (-1.0, 1.04)) == color(picture, (-1.0, -1.0)) == (0, 0, 0)
        assert color(picture, (-0.96, -1.0)) == color(picture, (1, 1)) == (255, 255, 255)  # where it was is a small dot


@pytest.mark.parametrize("identifier", [RETURN, COUNT])
def test_films_show_the_episode_that_is_played(identifier):
    env = gymnasium.make(identifier, render_mode="rgb_array", disable_env_checker=True)
    assert env.metadata["render_fps"] == 8
    env.reset(seed=3)
    first = env.render()
    env.step(np.array([0, 1], np.float32))
    second = env.render()
    assert (first != second).any()
    env.reset(seed=3)
    np.testing.assert_array_equal(env.render(), first)
    assert gymnasium.make(identifier).render_mode is None
