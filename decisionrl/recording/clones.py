"""Clones of a few demonstrations: Meta-World episodes of which about half succeed, and scores of their segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from decisionrl.envs.registration import METAWORLD_TASKS, register_envs
from decisionrl.envs.robotics.metaworld import MetaWorldEnv, scripted_expert
from decisionrl.experience.minari import save_minari
from decisionrl.experience.preference_formats import save_segments
from decisionrl.experience.preferences import Segments, sample_segments
from decisionrl.experience.store import EpisodeStore, store_episodes
from decisionrl.experience.teachers import expert_distance, regret_scores, segment_returns
from decisionrl.names import pick
from decisionrl.seeding import generator

METADATA = {
    "title": "Clones of a few scripted demonstrations, with noise, on Meta-World",
    "arxiv": "2310.13639",
    "changes": "in place of a half-trained SAC policy, a policy cloned from few demonstrations; in place of SAC's "
    "critics, V fitted to returns of the scripted expert",
    "kinds": f"the Meta-World tasks {', '.join(METAWORLD_TASKS)}",
}

COPIES = 16
"""Episodes that are played side by side."""

AFTER_SUCCESS = 25
"""Steps of an episode after its first success."""

MAX_STEPS = 250
"""Steps of an episode without success."""

ROLL_IN = 150
"""The behavior policy plays up to as many steps before the expert takes over and shows what a state is worth."""

DISCOUNT = 0.99
"""Of the returns that V is fitted to."""

LEAST_SPREAD = 1e-3
"""What hardly varies in the data is not blown up: a standard deviation is taken to be at least that."""

MINIBATCH = 128

TRIALS = 40
"""Episodes in which a clone shows how good it is."""

Prediction = Callable[[Tensor], Tensor]

Choice = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(observation [n, 35], expert's action [n, 4], episode [n], step [n]) -> action [n, 4]``, which is then clipped."""


@dataclass(frozen=True, kw_only=True)
class Clones:
    """What was recorded.

    Attributes:
        episodes: of the behavior policy, with extras ``success`` (bool) and ``expert_action`` [steps, 4].
        segments: of these.
        scores: what three teachers think of each segment: ``regret``, ``return`` and ``distance``.
    """

    episodes: EpisodeStore
    segments: Segments
    scores: Mapping[str, Tensor]


def clones(
    *,
    env: str = "plate-slide",
    demonstrations: int = 10,
    success: float = 0.5,
    demonstration_noise: float = 0.1,
    noise: float = 0.3,
    episodes: int = 500,
    segments: int = 1500,
    segment_length: int = 64,
    value_episodes: int = 300,
    cloning_steps: int = 1000,
    value_steps: int = 4000,
    seed: int = 0,
    out: str | Path = "data",
) -> list[Path]:
    """Write :func:`record_clones` as ``OUT/ENV-clones-seedN``, a Minari dataset with ``segments.npz`` in it.

    ``load_segments`` of ``decisionrl.experience.preference_formats`` reads that file, with score ``"regret"``,
    ``"return"`` or ``"distance"``.

    Raises:
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, or minari and h5py, of ``decisionrl[offline]``,
            are not installed.
        ValueError: see :func:`record_clones`; or the directory is there already.
    """
    directory = Path(out) / f"{env}-clones-seed{seed}"
    if directory.exists():
        raise ValueError(f"out = {out}: {directory} is there already; valid: a folder without it")
    recorded = record_clones(
        env=env,
        demonstrations=demonstrations,
        success=success,
        demonstration_noise=demonstration_noise,
        noise=noise,
        episodes=episodes,
        segments=segments,
        segment_length=segment_length,
        value_episodes=value_episodes,
        cloning_steps=cloning_steps,
        value_steps=value_steps,
        seed=seed,
    )
    register_envs()
    save_minari(
        recorded.episodes,
        directory,
        env_spec=gymnasium.spec(recorded.episodes.info["env"]),
        description=METADATA["title"],
    )
    save_segments(directory / "segments.npz", recorded.segments, recorded.scores)
    return [directory]


