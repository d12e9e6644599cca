"""The speed of in-context learning: the plain yardsticks agree with the library, and the rows say what was measured."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from decisionrl.benchmarks.speed import in_context
from decisionrl.benchmarks.speed.in_context import (
    BATCH,
    Profile,
    check_packed,
    fields,
    filled,
    learner,
    losses,
    made,
    main,
    measure_filter,
    measure_histories,
    measure_planning,
    measure_rollouts,
    measure_updates,
    planner,
    prefix,
    windows,
)
from decisionrl.benchmarks.speed.plain_in_context import (
    PlainLearner,
    PlainRoom,
    WholePasses,
    Window,
    plain_filter,
    plain_model,
    plan_plainly,
    play_plainly,
)
from decisionrl.benchmarks.speed.report import Report
from decisionrl.envs.gridworld.world import TaskWorld
from decisionrl.objectives.in_context import action_nll
from decisionrl.policies.in_context import PlanningPolicy
from decisionrl.policies.in_context_network import InContextSizes

FEW = replace(BATCH, context=40, rows=2)
TINY = Profile(
    rounds=2,
    history_rounds=2,
    peer_updates=1,
    rollouts=((FEW, 2),),
    steps=1,
    episodes=1,
    sizes=("cpu",),
    batch=3,
    prefixes=2,
    planning=(1,),
    filtered=(2, 5, 4),
)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch):
    """Of one part of the benchmark, timed as if the plain side took 3 s, the library 2 s and 2 labels' worth of
    windows 4 s."""

    def fixed(runners, rounds, device):
        for run in runners.values():
            run()
        return {name: [{"plain": 3.0, "ours": 2.0, "last": 4.0}[name]] * rounds for name in runners}

    monkeypatch.setattr(in_context, "race", fixed)

    def measured(part, profile=TINY):
        report = Report(in_context.SUITE, "cpu", Console(quiet=True))
        part(report, profile, "cpu")
        found = {(row.case, row.method, row.metric): row for row in report.rows}
        assert len(found) == len(report.rows)
        return found

    return measured


def test_plain_rooms_are_those_of_the_library() -> None:
    drawn, task = np.random.default_rng(0), 31
    room, world = PlainRoom((3, 4), size=9, horizon=20), TaskWorld("darkroom", task=task)
    assert room.observation_space == world.observation_space
    assert room.action_space == world.action_space
    rewards = 0.0
    for _ in range(10):
        observation, _ = room.reset()
        assert observation.tolist() == world.reset([0])[0].tolist()
        over = False
        while not over:
            action = drawn.integers(5)
            observation, reward, terminated, over, _ = room.step(action)
            step = world.step(torch.tensor([action]))
            assert (observation.tolist(), reward, over) == (step.observation[0].tolist(), step.reward, step.over == [0])
            assert not terminated
            rewards += reward
    assert rewards > 0


@pytest.mark.parametrize("sizes", ["paper", "cpu"])
def test_losses_and_gradients_agree(sizes: str) -> None:
    _, policy = made(FEW, sizes, "cpu")
    plain, batch = plain_model(policy), windows(3, 40, "cpu")
    torch.testing.assert_close(*losses(policy, plain, batch))
    action_nll(policy, batch).value.backward()
    plain.loss(*fields(batch)).backward()
    tokens = policy.tokens
    for own, other in (
        (tokens.embed_observation.weight, torch.cat([plain.embed_x0.weight.grad, plain.embed_x1.weight.grad])),
        (tokens.embed_action.weight, plain.embed_action.weight.grad[:-1]),
        (tokens.no_action, plain.embed_action.weight.grad[-1]),
        (tokens.embed_reward, plain.embed_reward.weight.grad[:, 0]),
        (tokens.begins, plain.embed_start.weight.grad[1]),
    ):
        torch.testing.assert_close(own.grad, other, atol=1e-5, rtol=1e-4)
    count = sum(each.numel() for each in policy.parameters())
    assert sum(each.numel() for each in plain.parameters()) == count + policy.network.sizes.width  # of "no start"


def test_a_difference_of_losses_is_found() -> None:
    _, policy = made(BATCH, "cpu", "cpu")
    plain = plain_model(policy)
    with torch.no_grad():
        plain.embed_start.weight[1] *= 2
    with pytest.raises(RuntimeError, match="losses differ: library"):
        losses(policy, plain, windows(2, 80, "cpu"))


def test_whole_windows_teach_what_their_prefixes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    _, policy = made(BATCH, "cpu", "cpu")
    check_packed(policy, windows(2, 10, "cpu"))
    monkeypatch.setattr(in_context, "prefix", lambda batch, length: prefix(batch, max(length, 2)))
    with pytest.raises(RuntimeError, match="gradients differ: library"):
        check_packed(policy, windows(2, 10, "cpu"))


def test_steps_of_both_learn() -> None:
    _, policy = made(BATCH, "cpu", "cpu")
    plain, batch = plain_model(policy), windows(2, 80, "cpu")
    for network, step in (
        (plain, lambda: PlainLearner(plain).step(*fields(batch))),
        (policy, lambda: learner(policy, "all").update(batch)),
    ):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        step()
        assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_actions_of_whole_passes_depend_on_the_past() -> None:
    world, policy = made(FEW, "cpu", "cpu")
    drawing = torch.Generator().manual_seed(0)
    state, past = filled(world, policy, 20, drawing)
    noise = policy.sample_noise((20, 2), drawing)
    ours = in_context.play(world, policy, state, range(2), noise)
    assert torch.equal(ours, play_plainly(world, policy, past, range(2), noise))
    other = replace(past, reward=1 - past.reward, action=4 - past.action)
    assert not torch.equal(ours, play_plainly(world, policy, other, range(2), noise))
    forgotten = copy.deepcopy(past)
    forgotten.action[:, :20] = 0
    assert torch.equal(ours, play_plainly(world, policy, forgotten, range(2), noise))


@torch.no_grad()
def test_whole_passes_imagine_what_the_model_says() -> None:
    """After each first action the most probable rewards and observations of a pass of the model over the window."""
    world, base = made(FEW, InContextSizes(width=8, layers=2, heads=2, feedforward=16), "cpu")
    drawing = torch.Generator().manual_seed(0)
    state, past = filled(world, base, 20, drawing)
    noise, observation = base.sample_noise((2,), drawing), world.reset(range(2))
    window, nothing = past.without(20).seeing(observation, start=True), torch.zeros(2)
    by_first = 0
    for seed in range(8):
        policy = planner(base, world, seed=seed)
        assert torch.equal(plan_plainly(policy, window, noise), policy.act(observation, state, noise=noise)[0])

        def predicted(window: Window, action: int, policy: PlanningPolicy = policy) -> tuple[Tensor, Tensor]:
            _, reward, following = policy(window.doing(torch.full((2,), action), nothing))
            return policy.reward_values[reward[:, -1].argmax(-1)], policy.coordinates.mode(following[:, -1])

        root = WholePasses(policy, window, beams=1)
        actions = torch.arange(5).expand(2, -1)
        following = root.followed(torch.zeros_like(actions), actions)
        for first in range(5):
            reward, seen = predicted(window, first)
            assert torch.equal(root.reward[:, 0, first], reward)
            longer = window.doing(torch.full((2,), first), reward).seeing(seen, start=False)
            second = torch.stack([predicted(longer, action)[0] for action in range(5)], 1)
            assert torch.equal(following.reward[:, first], second)
        by_first += int((following.reward != following.reward[:, :1]).any())
    assert by_first


def test_plain_filter_by_hand() -> None:
    returns = [[[0.0, 0.0], [5.0, 10.0], [0.0, 10.0]]]  # U = 1, 1.625, 1.75; P = 0, 5/6, 1
    passes = iter([[[0.0, 0.9, 0.99]], [[0.0, 0.8, 0.5]], [[0.0, 0.0, 0.0]]])
    assert plain_filter(returns, [10.0], lambda: next(passes)) == [[2, 1, 2]]
    assert next(passes) == [[0.0, 0.0, 0.0]]
    assert plain_filter([[[1.0], [1.0]]], [1.0], lambda: [[0.9, 0.9]]) == [[0, 1]]


def test_rows_of_histories(rows, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    monkeypatch.setattr(in_context, "PEER_STREAMS", 5)

    def fixed(run, device="cpu"):
        run()
        return 10.0

    monkeypatch.setattr(in_context, "stopwatch", fixed)
    found, case, transitions = rows(measure_histories), "darkroom-73x50x20", 73 * 50 * 20
    assert len(found) == 8
    for source in ("ppo", "a2c", "q_learning"):
        seconds = found[case, f"histories-{source}", "seconds"]
        assert seconds.low <= seconds.value <= seconds.high
        assert seconds.reference == 10
        assert found[case, f"histories-{source}", "transitions_per_second"].value == transitions / 10
    assert found[case, "histories-sb3_ppo", "transitions_per_second"].value == 5 * 20 / 10
    speedup = found[case, "histories-ppo", "speedup"]
    assert (speedup.value, speedup.reference, speedup.n) == (pytest.approx(transitions / 100), 100, 2)


def test_rows_of_rollouts_and_planning(rows) -> None:
    found = rows(measure_rollouts) | rows(measure_planning)
    assert len(found) == 4
    rollout = found["darkroom-context-40-rows-2", "rollout", "speedup"]
    assert (rollout.value, rollout.reference, rollout.n) == (1.5, 5, 2)
    assert found["darkroom-context-40-rows-2", "rollout", "latency_ms"].value == 100
    planning = "darkroom-context-80-rows-1-beams-10-depth-8"
    assert found[planning, "planning", "speedup"].value == 1.5
    assert found[planning, "planning", "latency_ms"].value == 2000


def test_rows_of_updates_and_the_filter(rows) -> None:
    found = rows(measure_updates) | rows(measure_filter)
    assert len(found) == 7
    loss = found["cpu", "update", "loss"]
    assert loss.value == pytest.approx(loss.reference, rel=1e-4)
    assert found["cpu", "update", "speedup"].value == 1.5
    assert found["cpu", "update", "labels_per_second"].value == 3 * 80 / 2
    assert found["cpu", "update-last", "labels_per_second"].value == 3 * 2 / 4
    assert found["cpu", "update", "speedup_packed"].value == pytest.approx(80)
    assert found["2x5x4", "filter", "speedup"].value == 1.5
    assert found["2x5x4", "filter", "latency_ms"].value == 2000


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out
