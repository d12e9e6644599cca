"""EpisodeStore: recorded episodes one after another in flat tensors, which everything offline is drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories, each_key
from decisionrl.policies.evaluation import Observation


class DatasetError(ValueError):
    """Recorded data that cannot be used; names the field, the episode and the step where there is one."""


@dataclass(frozen=True, kw_only=True)
class EpisodeStore:
    """Whole episodes; episode e has ``length[e]`` steps and ``length[e] + 1`` observations.

    Attributes:
        observation: of all episodes under each other, [steps + episodes, ...], or a dict of such tensors.
        action: [steps, ...].
        reward: [steps].
        terminated: the step led to a state that has no future, [steps].
        truncated: the episode was cut after the step, [steps].
        length: steps of every episode, [episodes], each at least 1.
        observation_space, action_space: of the environment; observations and actions fit their shapes.
        extras: more tensors [steps, ...], such as ``success``.
        info: plain values about the data: ``env``, ``random_score``, ``expert_score``, how they were made.

    Raises:
        DatasetError: sizes that do not fit, an empty episode, values that are not finite.
    """

    observation: Observation
    action: Tensor
    reward: Float[Tensor, " steps"]
    terminated: Bool[Tensor, " steps"]
    truncated: Bool[Tensor, " steps"]
    length: Int[Tensor, " episodes"]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.length) or self.length.min() < 1:
            raise DatasetError("length: every episode needs at least one step, and there must be an episode")
        steps = self.num_steps
        wanted: dict[str, tuple[Tensor, int]] = {
            name: (getattr(self, name), steps) for name in ("action", "reward", "terminated", "truncated")
        }
        wanted |= {f"extras[{name!r}]": (tensor, steps) for name, tensor in self.extras.items()}
        observed = _named(self.observation)
        wanted |= {name: (tensor, steps + self.num_episodes) for name, tensor in observed.items()}
        for name, (tensor, rows) in wanted.items():
            if len(tensor) != rows:
                raise DatasetError(f"{name} has {len(tensor)} rows; valid: {rows}, as episodes have {steps} steps")
        for name, tensor in {**observed, "action": self.action, "reward": self.reward}.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                self._report(name, tensor)
        _check_shapes(self.observation, self.observation_space, "observation")
        _check_shapes(self.action, self.action_space, "action")

    @property
    def num_episodes(self) -> int:
        """The number of episodes."""
        return len(self.length)

    @cached_property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.length.sum())

    @cached_property
    def first(self) -> Int[Tensor, " episodes"]:
        """The row of every episode's first step."""
        return self.length.cumsum(0) - self.length

    @cached_property
    def episode(self) -> Int[Tensor, " steps"]:
        """The episode of every step."""
        return torch.arange(self.num_episodes, device=self.length.device).repeat_interleave(self.length)

    @cached_property
    def returns(self) -> Float[Tensor, " episodes"]:
        """The undiscounted return of every episode, in float64."""
        total = self.reward.new_zeros(self.num_episodes, dtype=torch.float64)
        return total.index_add(0, self.episode, self.reward.double())

    def windows(
        self, episode: Int[Tensor, " n"], start: Int[Tensor, " n"], length: int, *, following: bool = False
    ) -> Trajectories:
        """``length`` steps of each episode from step ``start`` on, [n, length], padded on the right with zeros.

        ``extras`` are the store's, and ``timestep`` [n, length], the number of the step in its episode unless the store
        has its own; with ``following`` also ``next_observation`` [n, length, ...], what each step led to (of a tensor
        observation).
        """
        timestep = start[:, None] + torch.arange(length, device=start.device)
        inside = timestep < self.length[episode][:, None]
        row = torch.minimum(self.first[episode][:, None] + timestep, (self.first + self.length - 1)[episode][:, None])
        padded = None if inside.all() else ~inside

        def gathered(tensor: Tensor, rows: Tensor) -> Tensor:
            found = tensor.index_select(0, rows.flatten()).view(*rows.shape, *tensor.shape[1:])
            return found if padded is None else found.masked_fill(_like(padded, found), 0)

        seen = row + episode[:, None]  # every episode before has one observation more than steps
        reward = gathered(self.reward, row)
        own = {"timestep": timestep * inside}
        if following:
            if not isinstance(self.observation, Tensor):
                raise DatasetError("next_observation: valid with observations that are one tensor, not a dict")
            own["next_observation"] = gathered(self.observation, seen + 1)
        return Trajectories(
            observation=each_key(lambda each: gathered(each[0], seen), [self.observation]),
            action=gathered(self.action, row),
            reward=reward,
            mask=inside,
            log_prob=torch.zeros_like(reward),
            terminated=gathered(self.terminated, row),
            truncated=gathered(self.truncated, row),
            complete=padded is None,
            extras={**own, **{name: gathered(tensor, row) for name, tensor in self.extras.items()}},
        )

    def observation_at(self, episode: Int[Tensor, " n"], step: Int[Tensor, " n"]) -> Observation:
        """What was seen before that step of the episode, [n, ...]; ``step = length`` is the last observation."""
        rows = self.first[episode] + episode + step
        return _rows(self.observation, rows)

    def observations_before(self) -> Observation:
        """What was seen before every step, [steps, ...]."""
        return _rows(self.observation, torch.arange(self.num_steps, device=self.length.device) + self.episode)

    def select(self, episodes: Int[Tensor, " n"]) -> EpisodeStore:
        """Some of the episodes, in this order."""
        length = self.length[episodes]
        offset = torch.arange(int(length.sum()), device=length.device) - (length.cumsum(0) - length).repeat_interleave(
            length
        )
        steps = self.first[episodes].repeat_interleave(length) + offset
        seen_length = length + 1
        seen_offset = torch.arange(int(seen_length.sum()), device=length.device) - (
            seen_length.cumsum(0) - seen_length
        ).repeat_interleave(seen_length)
        seen = (self.first + torch.arange(self.num_episodes, device=length.device))[episodes]
        seen = seen.repeat_interleave(seen_length) + seen_offset
        return dataclasses.replace(
            self,
            observation=each_key(lambda each: each[0][seen], [self.observation]),
            action=self.action[steps],
            reward=self.reward[steps],
            terminated=self.terminated[steps],
            truncated=self.truncated[steps],
            length=length,
            extras={name: tensor[steps] for name, tensor in self.extras.items()},
        )

    def to(self, device: torch.device | str) -> EpisodeStore:
        """On another device."""
        changes: dict[str, Any] = {
            each.name: value.to(device)
            for each in dataclasses.fields(self)
            if isinstance(value := getattr(self, each.name), Tensor)
        }
        changes["observation"] = each_key(lambda each: each[0].to(device), [self.observation])
        changes["extras"] = {name: tensor.to(device) for name, tensor in self.extras.items()}
        return dataclasses.replace(self, **changes)

    def normalized_score(self, returns: float) -> float:
        """100 (R - random) / (expert - random), with the scores that the data's ``info`` names.

        Raises:
            DatasetError: it names none.
        """
        low, high = self.info.get("random_score"), self.info.get("expert_score")
        if low is None or high is None or low == high:
            raise DatasetError(f"info: random_score = {low}, expert_score = {high}; valid: two different numbers")
        return 100 * ((returns - float(low)) / (float(high) - float(low)))

    def _report(self, name: str, tensor: Tensor) -> None:
        row = int((~tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else ~tensor.isfinite()).nonzero()[0])
        length = self.length + 1 if name.startswith("observation") else self.length
        ends = length.cumsum(0)
        episode = int(torch.searchsorted(ends, row, right=True))
        step = row - int(ends[episode] - length[episode])
        raise DatasetError(f"{name} is not finite in episode {episode}, step {step}; valid: finite numbers")


