"""Policies that learn in their context: what they see, what they forget, and how they plan."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.checkpoint import load_weights, save_weights
from decisionrl.envs.gridworld.darkroom import GridFamily, darkroom
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy, StepTokens, beam_search
from decisionrl.policies.in_context_network import ContextLengthError, InContextSizes

G, H, CONTEXT, ACTIONS = 5, 4, 12, 5
GRID, MOVES = spaces.Box(0, G - 1, (2,), np.int32), spaces.Discrete(ACTIONS)
REACH = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ENDLESS = spaces.Box(-np.inf, np.inf, (2,), np.int32)
FORCE = spaces.Box(-1.0, 1.0, (2,), np.float32)
SMALL = InContextSizes(width=8, layers=2, heads=2, feedforward=16, dropout=0.0, attention_dropout=0.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(*, seed: int = 0, context: int = CONTEXT, block: str = "llama", **options: object) -> InContextPolicy:
    sizes = replace(SMALL, block=block)
    policy = InContextPolicy(GRID, MOVES, context=context, sizes=sizes, generator=rng(seed), **options)
    return policy.double().eval()


def continuous(**options: object) -> InContextPolicy:
    policy = InContextPolicy(REACH, FORCE, context=CONTEXT, sizes=SMALL, embedding="linear", generator=rng(), **options)
    return policy.double().eval()


def planner(**options: object) -> PlanningPolicy:
    settings = {"horizon": H, "beams": 6, "depth": 3, **options}
    return PlanningPolicy(made(), GRID, generator=rng(5), **settings).double().eval()


@dataclass(frozen=True)
class Windows:
    observation: Tensor
    action: Tensor
    reward: Tensor
    start: Tensor

    def __getitem__(self, index: object) -> Windows:
        return Windows(*(each[index] for each in (self.observation, self.action, self.reward, self.start)))

    def cut(self, first: int, last: int) -> Windows:
        return self[:, first:last]


def windows(steps: int, *, rows: int = 2, seed: int = 3, grid: bool = True) -> Windows:
    """Episodes of H steps; in the second row they begin one step later."""
    generator = rng(seed)
    start = (torch.arange(steps) - torch.arange(rows)[:, None]) % H == 0
    start[:, 0] = True
    reward = torch.randint(2, (rows, steps), generator=generator).double()
    if grid:
        observation = torch.randint(G, (rows, steps, 2), generator=generator)
        return Windows(observation, torch.randint(ACTIONS, (rows, steps), generator=generator), reward, start)
    observation, action = (torch.randn(rows, steps, k, generator=generator, dtype=torch.float64) for k in (3, 2))
    return Windows(observation, action, reward, start)


def replayed(policy: InContextPolicy, history: Windows) -> Tensor:
    """The action head's outputs at each step, when the policy acts on what the history holds; [batch, step, ...]."""
    state, outputs = policy.initial_state(len(history.reward)), []
    for t in range(history.reward.shape[1]):
        context = policy.context_of(state.clone())
        outputs.append(policy.actor(policy.see(history.observation[:, t], context)))
        policy.did(context, history.action[:, t])
        ended = history.start[:, t + 1] if t + 1 < history.start.shape[1] else None
        state = policy.hear(context.state, history.reward[:, t], ended)
    return torch.stack(outputs, 1)


def window_begin(start: list[bool], t: int, *, context: int, forget: str) -> int:
    """Where the window begins whose newest step is t."""
    begin = 0
    for now in range(t + 1):
        while now - begin + 1 > context:
            begin += 1
            while forget == "episode" and not start[begin]:
                begin += 1
    return begin


@pytest.mark.parametrize("forget", ["episode", "step"])
@pytest.mark.parametrize("kind", ["llama", "gpt", "continuous"])
@torch.no_grad()
def test_acting_is_a_pass_over_the_window_that_is_left(kind: str, forget: str) -> None:
    policy = continuous(forget=forget) if kind == "continuous" else made(block=kind, forget=forget)
    history = windows(2 * CONTEXT + 3, grid=kind != "continuous")
    outputs = replayed(policy, history)
    for row in range(2):
        for t in range(outputs.shape[1]):
            begin = window_begin(history.start[row].tolist(), t, context=CONTEXT, forget=forget)
            scratch = policy(history[row : row + 1].cut(begin, t + 1))[0, -1]
            torch.testing.assert_close(outputs[row, t], scratch, atol=1e-10, rtol=0)