def record_clones(
    *,
    env: str = "plate-slide",
    demonstrations: int = 10,
    success: float = 0.5,
    demonstration_noise: float = 0.1,
    noise: float = 0.3,
    episodes: int = 500,
    segments: int = 1500,
    segment_length: int = 64,
    value_episodes: int = 300,
    cloning_steps: int = 1000,
    value_steps: int = 4000,
    seed: int = 0,
) -> Clones:
    """Demonstrations, a policy cloned from as few of them as make it succeed in about half of its episodes, its
    episodes, and scores of segments of these.

    Gaussian noise on a good expert would be a poor stand-in for a bad policy: cloning averages it away. A policy cloned
    from few demonstrations is bad in the same way every time. How few depends on the task and on luck, so clones of 1,
    2, 3, ... demonstrations are tried; the paper's data is from checkpoints with about 50 % success likewise.

    The teachers: ``return`` is sum r; ``distance`` is -sum |a - a^E|^2 from the scripted expert; ``regret`` is
    sum r + V(s_k) - V(s_0), with V fitted to the expert's discounted returns from states that the clone reaches.

    Args:
        env: a task of ``METAWORLD_TASKS``.
        demonstrations: episodes of the scripted expert, at the most; ``info["shown"]`` says how many it took.
        success: the share of 40 trial episodes, with the noise, in which the clone must succeed.
        demonstration_noise, noise: standard deviation of what is added to the actions of the expert, and of the clone.
        episodes: of the clone; each ends 25 steps after its first success, but is longer than a segment.
        segments: how many, every place being equally likely.
        segment_length: steps of each.
        value_episodes: of the expert, from states of the clone.
        cloning_steps, value_steps: of Adam, for the clone and for V.
        seed: of everything.

    Raises:
        UnknownNameError: env is not one of the tasks.
        ValueError: a number is too small, or segment_length >= 250.
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, is not installed.
    """
    settings = dict(locals())
    pick("env", env, dict.fromkeys(METAWORLD_TASKS))
    for name in ("demonstrations", "episodes", "segments", "segment_length", "value_episodes"):
        if settings[name] < 1:
            raise ValueError(f"{name} = {settings[name]}; valid: a whole number >= 1")
    if not 0 <= success <= 1:
        raise ValueError(f"success = {success}; valid: 0 to 1")
    if segment_length >= MAX_STEPS:
        raise ValueError(f"segment_length = {segment_length}; valid: less than {MAX_STEPS}, the steps of an episode")

    least = segment_length + 1
    shaken = demonstration_noise * _noise(seed, "demonstrations", demonstrations)
    demonstrated = _play(
        env,
        _seeds(seed, "demonstrations", demonstrations),
        lambda observation, expert, episode, step: expert + shaken[episode, step],
        least=[least] * demonstrations,
    )
    for shown in range(1, demonstrations + 1):
        clone = _regression(
            torch.cat([each["observation"][:-1] for each in demonstrated[:shown]]),
            torch.cat([each["action"] for each in demonstrated[:shown]]),
            steps=cloning_steps,
            generator=generator(seed, "clones/cloning"),
        )
        if shown == demonstrations or _success(_wander(env, clone, "trials", TRIALS, noise, least, seed)) >= success:
            break

    played = _wander(env, clone, "episodes", episodes, noise, least, seed)
    store = store_episodes(
        played,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (35,), np.float32),
        action_space=gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32),
        info={
            "maker": "clones",
            "success_rate": _success(played),
            "shown": shown,
            **settings,
            "env": _identifier(env),
            "env_options": {"success_reward": True},
        },
    )
    found = sample_segments(store, segments, segment_length, generator=generator(seed, "clones/segments"))

    value = _expert_value(env, clone, noise, episodes=value_episodes, steps=value_steps, seed=seed)
    return Clones(
        episodes=store,
        segments=found,
        scores={
            "regret": regret_scores(found, value),
            "return": segment_returns(found),
            "distance": expert_distance(found),
        },
    )


def _expert_value(env: str, clone: Prediction, noise: float, *, episodes: int, steps: int, seed: int) -> Prediction:
    """V of the scripted expert, fitted to its discounted returns from states of the clone.

    The expert takes over from the clone after a random number of steps and goes on until 25 steps after its success;
    from there on the last reward is taken to last forever.
    """
    takeover = torch.randint(ROLL_IN + 1, (episodes,), generator=generator(seed, "clones/takeover"))
    wandering = noise * _noise(seed, "roll-in", episodes, ROLL_IN + MAX_STEPS)

    def choose(observation: Tensor, expert: Tensor, episode: Tensor, step: Tensor) -> Tensor:
        cloned = clone(observation) + wandering[episode, step]
        return torch.where((step < takeover[episode])[:, None], cloned, expert)

    begin = takeover.tolist()
    played = _play(
        env,
        _seeds(seed, "value", episodes),
        choose,
        least=[first + AFTER_SUCCESS for first in begin],
        max_steps=ROLL_IN + MAX_STEPS,
    )
    shown = list(zip(played, begin, strict=True))
    fitted = _regression(
        torch.cat([each["observation"][first:-1] for each, first in shown]),
        torch.cat([_discounted_returns(each["reward"][first:]) for each, first in shown])[:, None],
        steps=steps,
        generator=generator(seed, "clones/value"),
    )
    return lambda observation: fitted(observation).squeeze(-1)


