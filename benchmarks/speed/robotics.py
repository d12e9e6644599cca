"""How fast diffusion policies learn and act: ``python -m decisionrl.benchmarks.speed.robotics``.

The yardstick is ``plain_diffusion``. Both predict the clean actions with the same transformer (arXiv 2303.04137), past
tokens included (arXiv 2505.09561), in 10 denoising steps of DDIM. Whatever is compared must agree before it is timed.

Rows (suite "speed-robotics"), on one thread:

- ``update``: a training step of 64 windows, drawing them and averaging the weights included, of two sizes: "cpu" (width
  48, 2 layers, To 8, F 4) and "middle" (128, 4, 16, 17).

  - ``loss``: the library's on one batch; reference = the plain loss with equal weights.
  - ``speedup``: the plain loop's seconds over the library's, the median of the rounds with the smallest and largest.

- ``encode_once``: sampling from observations that are encoded once, and anew in every denoising step; of vectors, and
  of images of 32 x 32 and 84 x 84 pixels. ``speedup`` as above.
- ``candidates_5``: decisions with 5 candidates (self-verification) for 1 and 100 episodes at once. ``ratio``: their
  seconds over those with one candidate; reference = the target on a GPU. ``speedup``: one after the other over batched.
- ``rollout``: ``speedup`` of episodes of ReturnSide side by side over the plain loop's one after the other, with equal
  actions; ``latency_ms``: of a step of one robot that decides in every step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.benchmarks.speed.plain_diffusion import (
    Draw,
    PlainLearner,
    PlainNetwork,
    PlainPolicy,
    PlainWindows,
    play_one,
)
from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import race
from decisionrl.composition import AveragedLearner
from decisionrl.ema import PowerAverage
from decisionrl.envs.robotics.memory import MemoryEnv, MemoryWorld
from decisionrl.experience.context_windows import ContextBatch, ContextWindows
from decisionrl.experience.datasets import DatasetSource
from decisionrl.experience.episodes import NOISE_CHUNK, Played, Task, play
from decisionrl.experience.store import EpisodeStore
from decisionrl.learner import GradientLearner
from decisionrl.objectives.denoising import denoising
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, DiffusionPolicy
from decisionrl.policies.diffusion_network import DiffusionTransformer, DiffusionTransformerSizes
from decisionrl.policies.diffusion_sampling import row_normals, row_seeds
from decisionrl.policies.encoders import IMAGE_SIDE, Encoder
from decisionrl.seeding import generator

SUITE = "speed-robotics"
TOLERANCE = 1e-4
"""How far losses, samples and actions may be apart, in normalized units."""

TASK = "return_side"
EPISODES, EPISODE_STEPS = 200, 22
VECTOR = spaces.Box(-math.inf, math.inf, (2,))
ACTIONS = spaces.Box(-1, 1, (2,))
GPU_RATIO = 2.0


@dataclass(frozen=True)
class Size:
    """A transformer and its context."""

    name: str
    width: int
    layers: int
    observations: int
    future: int


SMALL = Size("cpu", 48, 2, 8, 4)
SIZES = (SMALL, Size("middle", 128, 4, 16, 17))


@dataclass(frozen=True)
class Profile:
    """How often and on what is timed. steps: updates or decisions of each side in a round."""

    rounds: int
    steps: int
    batch: int = 64
    sizes: Sequence[Size] = SIZES
    sides: Sequence[int] = (32, 84)
    copies: Sequence[int] = (1, 100)
    episodes: int = 100


FULL = Profile(rounds=8, steps=5)
QUICK = Profile(rounds=6, steps=2, episodes=20)


class SmallCNN(Encoder):
    """Three convolutions of stride 2 over images [channels, side, side] of uint8, and a layer of 32 units."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.features = 32
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.ReLU()]
            side = (side + 1) // 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * side * side, self.features))

    def forward(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(observation.float() / 255)
        return features


def recorded(device: str) -> EpisodeStore:
    """Random episodes."""
    drawing = generator(0, "robotics")
    steps = EPISODES * EPISODE_STEPS
    truncated = torch.arange(1, steps + 1) % EPISODE_STEPS == 0
    return EpisodeStore(
        observation=torch.randn(steps + EPISODES, 2, generator=drawing),
        action=torch.rand(steps, 2, generator=drawing) * 2 - 1,
        reward=torch.zeros(steps),
        terminated=torch.zeros_like(truncated),
        truncated=truncated,
        length=torch.full((EPISODES,), EPISODE_STEPS),
        observation_space=VECTOR,
        action_space=ACTIONS,
    ).to(device)


def made(
    size: Size, device: str, *, space: spaces.Box = VECTOR, encoder: Encoder | None = None, candidates: int = 1
) -> DiffusionPolicy:
    """The library's policy, with weights large enough for observations to matter."""
    drawing = generator(0, "policy")
    policy = DiffusionPolicy(
        space,
        ACTIONS,
        context=Context(observations=size.observations, future=size.future),
        settings=replace(CPU, network=DiffusionTransformerSizes(width=size.width, layers=size.layers, dropout=0.0)),
        candidates=candidates,
        encoder=encoder,
        generator=drawing,
    )
    with torch.no_grad():
        for weight in policy.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=drawing))
    return policy.to(device).eval()


