"""How fast in-context learning is: ``python -m decisionrl.benchmarks.speed.in_context``.

The yardsticks are those of ``plain_in_context`` and Stable-Baselines3. What computes the same must agree before it is
timed; the transformers are those of DICP (arXiv 2502.19009), "paper", and of the CPU settings, "cpu".

Rows (suite "speed-in-context"), on one thread. ``speedup``: the other's seconds over the library's, the median of the
rounds with the smallest and largest. Cases with a number of rows are that many copies of tasks at once.

- ``histories``: learning histories of all training tasks of Darkroom, 50 of 1000 steps each, written to a temporary
  directory, by the sources ``ppo``, ``a2c`` and ``q_learning``.

  - ``seconds``: by wall-clock time, of which most is the processor's if it is free; reference = the target.
  - ``transitions_per_second``: by processor time.
  - ``speedup``: per transition, of PPO beside Stable-Baselines3's with DICP's hyperparameters, which learns one task
    after the other in 100 single environments, its histories not written; each round is another task.

- ``rollout``: an episode with a full context, the oldest episode of which is forgotten first. ``speedup``: beside a
  pass over the whole window for every action, with equal actions; ``latency_ms``: of a step.
- ``update``: a training step on 64 windows of 80 steps that are at hand, with AdamW.

  - ``loss``: the library's on one batch; reference = that of a plain model with equal weights.
  - ``speedup``: beside the plain model's step, torch's own encoder for "cpu".
  - ``labels_per_second``, and with the suffix ``-last`` where a window teaches its last action only, every prefix of a
    history being a window of its own. ``speedup_packed``: seconds per label of the latter over the former, whose
    gradients are equal.

- ``planning``: an action by beam search, 10 plans of 8 steps. ``latency_ms``, and ``speedup`` beside a pass over the
  whole window for every imagined step, with equal actions.
- ``filter``: histories [73, 100] of 50 episodes scored and drawn anew. ``latency_ms``, and ``speedup`` beside plain
  loops, with equal choices.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from decisionrl.benchmarks.speed.plain_in_context import (
    PlainLearner,
    PlainModel,
    Window,
    plain_filter,
    plain_model,
    plan_plainly,
    play_plainly,
    room_ppo,
)
from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import race, ratio, stopwatch
from decisionrl.envs.gridworld.darkroom import darkroom
from decisionrl.envs.gridworld.world import TaskWorld
from decisionrl.experience.history_windows import InContextBatch
from decisionrl.learner import GradientLearner
from decisionrl.objectives.in_context import Positions, action_nll
from decisionrl.pipeline.history_filter import HistoryFilter
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy
from decisionrl.policies.in_context_network import InContextSizes
from decisionrl.recording.histories import histories
from decisionrl.seeding import generator

SUITE = "speed-in-context"
TOLERANCE = 1e-4
"""How far losses and gradients may be apart."""

SECONDS, PEER_SPEEDUP, ROLLOUT_SPEEDUP = 10.0, 100.0, 5.0
"""Targets."""

STREAMS, PEER_STREAMS = 50, 100
CONTEXT = 80


@dataclass(frozen=True)
class Copies:
    """Where is acted, in how many rows, and the target of the speedup."""

    family: str
    context: int
    rows: int
    target: float | None

    @property
    def name(self) -> str:
        return f"{self.family}-context-{self.context}-rows-{self.rows}"


BATCH = Copies("darkroom", CONTEXT, 64, ROLLOUT_SPEEDUP)
SINGLE = replace(BATCH, rows=1, target=None)
LONG = Copies("darkroom_permuted", 200, 64, ROLLOUT_SPEEDUP)


@dataclass(frozen=True)
class Profile:
    """How often and on what is timed.

    Attributes:
        episodes: of each history.
        peer_updates: of Stable-Baselines3's PPO in each round.
        rollouts: and the rounds of each.
        steps: updates of each side in a round.
        prefixes: lengths of windows that teach one action, in the middle of as many equal parts of the context.
    """

    rounds: int
    history_rounds: int
    peer_updates: int
    rollouts: Sequence[tuple[Copies, int]]
    steps: int
    episodes: int = 50
    sizes: Sequence[str] = ("paper", "cpu")
    batch: int = 64
    prefixes: int = 4
    planning: Sequence[int] = (1, 16)
    filtered: tuple[int, int, int] = (73, 100, 50)


FULL = Profile(6, 3, 2, ((BATCH, 6), (SINGLE, 6), (LONG, 3)), 2)
QUICK = Profile(3, 2, 1, ((BATCH, 3), (SINGLE, 3), (replace(LONG, rows=8), 2)), 1)


def agree(what: str, ours: Tensor, theirs: Tensor, *, tolerance: float = TOLERANCE) -> None:
    """Raises RuntimeError if they do not."""
    if ours.shape != theirs.shape or not bool((ours - theirs).abs().max() <= tolerance):
        raise RuntimeError(
            f"{what} differ: library {ours.flatten()[:4].tolist()}, other {theirs.flatten()[:4].tolist()}"
        )


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that calls another so often."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def made(copies: Copies, sizes: InContextSizes | str, device: str) -> tuple[TaskWorld, InContextPolicy]:
    """Tasks in turn, and a policy for which its context matters as much as what it sees."""
    world = TaskWorld(copies.family, num_envs=copies.rows, task=torch.arange(copies.rows) % 8, device=device)
    policy = InContextPolicy(
        world.observation_space,
        world.action_space,
        context=copies.context,
        sizes=sizes,
        generator=generator(0, "policy"),
    )
    with torch.no_grad():
        for name, weight in policy.network.named_parameters():
            if name.endswith("attention.output.weight"):
                weight.mul_(5)
    return world, policy.to(device).eval()


# Histories.


def write(source: str, episodes: int, device: str) -> None:
    """All histories of a source, into a directory that is then gone."""
    with tempfile.TemporaryDirectory() as directory:
        steps = episodes * darkroom().horizon
        histories(source=source, streams=STREAMS, steps=steps, device=device, out=Path(directory))


def measure_histories(report: Report, profile: Profile, device: str) -> None:
    """The rows ``histories``."""
    family = darkroom()
    train, _ = family.split()
    name = f"darkroom-{len(train)}x{STREAMS}x{profile.episodes * family.horizon}"
    transitions = len(train) * STREAMS * profile.episodes * family.horizon
    spent: dict[str, list[float]] = {}
    for source in ("ppo", "a2c", "q_learning"):
        write(source, 1, device)
        spent[source], seconds = [], []
        for _ in range(profile.history_rounds):
            start = time.perf_counter()
            spent[source].append(stopwatch(partial(write, source, profile.episodes, device), device))
            seconds.append(time.perf_counter() - start)
        low, middle, high = min(seconds), sorted(seconds)[len(seconds) // 2], max(seconds)
        report.add(name, f"histories-{source}", "seconds", middle, target=SECONDS, low=low, high=high, n=len(seconds))
        per_second = [transitions / each for each in spent[source]]
        report.rounds(name, f"histories-{source}", "transitions_per_second", per_second, higher=True)
    theirs = []
    for i, goal in enumerate(family.goals[train[: profile.history_rounds], 0].tolist()):
        model = room_ppo(goal, size=family.size, horizon=family.horizon, streams=PEER_STREAMS, seed=i)
        learned = profile.peer_updates * PEER_STREAMS * family.horizon
        theirs.append(stopwatch(partial(model.learn, learned)) / learned)
    ours = [each / transitions for each in spent["ppo"]]
    report.rounds(name, "histories-sb3_ppo", "transitions_per_second", [1 / each for each in theirs], higher=True)
    report.speedup(name, "histories-ppo", theirs, ours, PEER_SPEEDUP)


# Acting and planning.


@torch.no_grad()
def filled(world: TaskWorld, policy: InContextPolicy, horizon: int, drawing: torch.Generator) -> tuple[Tensor, Window]:
    """The state after as many steps as the context holds, whole episodes, and those steps."""
    rows, state = world.num_envs, policy.initial_state(world.num_envs)
    seen, acted, rewarded = list[Tensor](), list[Tensor](), list[Tensor]()
    for step, noise in enumerate(policy.sample_noise((policy.context, rows), drawing)):
        if step % horizon == 0:
            observation = world.reset(range(step * rows, (step + 1) * rows))
        action, state = policy.act(observation, state, noise=noise)
        taken = world.step(action)
        state = policy.hear(state, taken.reward, taken.truncated)
        for kept, each in ((seen, observation), (acted, action), (rewarded, taken.reward)):
            kept.append(each)
        observation = world.observation
    start = (torch.arange(policy.context, device=world.device) % horizon == 0).expand(rows, -1)
    return state, Window(torch.stack(seen, 1), torch.stack(acted, 1), torch.stack(rewarded, 1), start)


@torch.no_grad()
def play(world: TaskWorld, policy: InContextPolicy, state: Tensor, seeds: Sequence[int], noise: Tensor) -> Tensor:
    """Actions [step, n] of an episode after a state."""
    observation, actions = world.reset(seeds), []
    for drawn in noise:
        action, state = policy.act(observation, state, noise=drawn)
        taken = world.step(action)
        state, observation = policy.hear(state, taken.reward, taken.truncated), world.observation
        actions.append(action)
    return torch.stack(actions)


def measure_rollouts(report: Report, profile: Profile, device: str) -> None:
    """The rows ``rollout``."""
    for copies, rounds in profile.rollouts:
        world, policy = made(copies, "paper", device)
        drawing, horizon, seeds = generator(0, "rollout"), world.family.horizon, range(copies.rows)
        state, past = filled(world, policy, horizon, drawing)
        noise = policy.sample_noise((horizon, copies.rows), drawing)
        ours, theirs = (
            partial(play, world, policy, state, seeds, noise),
            partial(play_plainly, world, policy, past, seeds, noise),
        )
        agree("actions", ours(), theirs(), tolerance=0)
        seconds = race({"plain": theirs, "ours": ours}, rounds=rounds, device=device)
        report.speedup(copies.name, "rollout", seconds["plain"], seconds["ours"], copies.target)
        report.rounds(copies.name, "rollout", "latency_ms", [1e3 * each / horizon for each in seconds["ours"]])


@torch.no_grad()
def planner(base: InContextPolicy, world: TaskWorld, *, seed: int = 0) -> PlanningPolicy:
    """Plans with a policy that is made already, in a model for which its context and the action matter."""
    drawing, family = generator(seed, "planner"), world.family
    policy = PlanningPolicy(
        base,
        family.observation_space,
        reward_values=(0.0, 1.0, 2.0, 3.0),
        horizon=family.horizon,
        generator=drawing,
    )
    policy.embed_taken.weight.copy_(torch.randn(policy.embed_taken.weight.shape, generator=drawing))
    for head in (policy.reward, policy.next_observation):
        head.weight.copy_(torch.randn(head.weight.shape, generator=drawing))
        head.bias.zero_()
    return policy.to(world.device).eval()


@torch.no_grad()
def measure_planning(report: Report, profile: Profile, device: str) -> None:
    """The rows ``planning``; of the second step of an episode, what was forgotten being gone."""
    for rows in profile.planning:
        copies = replace(BATCH, rows=rows)
        world, base = made(copies, "paper", device)
        policy, drawing = planner(base, world), generator(0, "planning")
        state, past = filled(world, base, world.family.horizon, drawing)
        observation, (noise, last) = world.reset(range(rows)), policy.sample_noise((2, rows), drawing)
        action, state = base.act(observation, state, noise=noise)
        taken = world.step(action)
        state = base.hear(state, taken.reward, taken.truncated)
        before = past.without(world.family.horizon).seeing(observation, start=True).doing(action, taken.reward)
        window = before.seeing(world.observation, start=False)
        ours, theirs = (
            partial(policy.act, world.observation, state, noise=last),
            partial(plan_plainly, policy, window, last),
        )
        agree("plans", ours()[0], theirs(), tolerance=0)
        seconds = race({"plain": theirs, "ours": ours}, rounds=profile.rounds, device=device)
        name = f"{copies.name}-beams-{policy.beams}-depth-{policy.depth}"
        report.speedup(name, "planning", seconds["plain"], seconds["ours"], None)
        report.rounds(name, "planning", "latency_ms", [1e3 * each for each in seconds["ours"]])


# Training.


def windows(rows: int, length: int, device: str) -> InContextBatch:
    """Random windows of Darkroom."""
    drawing, family = generator(0, "windows"), darkroom()
    return InContextBatch(
        observation=torch.randint(family.size, (rows, length, 2), generator=drawing).to(device),
        action=torch.randint(family.num_actions, (rows, length), generator=drawing).to(device),
        reward=torch.randint(2, (rows, length), generator=drawing).float().to(device),
        start=(torch.arange(length, device=device) % family.horizon == 0).expand(rows, -1),
    )


def prefix(batch: InContextBatch, length: int) -> InContextBatch:
    """The first steps of windows."""
    return InContextBatch(
        observation=batch.observation[:, :length],
        action=batch.action[:, :length],
        reward=batch.reward[:, :length],
        start=batch.start[:, :length],
    )


def fields(batch: InContextBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a plain model is given."""
    return batch.observation, batch.action, batch.reward, batch.start