@torch.no_grad()
def test_what_was_forgotten_changes_nothing() -> None:
    policy, history = made(), windows(2 * CONTEXT, rows=1)
    other = Windows(*(each.clone() for each in vars(history).values()))
    other.observation[:, :CONTEXT] = 0
    other.action[:, :CONTEXT] = 1
    other.reward[:, :CONTEXT] = 0.5
    same = (replayed(policy, history) - replayed(policy, other)).abs().amax((0, 2)) < 1e-12
    assert not same[CONTEXT - 1]
    assert same[2 * CONTEXT - H :].all()  # the third episode is forgotten at step 20


@torch.no_grad()
def test_every_prefix_is_predicted_from_itself_alone() -> None:
    policy, history = made(), windows(10)
    whole = policy(history)
    for j in range(10):
        # The query of prefix j is s_j: what is done there, and what comes of it, is not seen.
        prefix = history.cut(0, j + 1)
        blind = replace(prefix, action=prefix.action.clone(), reward=prefix.reward.clone())
        blind.action[:, j], blind.reward[:, j] = 0, 99.0
        torch.testing.assert_close(policy(blind)[:, j], whole[:, j], atol=1e-12, rtol=0)
    for name in ("observation", "action", "reward"):
        changed = replace(history, **{name: getattr(history, name).clone()})
        getattr(changed, name)[:, 5] += -1 if name == "reward" else 0
        if name != "reward":
            getattr(changed, name)[:, 5] = (getattr(changed, name)[:, 5] + 1) % ACTIONS
        first = 5 if name == "observation" else 6
        same = (policy(changed) - whole).abs().amax((0, 2)) < 1e-12
        assert same.tolist() == [t < first for t in range(10)], name


@torch.no_grad()
def test_the_reward_that_ended_an_episode_is_seen_in_the_next() -> None:
    policy, history = made(), windows(2 * H, rows=1)
    changed = replace(history, reward=history.reward.clone())
    changed.reward[:, H - 1] += 1
    assert ((policy(changed) - policy(history))[0, H:].abs().amax(-1) > 1e-6).all()
    begins = replace(history, start=torch.zeros_like(history.start))
    assert not torch.allclose(policy(begins), policy(history))


