"""Point-mass tasks that need memory, as functions of tensors: what is hidden, what counts as success, who shows it.

A point p in [-1.2, 1.2]^2 moves by at most ``step_length`` along each axis: p' = clip(p + step_length a + noise). Only
p is seen; what the next move depends on has been seen some steps ago, or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

ARENA = 1.2
"""Positions are clipped to [-ARENA, ARENA]."""

REACHED = 0.15
"""A place is reached within this distance."""

SPREAD = 0.08
"""Starts are uniform within this distance of their center along each axis."""

STEP_LENGTH = 0.3
"""The step length that time limits are given for."""

Progress = tuple[Tensor, ...]
"""What a task keeps of every copy beside its position: tensors [copies]."""


class Verdict(NamedTuple):
    """What a position brings about: the progress so far, and whether the episode ends in success or failure."""

    progress: Progress
    success: Bool[Tensor, " copies"]
    failure: Bool[Tensor, " copies"]


class MemoryTask(Protocol):
    """A task of a point mass.

    Attributes:
        step_length: how far a step goes along each axis, at most.
        max_steps: steps after which an episode is truncated.
        hidden_space: of the hidden variable.
    """

    @property
    def step_length(self) -> float: ...

    @property
    def max_steps(self) -> int: ...

    @property
    def hidden_space(self) -> spaces.Box: ...

    def start(self, uniform: Float[Tensor, "copies 3"]) -> tuple[Float[Tensor, "copies 2"], Progress]:
        """First positions from numbers that are uniform on (0, 1]."""
        ...

    def judge(self, position: Float[Tensor, "copies 2"], progress: Progress) -> Verdict:
        """What it means to have come to these positions."""
        ...

    def hidden(self, progress: Progress) -> Float[Tensor, " copies"]:
        """What a policy would have to see in order to need no memory beyond its last two observations."""
        ...

    def expert(self, start: Float[Tensor, "copies 2"], generator: torch.Generator) -> WayPoints:
        """Somebody who solves the task from there."""
        ...


class WayPoints:
    """Goes from place to place in straight lines, [copies, places, 2], waiting as long as ``waits`` [copies, places].

    The last step to a place lands on it exactly but for the noise, and so does every step of waiting: where the point
    is then says nothing about where it came from.
    """

    def __init__(
        self, places: Float[Tensor, "copies places 2"], waits: Int[Tensor, "copies places"], *, step_length: float
    ) -> None:
        self._places, self._waits, self._step_length = places, waits, step_length
        self._copies = torch.arange(len(places), device=places.device)
        self._next = torch.zeros_like(self._copies)
        self._waited = torch.zeros_like(self._copies)

    def act(self, position: Float[Tensor, "copies 2"]) -> Float[Tensor, "copies 2"]:
        """(w - p) / step_length for the next place w, scaled down to norm 1."""
        ahead = self._places[self._copies, self._next] - position
        distance = torch.linalg.vector_norm(ahead, dim=1)
        landing = distance <= self._step_length
        waiting = landing & (self._waited < self._waits[self._copies, self._next])
        moving_on = landing & ~waiting & (self._next < self._places.shape[1] - 1)
        self._waited = torch.where(moving_on, 0, self._waited + waiting.long())
        self._next = self._next + moving_on.long()
        action: Tensor = ahead / distance.clamp(min=self._step_length)[:, None]
        return action


class ReturnProgress(NamedTuple):
    """``side`` is +1 or -1; ``stayed`` counts the steps that ended at the hub."""

    side: Int[Tensor, " copies"]
    stayed: Int[Tensor, " copies"]


@dataclass(frozen=True, kw_only=True)
class ReturnSide:
    """Go to the hub and back to where you came from.

    The point starts at (0.75 s, 0) with s = +1 or -1, goes through the junction (0, 0) to the hub (0, 0.55), stays
    there for ``delay`` steps more, and returns to (0.75 s, 0). Coming to x s < -0.35 after the hub is failure.

    The expert lands on the junction before the hub, so what it sees from there on says nothing about s: who imitates it
    from windows that do not reach back any further succeeds in half of the episodes at the most. When it decides at the
    junction, the last observation beside it is the first of a window of 6 or 7 (of 10 to 13 at step length 0.15), plus
    ``delay``. A policy that does not imitate can use the world as its notebook, say by passing the hub on the left or
    on the right; the bound is not about those.

    Args:
        step_length: 0.3, or 0.15 for longer episodes.
        delay: D, steps more at the hub.
    """

    step_length: float = STEP_LENGTH
    delay: int = 0

    HUB = (0.0, 0.55)
    """Two steps of length 0.3 from the junction, whatever the noise."""

    SIDE = 0.75
    """How far the start is from the junction."""

    WRONG = -0.35

    def __post_init__(self) -> None:
        _check_step_length(self.step_length)
        if self.delay < 0:
            raise ValueError(f"delay = {self.delay}; valid: a whole number >= 0")

    @property
    def max_steps(self) -> int:
        return self.delay + round(22 * STEP_LENGTH / self.step_length)

    @property
    def hidden_space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (), np.float32)

    def start(self, uniform: Float[Tensor, "copies 3"]) -> tuple[Float[Tensor, "copies 2"], Progress]:
        side = torch.where(uniform[:, 0] > 0.5, 1, -1)
        offset = SPREAD * (2 * uniform[:, 1:] - 1)
        position = torch.stack([side * (self.SIDE + offset[:, 0]), offset[:, 1]], 1)
        return position, ReturnProgress(side, torch.zeros_like(side))

    def judge(self, position: Float[Tensor, "copies 2"], progress: Progress) -> Verdict:
        side, stayed = progress
        returning = stayed > self.delay
        stayed = stayed + _reached(position, self.HUB).long()
        along = position[:, 0] * side
        home = torch.stack([along, position[:, 1]], 1)
        return Verdict(
            ReturnProgress(side, stayed),
            success=returning & _reached(home, (self.SIDE, 0.0)),
            failure=returning & (along < self.WRONG),
        )

    def hidden(self, progress: Progress) -> Float[Tensor, " copies"]:
        """s."""
        return progress[0].float()

    def expert(self, start: Float[Tensor, "copies 2"], generator: torch.Generator) -> WayPoints:
        """Waits ``delay`` steps at the hub and 0 or 1 more (0 to 2 at step length 0.15)."""
        return self.way_points(start[:, 0].sign(), start, generator)

    def way_points(
        self, side: Float[Tensor, " copies"], start: Float[Tensor, "copies 2"], generator: torch.Generator
    ) -> WayPoints:
        """What the expert does, but in the end goes to these sides."""
        junction, hub = start.new_zeros(2), start.new_tensor(self.HUB)
        way = torch.stack([junction, hub, junction, start.new_tensor([self.SIDE, 0.0])]).repeat(len(start), 1, 1)
        way[:, -1, 0] *= side
        waits = torch.zeros(way.shape[:2], dtype=torch.int64, device=start.device)
        waits[:, 1] = self.delay + _waits((len(start),), self.step_length, generator).to(start.device)
        return WayPoints(way, waits, step_length=self.step_length)


class CountProgress(NamedTuple):
    """``visits`` so far, and whether the point has been home since the last one: ``armed``."""

    visits: Int[Tensor, " copies"]
    armed: Bool[Tensor, " copies"]


@dataclass(frozen=True, kw_only=True)
class CountVisits:
    """Go from home to the bowl and back ``visits`` times, then to the exit.

    The point starts at (0, -0.45); home is (0, 0), the bowl (-0.45, 0), the exit (0.6, 0). Coming to the bowl is a
    visit if the point has been home since the last one. Success is to come to the exit after exactly n visits; one
    visit more, or coming to x > 0.35 before the n-th, is failure.

    The expert lands on home, so its windows after the visits are alike unless they span a whole trip, which is 5 to 6
    observations at step length 0.3. Somebody with shorter ones who goes to the bowl again with probability q succeeds
    with probability q^(n-1) (1 - q), which is at most 1/4 for n = 2 and ((n-1)/n)^(n-1) / n in general.

    Args:
        step_length: 0.3, or 0.15 for longer episodes.
        visits: n, from 1 to 4.
    """

    step_length: float = STEP_LENGTH
    visits: int = 2

    START = (0.0, -0.45)
    HOME = (0.0, 0.0)
    BOWL = (-0.45, 0.0)
    EXIT = (0.6, 0.0)
    EARLY = 0.35

    def __post_init__(self) -> None:
        _check_step_length(self.step_length)
        if self.visits not in range(1, 5):
            raise ValueError(f"visits = {self.visits}; valid: 1, 2, 3, 4")

    @property
    def max_steps(self) -> int:
        return round((10 + 6 * self.visits) * STEP_LENGTH / self.step_length)

    @property
    def hidden_space(self) -> spaces.Box:
        return spaces.Box(0, self.visits + 1, (), np.float32)

    def start(self, uniform: Float[Tensor, "copies 3"]) -> tuple[Float[Tensor, "copies 2"], Progress]:
        position = uniform.new_tensor(self.START) + SPREAD * (2 * uniform[:, 1:] - 1)
        visits = torch.zeros(len(uniform), dtype=torch.int64, device=uniform.device)
        return position, CountProgress(visits, torch.ones_like(visits, dtype=torch.bool))

    def judge(self, position: Float[Tensor, "copies 2"], progress: Progress) -> Verdict:
        visits, armed = progress
        visiting = armed & _reached(position, self.BOWL)
        visits, armed = visits + visiting.long(), (armed & ~visiting) | _reached(position, self.HOME)
        return Verdict(
            CountProgress(visits, armed),
            success=(visits == self.visits) & _reached(position, self.EXIT),
            failure=(visits > self.visits) | ((visits < self.visits) & (position[:, 0] > self.EARLY)),
        )

    def hidden(self, progress: Progress) -> Float[Tensor, " copies"]:
        """The visits so far."""
        return progress[0].float()

    def expert(self, start: Float[Tensor, "copies 2"], generator: torch.Generator) -> WayPoints:
        """Waits 0 or 1 steps (0 to 2 at step length 0.15) at the bowl every time."""
        visits = torch.full((len(start),), self.visits, device=start.device)
        return self.way_points(visits, start, generator)

    def way_points(
        self, visits: Int[Tensor, " copies"], start: Float[Tensor, "copies 2"], generator: torch.Generator
    ) -> WayPoints:
        """What the expert does, but with these numbers of visits."""
        home, bowl, leave = (start.new_tensor(place) for place in (self.HOME, self.BOWL, self.EXIT))
        trips = int(visits.max())
        way = torch.stack([*[home, bowl] * trips, home, leave]).repeat(len(start), 1, 1)
        leaving = torch.arange(2 * trips + 2, device=start.device) > 2 * visits[:, None]
        way = torch.where(leaving[..., None], leave, way)
        waits = torch.zeros(way.shape[:2], dtype=torch.int64, device=start.device)
        waits[:, 1:-2:2] = _waits((len(start), trips), self.step_length, generator).to(start.device)
        return WayPoints(way, waits, step_length=self.step_length)


TASKS: dict[str, type[ReturnSide] | type[CountVisits]] = {"return_side": ReturnSide, "count_visits": CountVisits}
"""By the name that their ids are made of."""


def made_task(name: str, options: dict[str, Any]) -> ReturnSide | CountVisits:
    """The task of that name. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"task = {name!r}; valid: {', '.join(TASKS)}")
    return TASKS[name](**options)


def _reached(position: Float[Tensor, "copies 2"], place: tuple[float, float]) -> Bool[Tensor, " copies"]:
    reached: Tensor = torch.linalg.vector_norm(position - position.new_tensor(place), dim=1) < REACHED
    return reached


def _waits(shape: tuple[int, ...], step_length: float, generator: torch.Generator) -> Int[Tensor, ...]:
    """0 or 1 each, and up to as many more as the steps are shorter."""
    return torch.randint(round(STEP_LENGTH / step_length) + 1, shape, generator=generator)


def _check_step_length(step_length: float) -> None:
    if not 0.05 <= step_length <= STEP_LENGTH:
        raise ValueError(f"step_length = {step_length}; valid: 0.05 to {STEP_LENGTH}")
