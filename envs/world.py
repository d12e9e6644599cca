"""The batched world that sources step: N copies of an environment, as torch tensors on one device.

A world never resets a copy on its own where it can help it: ``step`` returns the state that the action led to, and the
caller restarts the copies whose episodes ended. So the final observation of an episode is always there, and every
episode can have a seed of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Observation = Tensor | dict[str, Tensor]
"""[copies, ...], or one such tensor for each key of a Dict space: float32, uint8, or else int64."""


class Step(NamedTuple):
    """What one step of all copies led to. The tensors may be overwritten by the next call.

    ``observation`` is the state that the action led to, for copies whose episode ended its last one. ``over`` lists
    those copies, so that whoever steps need not read a device to know. ``skipped`` marks copies that only reset in
    this step, whose action was ignored; None if there are none.
    """

    observation: Observation
    reward: Float[Tensor, " copies"]
    terminated: Bool[Tensor, " copies"]
    truncated: Bool[Tensor, " copies"]
    over: Sequence[int]
    skipped: Bool[Tensor, " copies"] | None = None


class World(Protocol):
    """N copies of an environment.

    Attributes:
        name: for messages.
        num_envs: N.
        observation_space, action_space: of one copy.
        seedable: whether ``restart`` heeds its seeds. Where it is False the world draws starts itself, from the
            first seed of ``reset``.
    """

    name: str
    num_envs: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    seedable: bool

    @property
    def device(self) -> torch.device: ...

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Begin an episode in every copy, each from its own seed."""
        ...

    def step(self, action: Tensor, *, idle: Collection[int] = ()) -> Step:
        """Act in every copy: elements of ``action_space``, [copies, ...]; those of a Box are clipped to it.

        idle: copies of whom nothing more is wanted; they are not in ``over``, and their rows mean nothing.
        """
        ...

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Observation:
        """Begin new episodes in some copies; the observation of all copies."""
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """What ``load_state_dict`` needs to stand where this world stands; None where that cannot be saved."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> Observation:
        """Return to a saved state; the current observation of all copies."""
        ...

    def close(self) -> None: ...


class EnvironmentFault(RuntimeError):
    """An environment that failed or broke the interface; names the environment, the copy, the step and the field."""


class UnsupportedSpaceError(ValueError):
    """A space that no world can carry as tensors."""


SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and for observations Dict of these"


def check_space(space: gymnasium.Space[Any], field: str, name: str, *, nested: bool = True) -> None:
    """Raise UnsupportedSpaceError unless tensors can carry the space."""
    spaces = gymnasium.spaces
    if nested and isinstance(space, spaces.Dict) and space.spaces:
        for key, inner in space.spaces.items():
            check_space(inner, f"{field}[{key!r}]", name, nested=False)
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise UnsupportedSpaceError(f"{name}: {field} is {space}; valid: {SUPPORTED}")