def store_episodes(
    episodes: Sequence[Mapping[str, Any]],
    *,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    info: Mapping[str, Any] | None = None,
) -> EpisodeStore:
    """A store from single episodes: mappings with ``observation`` [T + 1, ...], ``action`` [T, ...], ``reward`` [T],
    ``terminated`` and ``truncated`` [T], and whatever else has [T, ...] rows, as arrays or tensors.

    Raises:
        DatasetError: no episode, or one whose fields do not fit together.
    """
    if not episodes:
        raise DatasetError("episodes is empty; valid: at least one episode")
    rows = [{name: _tensors(value) for name, value in episode.items()} for episode in episodes]
    for number, row in enumerate(rows):
        missing = {"observation", "action", "reward", "terminated", "truncated"} - set(row)
        if (
            missing
            or set(row) != set(rows[0])
            or set(_named(row["observation"])) != set(_named(rows[0]["observation"]))
        ):
            raise DatasetError(
                f"episode {number} has fields {sorted(row)}; valid: observation, action, reward, terminated, "
                "truncated, and the same others in every episode"
            )
        steps = len(row["reward"])
        for name, value in row.items():
            for key, tensor in _named(value, name).items():
                wanted = steps + 1 if name == "observation" else steps
                if len(tensor) != wanted:
                    raise DatasetError(f"episode {number}: {key} has {len(tensor)} rows; valid: {wanted}")

    def joined(name: str) -> Any:
        return each_key(lambda tensors: torch.cat(list(tensors)), [row[name] for row in rows])

    own = ("observation", "action", "reward", "terminated", "truncated")
    return EpisodeStore(
        **{name: joined(name) for name in own},
        length=torch.tensor([len(row["reward"]) for row in rows]),
        observation_space=observation_space,
        action_space=action_space,
        extras={name: joined(name) for name in rows[0] if name not in own},
        info=dict(info or {}),
    )


def _rows(observation: Observation, rows: Tensor) -> Observation:
    if isinstance(observation, Tensor):
        return observation.index_select(0, rows)
    return {key: tensor.index_select(0, rows) for key, tensor in observation.items()}


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(each) for key, each in value.items()}
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _named(value: Any, name: str = "observation") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    return {f"{name}[{key!r}]": tensor for key, tensor in value.items()}


def _check_shapes(value: Any, space: spaces.Space[Any], name: str) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or set(value) != set(space.spaces):
            raise DatasetError(f"{name} does not have the keys {sorted(space.spaces)} of its space")
        for key, each in space.spaces.items():
            _check_shapes(value[key], each, f"{name}[{key!r}]")
    elif not isinstance(value, Tensor) or (space.shape is not None and tuple(value.shape[1:]) != tuple(space.shape)):
        found = tuple(value.shape[1:]) if isinstance(value, Tensor) else sorted(value)
        raise DatasetError(f"{name} has shape {found} a step; valid: {space.shape}, the shape of {space}")


def _like(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.view(*mask.shape, *(1,) * (tensor.dim() - mask.dim()))