@torch.no_grad()
def test_tokens_are_sums_of_embeddings() -> None:
    history = windows(3, rows=1)
    x, a, r = history.observation[0], history.action[0], history.reward[0]
    for embedding in ("axis", "cell", "linear"):
        tokens = StepTokens(GRID, MOVES, 8, embedding=embedding, generator=rng()).double()
        table = tokens.embed_observation
        for t, token in enumerate(tokens.window(history)[0]):
            if embedding == "axis":
                seen = table.weight[x[t, 0]] + table.weight[G + x[t, 1]]
            elif embedding == "cell":
                seen = table.weight[x[t, 0] * G + x[t, 1]]
            else:
                seen = table.weight @ x[t].double() + table.bias
            if t == 0:
                expected = seen + tokens.no_action + tokens.begins
            else:
                expected = seen + tokens.embed_action.weight[a[t - 1]] + r[t - 1] * tokens.embed_reward
            torch.testing.assert_close(token, expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_spaces_that_do_not_begin_at_zero() -> None:
    shifted = InContextPolicy(
        spaces.Box(3, 3 + G - 1, (2,), np.int32),
        spaces.Discrete(ACTIONS, start=7),
        context=CONTEXT,
        sizes=SMALL,
        generator=rng(),
    )
    plain, history = made(), windows(CONTEXT)
    moved = replace(history, observation=history.observation + 3, action=history.action + 7)
    torch.testing.assert_close(shifted.double().eval()(moved), plain(history))
    noise = plain.sample_noise((2,), rng())
    action, state = shifted.act(moved.observation[:, 0], noise=noise)
    expected, _ = plain.act(history.observation[:, 0], noise=noise)
    assert torch.equal(action, expected + 7)
    assert torch.equal(shifted.context_of(state).coming[:, 2], action.double())


def test_acting_is_a_function_of_noise_and_rows_stand_alone() -> None:
    for policy, grid in ((made(), True), (continuous(), False)):
        history = windows(3, rows=4, grid=grid)
        noise = policy.sample_noise((3, 4), rng(1))
        runs = []
        for rows in (slice(0, 4), slice(0, 4), slice(2, 3)):
            state, actions = None, []
            for t in range(3):
                before = None if state is None else state.clone()
                action, after = policy.act(history.observation[rows, t], state, noise=noise[t, rows])
                assert state is None or torch.equal(state, before)
                heard = policy.hear(after, history.reward[rows, t])
                state = heard
                actions.append(action)
            runs.append(torch.stack(actions, 1))
        assert torch.equal(runs[0], runs[1])
        torch.testing.assert_close(runs[0][2:3], runs[2])


def test_actions_follow_the_probabilities() -> None:
    policy, rows = made(), 4000
    observation = torch.tensor([[1, 2]]).expand(rows, 2)
    action, _ = policy.act(observation, noise=policy.sample_noise((rows,), rng()))
    one = Windows(observation[:1, None], torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.ones(1, 1) > 0)
    probability = policy(one)[0, 0].softmax(0)
    torch.testing.assert_close(action.bincount(minlength=ACTIONS) / rows, probability.float(), atol=0.03, rtol=0)
    greedy, _ = policy.act(observation[:3])
    assert (greedy == probability.argmax()).all()


def test_evaluate_is_the_log_probability_of_each_action() -> None:
    policy, history = made(), windows(CONTEXT)
    evaluation = policy.evaluate(history)
    log_p = policy(history).log_softmax(-1)
    for row, t in itertools.product(range(2), range(CONTEXT)):
        torch.testing.assert_close(evaluation.log_prob[row, t], log_p[row, t, history.action[row, t]])


def test_weights_are_saved_and_seeds_decide_them(tmp_path: Path) -> None:
    policy, history = made(seed=1), windows(5)
    assert torch.equal(policy(history), made(seed=1)(history))
    other = made(seed=2)
    assert not torch.allclose(policy(history), other(history))
    save_weights(policy, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(policy(history), other(history))
    assert set(planner().state_dict()) > {f"base.{name}" for name in policy.state_dict()}


# --- planning ---


@dataclass(frozen=True)
class KnownWorld:
    """Plans in the true world: an Imagination. state: [n, b, 3]."""

    family: GridFamily
    task: Tensor
    state: Tensor

    @property
    def reward(self) -> Tensor:
        return self._all()[1]

    def followed(self, beam: Tensor, action: Tensor) -> KnownWorld:
        row = torch.arange(len(beam))[:, None]
        return replace(self, state=self._all()[0][row, beam, action])

    def _all(self) -> tuple[Tensor, Tensor]:
        state = self.state[:, :, None].expand(-1, -1, ACTIONS, -1)
        action = torch.arange(ACTIONS).expand(state.shape[:-1])
        return self.family.step(state, action, self.task[:, None, None])


def test_a_perfect_model_brings_the_goal_nearer() -> None:
    family = darkroom(size=G, horizon=20)
    goals = torch.arange(G * G).repeat_interleave(G * G)
    cells = family.goals[:, 0].repeat(G * G, 1)
    away = (family.goals[goals, 0] - cells).abs().sum(1)
    near = (away > 0) & (away <= 3)
    task, state = goals[near], family.placed(cells[near])
    order = torch.rand(len(task), ACTIONS, generator=rng()).argsort(1)
    action = beam_search(
        KnownWorld(family, task, state[:, None]),
        order=order,
        depth=torch.full_like(task, 4),
        max_depth=4,
        beams=ACTIONS**3,
    )
    after, _ = family.step(state, action, task)
    assert torch.equal((family.goals[task, 0] - after[:, :2]).abs().sum(1), away[near] - 1)


@dataclass(frozen=True)
class RandomTree:
    """An Imagination whose rewards are looked up by the whole plan. plan: [n, b] as a number in base 3."""

    table: list[Tensor]
    plan: Tensor
    steps: int = 0

    @property
    def reward(self) -> Tensor:
        row = torch.arange(len(self.plan))[:, None]
        return self.table[self.steps][row, self.plan]

    def followed(self, beam: Tensor, action: Tensor) -> RandomTree:
        return RandomTree(self.table, self.plan.gather(1, beam) * 3 + action, self.steps + 1)


@pytest.mark.parametrize("beams", [1, 2, 4, 27, 100])
def test_beam_search_in_plain_loops(beams: int) -> None:
    """Rows plan for 1, 2 and 3 steps; rewards of 0 and 1 make ties; 27 beams and more are an exhaustive search."""
    rows, max_depth = 24, 3
    table = [torch.randint(2, (rows, 3**d, 3), generator=rng(d)).float() for d in range(max_depth)]
    order = torch.rand(rows, 3, generator=rng(9)).argsort(1)
    depth = torch.arange(rows) % max_depth + 1
    root = RandomTree(table, torch.zeros(rows, 1, dtype=torch.int64))
    found = beam_search(root, order=order, depth=depth, max_depth=max_depth, beams=beams)

    for row in range(rows):
        plans: list[tuple[float, list[int]]] = [(0.0, [])]
        for step in range(int(depth[row])):
            grown = []
            for total, plan in plans:
                index = int("".join(map(str, plan)) or "0", 3)
                for action in order[row].tolist() if step == 0 else range(3):
                    grown.append((total + float(table[step][row, index, action]), [*plan, action]))
            plans = sorted(grown, key=lambda each: -each[0])[:beams]
        assert found[row] == plans[0][1][0]
        if beams >= 27:
            best = max(
                sum(float(table[s][row, int("".join(map(str, p[:s])) or "0", 3), p[s]]) for s in range(len(p)))
                for p in itertools.product(range(3), repeat=int(depth[row]))
            )
            assert plans[0][0] == best


def played(policy: InContextPolicy | PlanningPolicy, steps: int, rows: int = 8) -> Tensor:
    family = darkroom(size=G, horizon=H)
    task, generator = torch.arange(rows) * 3, rng(4)
    state, world = policy.initial_state(rows), family.start(torch.zeros(rows, 2))
    actions = []
    for t in range(steps):
        action, state = policy.act(world[:, :2], state, noise=policy.sample_noise((rows,), generator))
        world, reward = family.step(world, action, task)
        ended = torch.full((rows,), (t + 1) % H == 0)
        world = torch.where(ended[:, None], family.start(torch.zeros(rows, 2)), world)
        state = policy.hear(state, reward, ended)
        actions.append(action)
    return torch.stack(actions, 1)


def test_before_the_context_is_full_planning_is_sampling() -> None:
    policy = planner()
    with torch.no_grad():
        policy.reward.bias[1] += 20  # it believes that every action is rewarded
        policy.embed_taken.weight.zero_()
        policy.next_observation.weight.normal_(generator=rng())
    plans, samples = played(policy, 2 * CONTEXT), played(policy.base, 2 * CONTEXT)
    assert torch.equal(plans, samples)  # where all plans are equally good, the first of the noise's order is the sample
    with torch.no_grad():
        policy.embed_taken.weight.normal_(generator=rng(8))
        policy.reward.weight.normal_(generator=rng(8))
        policy.reward.bias.zero_()
    plans = played(policy, CONTEXT + 3)
    assert torch.equal(plans[:, :CONTEXT], samples[:, :CONTEXT])
    assert not torch.equal(plans[:, CONTEXT], samples[:, CONTEXT])


@pytest.mark.parametrize("ahead", [2, 1])
@torch.no_grad()
def test_imagined_steps_are_a_pass_over_the_longer_window(ahead: int) -> None:
    """The plan found is that of a search in which every model query is a pass over the whole imagined window; at the
    last step of an episode there is one step to plan."""
    now = CONTEXT + H - ahead
    policy = planner(beams=ACTIONS**2, depth=2, reward_values=(0.0, 1.0, 2.0, 3.0))
    base, history = policy.base, windows(now + 1, rows=1)
    policy.reward.bias.zero_()
    policy.next_observation.bias.zero_()
    policy.embed_taken.weight.mul_(0.5)
    for block in base.network.blocks:  # so that what was imagined matters to what comes next
        block.attention.output.weight.mul_(5)
    window = history.cut(H, now + 1)  # the first episode was forgotten at step 12

    state = base.initial_state(1)
    for t in range(now):
        _, state = base.act(history.observation[:, t], state)
        context = base.context_of(state)
        base.did(context, history.action[:, t])
        state = base.hear(context.state, history.reward[:, t], history.start[:, t + 1])

    def predicted(past: Windows, action: int) -> tuple[float, Tensor]:
        asked = replace(past, action=past.action.clone())
        asked.action[0, -1] = action
        _, reward, following = policy(asked)
        return float(policy.reward_values[reward[0, -1].argmax()]), policy.coordinates.mode(following[0, -1])

    for seed in range(12):
        policy.next_observation.weight.normal_(generator=rng(100 + seed))
        policy.reward.weight.normal_(generator=rng(seed))
        noise = base.sample_noise((1,), rng(seed))
        order = (base(window)[0, -1] + noise[0]).argsort(descending=True).tolist()
        order.sort(key=lambda action: -predicted(window, action)[0])  # the search keeps what it has sorted
        plans = []
        for first in order:
            reward, seen = predicted(window, first)
            if ahead == 1:
                plans.append((reward, first))
                continue
            done = replace(window, action=window.action.clone(), reward=window.reward.clone())
            done.action[0, -1], done.reward[0, -1] = first, reward
            longer = Windows(
                torch.cat([done.observation, seen[None, None]], 1),
                torch.cat([done.action, torch.zeros(1, 1, dtype=torch.int64)], 1),
                torch.cat([done.reward, torch.zeros(1, 1, dtype=torch.float64)], 1),
                torch.cat([done.start, torch.zeros(1, 1, dtype=torch.bool)], 1),
            )
            plans += [(reward + predicted(longer, second)[0], first) for second in range(ACTIONS)]
        chosen, _ = policy.act(history.observation[:, now], state, noise=noise)
        best = max(plans, key=lambda plan: plan[0])[1]  # of equal ones the first
        assert chosen.item() == best


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: made(forget="all"), ValueError, r"forget = 'all'; valid: episode, step"),
        (lambda: made(embedding="hash"), ValueError, r"embedding = 'hash'; valid: axis, linear, cell"),
        (lambda: made(context=0), ValueError, r"context = 0; valid: at least 1"),
        (lambda: InContextPolicy(REACH, MOVES, context=4), ValueError, r"embedding = 'axis': a Box of integers"),
        (lambda: InContextPolicy(ENDLESS, MOVES, context=4), ValueError, r"a Box of integers with bounds"),
        (lambda: InContextPolicy(MOVES, MOVES, context=4), TypeError, r"observation_space = .*; valid: a Box"),
        (
            lambda: InContextPolicy(GRID, spaces.MultiBinary(2), context=4),
            TypeError,
            r"action_space = .*; valid: Discrete or Box",
        ),
        (lambda: planner(beams=0), ValueError, r"beams = 0; valid: at least 1"),
        (lambda: planner(reward_values=()), ValueError, r"reward_values = \(\); valid: different"),
        (lambda: planner(reward_values=(1.0, 1.0)), ValueError, r"reward_values = \(1.0, 1.0\)"),
        (lambda: PlanningPolicy(continuous(), REACH, horizon=H), TypeError, r"valid: Discrete actions"),
        (lambda: PlanningPolicy(made(forget="step"), GRID, horizon=H), ValueError, r"forget = 'step'"),
        (lambda: PlanningPolicy(made(), REACH, horizon=H), TypeError, r"valid: the Box of the base"),
    ],
)
def test_what_has_no_meaning_is_refused(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


@torch.no_grad()
def test_windows_and_episodes_that_do_not_fit_are_refused() -> None:
    policy, history = made(), windows(CONTEXT + 1)
    with pytest.raises(ContextLengthError, match=r"13 tokens; valid: at most context = 12"):
        policy(history)
    history.start[:, 1:] = False
    with pytest.raises(ValueError, match=r"an episode has more than context = 12 steps"):
        replayed(policy, history)
