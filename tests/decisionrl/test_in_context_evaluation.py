"""Evaluation in the context: what is remembered over the ends of episodes, whose returns are whose, and enhancement."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decisionrl.envs.gridworld import GridFamily, TaskWorld, darkroom, hidden_reach
from decisionrl.evaluation.in_context import QUICK_EPISODES, InContextEvaluator, enhancement, in_context_returns
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy
from decisionrl.policies.in_context_network import InContextSizes

FAMILY = darkroom(size=3, horizon=4)
SIZES = InContextSizes(width=8, layers=1, heads=2, feedforward=8, dropout=0.5, attention_dropout=0.5)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(family: Any = FAMILY, **options: Any) -> TaskWorld:
    """A copy in every task."""
    count = family.num_tasks
    return TaskWorld(family, num_envs=count, task=torch.arange(count), **options)


class Stub(nn.Module):
    """An in-context policy whose state is a number of columns, all 0 before a task."""

    columns = 1

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def initial_state(self, n: int) -> Tensor:
        return torch.zeros(n, self.columns)

    def sample_noise(self, shape: Any, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(shape, generator=generator)

    def hear(self, state: Tensor, reward: Tensor, ended: Tensor | None = None) -> Tensor:
        return state


class Optimal(Stub):
    """Knows the task of each row, and that rewards do not come once."""

    def __init__(self, family: Any, task: Tensor) -> None:
        super().__init__()
        self.family, self.task = family, task

    def act(self, observation: Tensor, state: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        now = self.family.state_of(observation, torch.zeros(len(observation)))
        return self.family.optimal_action(now, self.task), state


class Searching(Stub):
    """Tries one cell after another, an episode each, and goes where it was rewarded once it was.

    Columns: the episode, the cell it is in, whether the goal was found, and where.
    """

    columns = 6

    def act(self, observation: Tensor, state: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        episode, found = state[:, 0].long(), state[:, 3:4] > 0
        tried = FAMILY.goals[episode.clamp(max=FAMILY.num_tasks - 1), 0]
        goal = torch.where(found, state[:, 4:].long(), tried)
        x0, x1 = (goal - observation).unbind(-1)
        along_x1 = torch.where(x1 > 0, 2, torch.where(x1 < 0, 3, 4))
        action = torch.where(x0 > 0, 0, torch.where(x0 < 0, 1, along_x1))
        cell = observation + FAMILY.moves[0, action]
        return action, torch.cat([state[:, :1], cell, state[:, 3:]], 1)

    def hear(self, state: Tensor, reward: Tensor, ended: Tensor | None = None) -> Tensor:
        assert ended is not None
        rewarded = reward[:, None] > 0
        known = torch.cat([torch.ones_like(state[:, :1]), state[:, 1:3]], 1)
        known = torch.where(rewarded, known, state[:, 3:])
        return torch.cat([state[:, :1] + ended[:, None], state[:, 1:3], known], 1)


class Logging(Stub):
    """Writes down what it is told; acts by the noise."""

    def __init__(self, actions: int = 5) -> None:
        super().__init__()
        self.actions = actions
        self.seen: list[Tensor] = []
        self.states: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.ended: list[Tensor] = []
        self.modes: list[bool] = []

    def act(self, observation: Tensor, state: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert noise is not None, "in-context learning explores"
        assert not torch.is_grad_enabled()
        self.seen.append(observation)
        self.states.append(state)
        self.noise.append(noise)
        self.modes.append(self.training)
        return (noise * self.actions).long(), state + 1

    def hear(self, state: Tensor, reward: Tensor, ended: Tensor | None = None) -> Tensor:
        assert ended is not None
        self.rewards.append(reward)
        self.ended.append(ended)
        return state + 10


# --------------------------------------------------------------------------------------------------- returns


def test_the_optimal_policy_earns_the_largest_return_in_every_episode() -> None:
    for family in (FAMILY, hidden_reach(tasks=8, horizon=6)):
        policy: Any = Optimal(family, torch.arange(family.num_tasks))
        found = in_context_returns(policy, world(family), episodes=3, seed=0)
        torch.testing.assert_close(found, family.max_return[:, None].expand(-1, 3))


def test_what_was_found_is_remembered_over_the_ends_of_episodes() -> None:
    policy: Any = Searching()
    found = in_context_returns(policy, world(), episodes=9, seed=0)
    for task in range(9):
        # The goal was found in episode ``task`` at the latest, and then all that follow are the best.
        assert found[task, task] > 0
        assert (found[task, task + 1 :] == FAMILY.max_return[task]).all()
    assert (found[5:, 0] == 0).all(), "there is nothing to remember at first"
    assert torch.equal(in_context_returns(policy, world(), episodes=9, seed=0), found), "nor is there later on"


@pytest.mark.parametrize("max_steps", [None, 3, 1])
def test_the_policy_is_told_of_rewards_and_of_ends(max_steps: int | None) -> None:
    policy: Any = Logging()
    episodes, steps = 3, max_steps or 4
    found = in_context_returns(policy, world(max_steps=max_steps), episodes=episodes, seed=0)
    assert [ended.all().item() for ended in policy.ended] == [(t + 1) % steps == 0 for t in range(episodes * steps)]
    assert [ended.any().item() for ended in policy.ended] == [ended.all().item() for ended in policy.ended]
    assert all(ended.dtype == torch.bool and ended.shape == (9,) for ended in policy.ended)
    assert [state.unique().tolist() for state in policy.states] == [[11.0 * t] for t in range(episodes * steps)]
    rewards = torch.stack(policy.rewards, 1).view(9, episodes, steps)
    assert torch.equal(found, rewards.sum(-1))
    assert found.any()
    assert all((seen == 1).all() for seen in policy.seen[::steps]), "every episode begins in the center"


def test_a_seed_decides_starts_and_noise() -> None:
    family = darkroom(size=3, horizon=4, start="random")

    def observed(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        policy: Any = Logging()
        found = in_context_returns(policy, world(family), episodes=3, seed=seed)
        return found, torch.stack(policy.seen), torch.stack(policy.noise)

    state = torch.get_rng_state()
    first, again, other = observed(5), observed(5), observed(6)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
    starts = first[1][::4]
    assert len(starts.flatten(0, 1).unique(dim=0)) == 9, "of copies and of episodes differ"
    assert not torch.equal(starts[0], starts[1])


def test_actions_are_sampled_without_dropout_and_modes_are_kept() -> None:
    policy = InContextPolicy(
        FAMILY.observation_space, FAMILY.action_space, context=8, sizes=SIZES, generator=rng(1)
    ).train()
    policy.tokens.eval()
    modes = [module.training for module in policy.modules()]
    weights = [parameter.clone() for parameter in policy.parameters()]
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))  # of dropout, if there were any
        runs.append(in_context_returns(policy, world(), episodes=6, seed=seed))
    assert [module.training for module in policy.modules()] == modes
    assert all(torch.equal(one, two) for one, two in zip(policy.parameters(), weights, strict=True))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(in_context_returns(policy.eval(), world(), episodes=6, seed=0), runs[0])
    logging: Any = Logging().train()
    in_context_returns(logging, world(), episodes=1, seed=0)
    assert logging.training
    assert not any(logging.modes)


def test_a_planning_policy_is_measured_like_its_base_until_its_context_is_full() -> None:
    base = InContextPolicy(FAMILY.observation_space, FAMILY.action_space, context=8, sizes=SIZES, generator=rng())
    planner = PlanningPolicy(base, FAMILY.observation_space, horizon=4, beams=3, depth=2, generator=rng(1))
    torch.nn.init.normal_(planner.embed_taken.weight, generator=rng(2))  # so that actions differ in what they promise
    plans, samples = (in_context_returns(each, world(), episodes=6, seed=2) for each in (planner, base))
    assert torch.equal(plans[:, :2], samples[:, :2])
    assert not torch.equal(plans, samples)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_policy_on_a_gpu_is_measured_there() -> None:
    policy = InContextPolicy(FAMILY.observation_space, FAMILY.action_space, context=8, sizes=SIZES, generator=rng())
    found = in_context_returns(policy.to("cuda"), world(device="cuda"), episodes=3, seed=0)
    assert found.device.type == "cuda"
    assert torch.equal(in_context_returns(policy, world(device="cuda"), episodes=3, seed=0), found)


# ------------------------------------------------------------------------------------------------- the evaluator


def evaluator(tasks: list[int], **options: Any) -> InContextEvaluator:
    return InContextEvaluator(family=FAMILY, tasks=torch.tensor(tasks), **options)


@pytest.mark.parametrize(("tasks", "replicas"), [([7, 1, 3], 22), ([8], 64), ([0, 2], 32)])
def test_returns_are_those_of_their_tasks(tasks: list[int], replicas: int) -> None:
    measure = evaluator(tasks, episodes=2)
    policy: Any = Optimal(FAMILY, torch.tensor(tasks).repeat_interleave(replicas))
    found = measure.returns(policy)
    assert measure.replicas == replicas
    assert found.shape == (len(tasks), replicas, 2)
    assert torch.equal(found, FAMILY.max_return[tasks][:, None, None].expand_as(found))
    result = measure(policy)
    optimum = FAMILY.max_return[tasks].mean().item()
    assert result["mean_return"] == result["reference"] == pytest.approx(optimum)
    assert result["gap"] == pytest.approx(0)
    assert (result["tasks"], result["contexts"]) == (len(tasks), len(tasks) * replicas)
    assert (result["episodes"], result["reference_kind"]) == (2, "exact")


def test_many_tasks_have_a_context_each() -> None:
    family = darkroom(size=9, horizon=2)
    assert InContextEvaluator(family=family, tasks=torch.arange(64)).replicas == 1
    assert InContextEvaluator(family=family, tasks=torch.arange(81)).replicas == 1
    assert InContextEvaluator(family=family, tasks=torch.arange(63)).replicas == 2


def test_the_whole_curve_its_beginning_and_its_end() -> None:
    measure, policy = evaluator([8, 0, 6, 5], episodes=20), Searching()
    returns = measure.returns(policy, seed=3).double()  # type: ignore[arg-type]
    result = measure(policy, seed=3)  # type: ignore[arg-type]
    assert result["mean_return"] == pytest.approx(sum(returns.flatten().tolist()) / returns.numel())
    assert result["first_return"] == pytest.approx(returns[:, :, 0].mean().item())
    assert result["last_return"] == pytest.approx(returns[:, :, 18:].mean().item())
    assert result["first_return"] < result["mean_return"] < result["last_return"]
    assert result["gap"] == pytest.approx(1 - result["mean_return"] / FAMILY.max_return[[8, 0, 6, 5]].mean().item())
    interval = bootstrap_mean(returns.mean((1, 2)).numpy(), rng=np.random.default_rng(3))
    assert (result["low"], result["high"]) == (interval.low, interval.high)
    assert result["low"] < result["mean_return"] < result["high"]


def test_quick_measurements_have_fewer_episodes() -> None:
    policy: Any = Logging()
    for episodes, wanted in ((30, QUICK_EPISODES), (4, 4)):
        assert evaluator([2], episodes=episodes)(policy, long=False)["episodes"] == wanted
    assert evaluator([2], episodes=3)(policy)["episodes"] == 3
    assert evaluator([2], episodes=3)(policy, episodes=5, long=False)["episodes"] == 5
    assert evaluator([2], episodes=3).returns(policy, episodes=5).shape == (1, 64, 5)


def test_tasks_in_which_there_is_nothing_to_earn_are_refused() -> None:
    family = darkroom(size=5, horizon=1)  # no goal but the nearest can be reached in time
    message = r"darkroom: the largest returns of the 2 tasks are 0 on average; valid: tasks in which something"
    with pytest.raises(ValueError, match=message):
        InContextEvaluator(family=family, tasks=torch.tensor([0, 24]))
    measure = InContextEvaluator(family=family, tasks=torch.tensor([0, 12]), episodes=1)
    assert measure(Logging())["reference"] == 0.5  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tasks is empty; valid: at least one"):
        InContextEvaluator(family=family, tasks=torch.tensor([], dtype=torch.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Costly(GridFamily):
    """A dark room in which every step that does not end on the goal costs 1."""

    @property
    def max_return(self) -> Tensor:  # type: ignore[override]
        return super().max_return - self.horizon

    def step(self, state: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        state, reward = super().step(state, action, task)
        return state, reward - 1


def test_the_gap_to_a_negative_optimum_is_positive() -> None:
    family: Any = Costly(**{each.name: getattr(FAMILY, each.name) for each in fields(FAMILY)})
    measure = InContextEvaluator(family=family, tasks=torch.tensor([0, 8]), episodes=2)
    assert measure(Optimal(family, torch.tensor([0, 8]).repeat_interleave(32)))["gap"] == 0  # type: ignore[arg-type]
    result = measure(Logging())  # type: ignore[arg-type]
    assert result["mean_return"] < result["reference"] == -1
    assert result["gap"] == pytest.approx(-1 - result["mean_return"])


# -------------------------------------------------------------------------------------------------- enhancement


def test_enhancement_is_relative_and_of_the_whole_curve() -> None:
    base = torch.tensor([[0.0, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 4.0]])
    assert enhancement(base, base) == 0
    assert enhancement(base, 1.25 * base) == pytest.approx(0.25)
    assert enhancement(base, 0 * base) == -1
    faster = base.clone()
    faster[:, 1] += 2  # as good in the end
    assert enhancement(base, faster) == pytest.approx(4 / 16)
    assert enhancement(base[0], faster) == pytest.approx((20 / 8 - 1.5) / 1.5), "shapes may differ"


@pytest.mark.parametrize("base", [0.0, -1.0, float("nan")])
def test_enhancement_of_nothing_is_refused(base: float) -> None:
    with pytest.raises(ValueError, match=r"the mean return of the base is (0.0|-1.0|nan); valid: above 0"):
        enhancement(torch.full((2, 3), base), torch.ones(2, 3))