def _discounted_returns(reward: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """sum_{i>=t} DISCOUNT^(i-t) r_i for every t, the last reward being repeated forever."""
    step = torch.arange(len(reward), dtype=reward.dtype)
    weight = (DISCOUNT ** (step[None, :] - step[:, None]).clamp(min=0)).triu()
    return weight @ reward + DISCOUNT ** (len(reward) - step) * reward[-1] / (1 - DISCOUNT)


@dataclass
class _Episode:
    """An episode that is being played."""

    least: int
    observation: list[NDArray[np.float32]] = field(default_factory=list)
    steps: list[tuple[NDArray[np.float32], NDArray[np.float32], float, bool, bool]] = field(default_factory=list)
    solved: int | None = None
    """Steps to the first success."""

    def add(self, expert: NDArray[np.float32], action: NDArray[np.float32], outcome: Any) -> bool:
        """Take in a step; whether the episode is over."""
        observation, reward, _, truncated, info = outcome
        success = info["success"]
        if success and self.solved is None:
            self.solved = len(self.steps) + 1
        enough = self.solved is not None and len(self.steps) + 1 >= max(self.least, self.solved + AFTER_SUCCESS)
        self.observation.append(observation)
        self.steps.append((expert, action, reward, success, truncated or enough))
        return truncated or enough

    def tensors(self) -> dict[str, Tensor]:
        columns = zip(*self.steps, strict=True)
        expert, action, reward, success, truncated = (torch.from_numpy(np.stack(each)) for each in columns)
        return {
            "observation": torch.from_numpy(np.stack(self.observation)),
            "action": action,
            "reward": reward.float(),
            "terminated": torch.zeros_like(truncated),
            "truncated": truncated,
            "success": success,
            "expert_action": expert,
        }


def _wander(
    env: str, clone: Prediction, stream: str, episodes: int, noise: float, least: int, seed: int
) -> list[dict[str, Tensor]]:
    """Episodes of the clone with noise."""
    drawn = noise * _noise(seed, stream, episodes)
    return _play(
        env,
        _seeds(seed, stream, episodes),
        lambda observation, expert, episode, step: clone(observation) + drawn[episode, step],
        least=[least] * episodes,
    )


def _success(episodes: Sequence[Mapping[str, Tensor]]) -> float:
    """The share of the episodes that succeed."""
    return sum(float(each["success"].any()) for each in episodes) / len(episodes)


def _play(
    env: str, seeds: Sequence[int], choose: Choice, *, least: Sequence[int], max_steps: int = MAX_STEPS
) -> list[dict[str, Tensor]]:
    """Episodes from these seeds, several side by side; each ends 25 steps after its first success, or after
    ``max_steps``, but has ``least`` steps."""
    expert = scripted_expert(env)
    copies = [MetaWorldEnv(env, max_steps=max_steps) for _ in seeds[:COPIES]]
    episodes = [_Episode(steps) for steps in least]
    waiting, playing = deque(range(len(seeds))), dict[int, int]()
    while waiting or playing:
        for copy, world in enumerate(copies):
            if copy not in playing and waiting:
                playing[copy] = number = waiting.popleft()
                episodes[number].observation.append(world.reset(seed=seeds[number])[0])
        numbers = list(playing.values())
        seen = np.stack([episodes[number].observation[-1] for number in numbers])
        shown = np.stack([expert(row) for row in seen])
        step = torch.tensor([len(episodes[number].steps) for number in numbers])
        with torch.no_grad():
            chosen = choose(torch.from_numpy(seen), torch.from_numpy(shown), torch.tensor(numbers), step)
        actions = chosen.clamp(-1, 1).numpy()
        for (copy, number), by_expert, action in zip(list(playing.items()), shown, actions, strict=True):
            if episodes[number].add(by_expert, action, copies[copy].step(action)):
                del playing[copy]
    for world in copies:
        world.close()
    return [episode.tensors() for episode in episodes]


def _regression(
    inputs: Float[Tensor, "n inputs"], targets: Float[Tensor, "n outputs"], *, steps: int, generator: torch.Generator
) -> Prediction:
    """The least-squares fit of a small network: two hidden layers of 128, ``steps`` of Adam on minibatches."""
    center, spread = inputs.mean(0), inputs.std(0).clamp(min=LEAST_SPREAD)
    origin, scale = targets.mean(0), targets.std(0).clamp(min=LEAST_SPREAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, targets.shape[1])
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    standard_inputs, standard_targets = (inputs - center) / spread, (targets - origin) / scale
    for _ in range(steps):
        rows = torch.randint(len(inputs), (MINIBATCH,), generator=generator)
        loss = (network(standard_inputs[rows]) - standard_targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def predict(observation: Tensor) -> Tensor:
        with torch.no_grad():
            predicted: Tensor = network((observation - center) / spread)
            return predicted * scale + origin

    return predict


def _seeds(seed: int, stream: str, count: int) -> list[int]:
    """Reset seeds of as many episodes."""
    return torch.randint(2**31, (count,), generator=generator(seed, f"clones/{stream} seeds")).tolist()


def _noise(seed: int, stream: str, episodes: int, steps: int = MAX_STEPS) -> Float[Tensor, "episodes steps 4"]:
    return torch.randn(episodes, steps, 4, generator=generator(seed, f"clones/{stream}"))


def _identifier(env: str) -> str:
    return f"decisionrl/{env.title().replace('-', '')}-v0"