def losses(policy: InContextPolicy, plain: PlainModel, batch: InContextBatch) -> tuple[Tensor, Tensor]:
    """The library's and the plain loss, without dropout.

    Raises:
        RuntimeError: they differ.
    """
    with torch.no_grad():
        ours, theirs = action_nll(policy.eval(), batch).value, plain.eval().loss(*fields(batch))
    agree("losses", ours, theirs)
    return ours, theirs


def check_packed(policy: InContextPolicy, batch: InContextBatch) -> None:
    """Raises RuntimeError if the gradient of whole windows is not the mean of those of the last action of every prefix,
    without dropout."""

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(policy.parameters()))])

    policy.eval()
    lengths = range(1, batch.action.shape[1] + 1)
    last = [gradient(action_nll(policy, prefix(batch, each), positions="last").value) for each in lengths]
    agree("gradients", gradient(action_nll(policy, batch).value), torch.stack(last).mean(0))


def learner(policy: InContextPolicy, positions: Positions) -> GradientLearner:
    """What trains a policy."""
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-4, fused=True)
    return GradientLearner(policy, partial(action_nll, positions=positions), optimizer, clip_norm=1.0)


def measure_updates(report: Report, profile: Profile, device: str) -> None:
    """The rows ``update``."""
    batch = windows(profile.batch, CONTEXT, device)
    parts = [prefix(batch, CONTEXT * (2 * i + 1) // (2 * profile.prefixes)) for i in range(profile.prefixes)]
    for sizes in profile.sizes:
        _, policy = made(BATCH, sizes, device)
        plain = plain_model(policy)
        ours, theirs = losses(policy, plain, batch)
        report.add(sizes, "update", "loss", float(ours), target=float(theirs))
        check_packed(policy, windows(2, CONTEXT, device))
        packed, last = (learner(policy.train(), positions) for positions in ("all", "last"))

        def one_by_one(last: GradientLearner = last) -> None:
            for part in parts:
                last.update(part)

        seconds = race(
            {
                "plain": repeated(partial(PlainLearner(plain.train()).step, *fields(batch)), profile.steps),
                "ours": repeated(partial(packed.update, batch), profile.steps),
                "last": one_by_one,
            },
            rounds=profile.rounds,
            device=device,
        )
        report.speedup(sizes, "update", seconds["plain"], seconds["ours"], None)
        labels = profile.batch * CONTEXT * profile.steps, profile.batch * len(parts)
        each = [[time / count for time in seconds[key]] for key, count in zip(("ours", "last"), labels, strict=True)]
        for method, per_label in zip(("update", "update-last"), each, strict=True):
            report.rounds(sizes, method, "labels_per_second", [1 / time for time in per_label], higher=True)
        r = ratio(each[1], each[0])
        report.add(sizes, "update", "speedup_packed", r.median, higher=True, low=r.low, high=r.high, n=r.rounds)


# Filtering.


def measure_filter(report: Report, profile: Profile, device: str) -> None:
    """The rows ``filter``."""
    shape = profile.filtered
    returns = torch.randint(21, shape, generator=generator(0, "returns")).float()
    r_max = torch.full(shape[:1], 20.0)
    lists, most, on_device = returns.tolist(), r_max.tolist(), returns.to(device)

    def ours() -> Tensor:
        return HistoryFilter()(on_device, r_max.to(device), generator(0, "filter")).index

    def theirs() -> list[list[int]]:
        drawing = generator(0, "filter")
        return plain_filter(lists, most, lambda: torch.rand(shape[:2], generator=drawing, dtype=torch.float64).tolist())

    agree("histories", ours().cpu(), torch.tensor(theirs()), tolerance=0)
    seconds = race({"plain": theirs, "ours": ours}, rounds=profile.rounds, device=device)
    name = "x".join(str(size) for size in shape)
    report.speedup(name, "filter", seconds["plain"], seconds["ours"], None)
    report.rounds(name, "filter", "latency_ms", [1e3 * each for each in seconds["ours"]])


def measure(report: Report, profile: Profile, *, device: str) -> None:
    """All rows."""
    for part in (measure_histories, measure_rollouts, measure_updates, measure_planning, measure_filter):
        part(report, profile, device)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        measure(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