def plain_policy(policy: DiffusionPolicy, size: Size) -> PlainPolicy:
    """The plain one with equal weights."""
    from diffusers import DDIMScheduler

    assert isinstance(policy.network, DiffusionTransformer)
    sizes = {"width": size.width, "layers": size.layers, "observations": size.observations, "future": size.future}
    network = PlainNetwork(policy.encoder.features, policy.action_features, **sizes)
    network.load_state_dict(policy.network.state_dict())
    scheduler: Any = DDIMScheduler
    scheduler = scheduler(
        num_train_timesteps=CPU.train_steps, beta_schedule="squaredcos_cap_v2", prediction_type=CPU.prediction
    )
    scheduler.set_timesteps(CPU.inference_steps)
    return PlainPolicy(
        encoder=copy.deepcopy(policy.encoder),
        normalizer=copy.deepcopy(policy.action_normalizer),
        network=network.to(policy.low.device),
        scheduler=scheduler,
        observations=size.observations,
        candidates=policy.candidates,
    )


def agree(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Raises RuntimeError if they do not."""
    if ours.shape != theirs.shape or not bool((ours - theirs).abs().max() <= TOLERANCE):
        raise RuntimeError(
            f"{what} differ: library {ours.flatten()[:4].tolist()}, other {theirs.flatten()[:4].tolist()}"
        )


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that calls another so often."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


# Training.


def plain_windows(store: EpisodeStore, size: Size) -> PlainWindows:
    """The same windows, of arrays."""
    observation = store.observations_before()
    assert isinstance(observation, Tensor)
    seen, acted = observation.cpu().numpy(), store.action.cpu().numpy()
    ends = store.length.cumsum(0).tolist()
    return PlainWindows(seen, acted, ends, observations=size.observations, future=size.future)


def losses(policy: DiffusionPolicy, plain: PlainLearner, windows: ContextWindows) -> tuple[Tensor, Tensor]:
    """The library's and the plain loss on the same windows, noise and steps.

    Raises:
        RuntimeError: the windows or the losses differ.
    """
    drawing, size = generator(0, "losses"), windows.size
    device = windows.episodes.length.device
    number = torch.randint(len(windows), (size,), generator=drawing)
    observation, action = windows.windows(number.to(device))
    theirs = [plain.windows[index] for index in number.tolist()]
    for name, found in (("observation", observation), ("action", action)):
        assert isinstance(found, Tensor)
        agree(f"windows of the {name}", found, torch.stack([each[name] for each in theirs]).to(device))
    noise = torch.randn(action.shape, generator=drawing).to(device)
    step = torch.randint(CPU.train_steps, (size,), generator=drawing).to(device)
    with torch.no_grad():
        batch = ContextBatch(observation, action, noise, (step + 0.5) / CPU.train_steps)
        assert isinstance(observation, Tensor)
        ours, other = denoising(policy, batch).value, plain.policy.loss(observation, action, noise, step)
    agree("losses", ours, other)
    return ours, other


def measure_updates(report: Report, profile: Profile, device: str) -> None:
    """The rows ``update``."""
    store = recorded(device)
    for size in profile.sizes:
        policy = made(size, device)
        windows = ContextWindows(episodes=store, context=policy.context, size=profile.batch)
        plain = PlainLearner(plain_policy(policy, size), plain_windows(store, size), batch=profile.batch, device=device)
        ours, theirs = losses(policy, plain, windows)
        report.add(size.name, "update", "loss", float(ours), target=float(theirs))
        source, learner = DatasetSource(windows), averaged(policy.train())
        seconds = race(
            {
                "plain": repeated(plain.step, profile.steps),
                "ours": repeated(partial(step, source, learner), profile.steps),
            },
            rounds=profile.rounds,
            device=device,
        )
        report.speedup(size.name, "update", seconds["plain"], seconds["ours"], None)


def step(source: DatasetSource, learner: AveragedLearner) -> None:
    """One update of the library."""
    learner.update(source.sample())


def averaged(policy: DiffusionPolicy) -> AveragedLearner:
    """What the recipes train with."""
    optimizer = torch.optim.AdamW(policy.parameter_groups(), 1e-4, betas=(0.9, 0.95), fused=True)
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    learner = GradientLearner(policy, denoising, optimizer, after_update=[schedule.step])
    return AveragedLearner(learner, PowerAverage(policy))


# Sampling.


@torch.no_grad()
def encoded_once(policy: DiffusionPolicy, observation: Tensor, seed: Tensor) -> Tensor:
    """Tokens [n, tokens, Da] of contexts [n, To, ...]."""
    return policy.sample(policy.features(observation), seed)[:, 0]


@torch.no_grad()
def encoded_anew(policy: DiffusionPolicy, observation: Tensor, seed: Tensor) -> Tensor:
    """The same with the observations encoded in every denoising step."""
    assert policy.schedule is not None
    seeds, shape = row_seeds(seed, 1).flatten(), (policy.tokens, policy.action_features)

    def predicted(noisy: Tensor, step: int) -> Tensor:
        memory = policy.network.encode(policy.features(observation))
        steps = torch.full((len(noisy),), step, device=noisy.device)
        return policy.network(noisy, steps, memory)  # type: ignore[no-any-return]

    return policy.schedule.sample(predicted, lambda stream: row_normals(seeds, shape, stream=stream))


def contexts(space: spaces.Box, size: Size, count: int, device: str) -> Tensor:
    """Random observations [count, To, ...]."""
    shape, drawing = (count, size.observations, *space.shape), generator(0, "contexts")
    if space.dtype == np.uint8:
        return torch.randint(256, shape, generator=drawing, dtype=torch.uint8).to(device)
    return torch.randn(shape, generator=drawing).to(device)


def measure_encoding(report: Report, profile: Profile, device: str) -> None:
    """The rows ``encode_once``."""
    size = profile.sizes[0]
    observed: list[spaces.Box] = [VECTOR, *(spaces.Box(0, 255, (1, side, side), np.uint8) for side in profile.sides)]
    for space in observed:
        side = space.shape[-1]
        torch.manual_seed(0)
        encoder = SmallCNN(1, side).to(device) if len(space.shape) == 3 and side < IMAGE_SIDE else None
        policy = made(size, device, space=space, encoder=encoder)
        name = f"image-{side}" if len(space.shape) == 3 else "vector"
        observation, seed = contexts(space, size, 1, device), torch.zeros(1, dtype=torch.int64, device=device)
        agree(f"samples of {name}", encoded_once(policy, observation, seed), encoded_anew(policy, observation, seed))
        seconds = race(
            {
                "anew": repeated(partial(encoded_anew, policy, observation, seed), profile.steps),
                "once": repeated(partial(encoded_once, policy, observation, seed), profile.steps),
            },
            rounds=profile.rounds,
            device=device,
        )
        report.speedup(name, "encode_once", seconds["anew"], seconds["once"], None)


# Decisions.


@torch.no_grad()
def batched(policy: DiffusionPolicy, features: Tensor, seed: Tensor, candidates: int) -> Tensor:
    """Candidates [n, candidates, tokens, Da] at once."""
    return policy.sample(features, seed, candidates)


@torch.no_grad()
def one_by_one(policy: DiffusionPolicy, features: Tensor, seed: Tensor, candidates: int) -> Tensor:
    """The same, each candidate in a denoising loop of its own."""
    assert policy.schedule is not None
    shape, memory = (policy.tokens, policy.action_features), policy.network.encode(features)

    def predicted(noisy: Tensor, step: int) -> Tensor:
        return policy.network(noisy, torch.full((len(noisy),), step, device=noisy.device), memory)  # type: ignore[no-any-return]

    def normals(seeds: Tensor, stream: int) -> Tensor:
        return row_normals(seeds, shape, stream=stream)

    each = row_seeds(seed, candidates).unbind(1)
    return torch.stack([policy.schedule.sample(predicted, partial(normals, seeds)) for seeds in each], 1)


@torch.no_grad()
def decided(policy: DiffusionPolicy, observation: Tensor, state: Tensor) -> Tensor:
    """Actions of rows in the midst of their episodes."""
    return policy.act(observation, state)[0]


@torch.no_grad()
def midst(policy: DiffusionPolicy, observation: Tensor) -> Tensor:
    """The state after as many observations as the policy remembers."""
    state = policy.initial_state(len(observation))
    for _ in range(policy.context.frames):
        _, state = policy.act(observation, state)
    return state


def measure_candidates(report: Report, profile: Profile, device: str) -> None:
    """The rows ``candidates_5``."""
    size, count = profile.sizes[0], 5
    single, several = (made(size, device, candidates=each) for each in (1, count))
    for copies in profile.copies:
        observation, seed = contexts(VECTOR, size, copies, device), torch.arange(copies, device=device)
        features = single.features(observation)
        arguments = (single, features, seed, count)
        agree("candidates", batched(*arguments), one_by_one(*arguments))
        newest = observation[:, -1]
        states = {each: midst(each, newest) for each in (single, several)}
        seconds = race(
            {
                "several": repeated(partial(decided, several, newest, states[several]), profile.steps),
                "single": repeated(partial(decided, single, newest, states[single]), profile.steps),
                "batched": repeated(partial(batched, *arguments), profile.steps),
                "one by one": repeated(partial(one_by_one, *arguments), profile.steps),
            },
            rounds=profile.rounds,
            device=device,
        )
        name = f"episodes-{copies}"
        target = None if device == "cpu" else GPU_RATIO
        ratios = sorted(a / b for a, b in zip(seconds["several"], seconds["single"], strict=True))
        report.add(
            name,
            "candidates_5",
            "ratio",
            float(np.median(ratios)),
            target=target,
            low=ratios[0],
            high=ratios[-1],
            n=len(ratios),
            seconds=float(np.median(seconds["several"])) / profile.steps,
        )
        report.speedup(name, "candidates_5", seconds["one by one"], seconds["batched"], None)


# Episodes.


def seeded(policy: DiffusionPolicy, seeds: Tensor) -> Draw:
    """For the plain loop the noise that the library's policy makes of the seeds [steps] of an episode."""

    def draw(step: int, candidate: int) -> Tensor:
        own = row_seeds(seeds[step : step + 1], candidate + 1)[:, candidate]
        return row_normals(own, (policy.tokens, policy.action_features), stream=0)[0]

    return draw


def measure_rollouts(report: Report, profile: Profile, device: str) -> None:
    """The rows ``rollout``."""
    size, seeds = profile.sizes[0], range(profile.episodes)
    policy = made(size, device)
    plain = plain_policy(policy, size)
    world, env = MemoryWorld(TASK, num_envs=profile.episodes, device=device), MemoryEnv(TASK, device=device)
    noise = policy.sample_noise((NOISE_CHUNK, profile.episodes), generator(0, "rollout")).unbind(1)
    draws = [seeded(policy, each) for each in noise]

    def side_by_side() -> Played:
        return play(world, policy, [Task(seed) for seed in seeds], generator=generator(0, "rollout"))

    def in_turn() -> list[Tensor]:
        return [play_one(env, plain, seed, draw, device) for seed, draw in zip(seeds, draws, strict=True)]

    played = side_by_side()
    for i, actions in enumerate(in_turn()):
        agree(f"actions of episode {i}", played.action[i][played.mask[i]], actions)
    seconds = race({"plain": in_turn, "ours": side_by_side}, rounds=profile.rounds, device=device)
    report.speedup(f"{TASK}-{profile.episodes}", "rollout", seconds["plain"], seconds["ours"], None)
    for candidates in (1, 5):
        policy = made(size, device, candidates=candidates)
        newest = contexts(VECTOR, size, 1, device)[:, -1]
        one = partial(decided, policy, newest, midst(policy, newest))
        steps = race({"ours": repeated(one, profile.steps)}, rounds=profile.rounds, device=device)["ours"]
        name = f"one-robot-candidates-{candidates}"
        report.rounds(name, "rollout", "latency_ms", [1e3 * each / profile.steps for each in steps])


def measure(report: Report, profile: Profile, *, device: str) -> None:
    """All rows."""
    for part in (measure_updates, measure_encoding, measure_candidates, measure_rollouts):
        part(report, profile, device)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        measure(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
