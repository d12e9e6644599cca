"""A scripted pusher for Push-T, which knows the shape of the block and how it moves.

Points of the plane are complex numbers x + iy, in pixels, and a rotation is e^(i angle). The block's frame moves with
it; its origin is the center of mass.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path

Complex: TypeAlias = NDArray[np.complex128]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

SIDE = 512.0
"""The arena reaches from 0 to SIDE (1 + i)."""

WALL = 12.0
"""The block is not pushed any closer to the edge of the arena; its walls begin at 7."""

AGENT_RADIUS = 15.0

INERTIA = 3000.0
"""The block's moment of inertia divided by its mass."""

CENTER_OF_MASS = 45j
"""In gym-pusht's coordinates of the T, whose bar is 120 wide and 30 high and begins at 0, with a stem 30 x 90."""

BLOCK: Complex = np.array([-60, 60, 60 + 30j, 15 + 30j, 15 + 120j, -15 + 120j, -15 + 30j, -60 + 30j]) - CENTER_OF_MASS
"""The vertices, in the block's frame."""


@dataclass(frozen=True)
class Pose:
    """Where the center of mass is and how the block is turned; or a motion, which is a pose in the block's frame.

    Both are arrays of any shape: as many poses.
    """

    center: Complex
    turn: Complex

    def at(self, point: Complex | complex) -> Complex:
        """Where a point of the block's frame is in the plane."""
        return self.center + self.turn * point

    def local(self, point: Complex | complex) -> Complex:
        """What a point of the plane is in the block's frame."""
        return (point - self.center) * self.turn.conj()

    def then(self, motion: Pose) -> Pose:
        """After a motion."""
        return Pose(self.at(motion.center), self.turn * motion.turn)

    def select(self, index: Any) -> Pose:
        """Some of the poses, by what indexes both arrays."""
        return Pose(self.center[index], self.turn[index])


def pose_of(position: complex, angle: float) -> Pose:
    """From gym-pusht's position and angle of the block."""
    turn = np.exp(1j * np.float64(angle))
    return Pose(np.asarray(position + turn * CENTER_OF_MASS), np.asarray(turn))


GOAL = pose_of(256 + 256j, np.pi / 4)


def pushed(contact: Complex, inward: Complex, depth: Floats | float) -> Pose:
    """The motion of the block when a contact with it advances ``depth`` pixels along the inward unit normal n.

    There is no friction at the contact, and the block stands still unless it is pushed. An impulse J along n at r from
    the center of mass gives it the velocity J n / m and the angular velocity J (r x n) / I. Contact and normal being
    fixed in the block's frame, so is this twist: the block turns around a point that stays where it is.
    """
    lever = (contact.conj() * inward).imag
    way = depth / (1 + lever**2 / INERTIA)  # of the center of mass, along its arc
    half = way * lever / INERTIA / 2
    chord = way * np.sinc(half / np.pi)
    return Pose(chord * inward * np.exp(1j * half), np.exp(2j * half))


FACES = (
    (-56, 56, 1j),
    (39 + 30j, 57 + 30j, -1j),
    (-57 + 30j, -39 + 30j, -1j),
    (15 + 54j, 15 + 117j, -1),
    (-15 + 54j, -15 + 117j, 1),
    (-12 + 120j, 12 + 120j, -1j),
    (60 + 3j, 60 + 27j, -1),
    (-60 + 3j, -60 + 27j, 1),
)
"""Where the agent may touch the T: from one point of the outline to another, and the inward normal there. The other
parts are too close to an edge, or to the other leg of an inner corner."""

_ALONG = [np.linspace(start, end, int(abs(end - start) // 8) + 2) - CENTER_OF_MASS for start, end, _ in FACES]
CONTACT: Complex = np.concatenate(_ALONG)
INWARD: Complex = np.repeat([inward for *_, inward in FACES], [len(points) for points in _ALONG])
"""[contact]: the contacts that are tried, at most 8 pixels apart, and their normals."""

_DEPTHS = np.array([2, 4, 6, 9, 13, 18, 24, 32, 42, 55, 70, 90, 115, 145.0])
TOUCHED = np.repeat(np.arange(len(CONTACT)), len(_DEPTHS))
DEPTH = np.tile(_DEPTHS, len(CONTACT))
"""[push]: the pushes that are tried, every contact with every depth."""

MOTION = pushed(CONTACT[TOUCHED], INWARD[TOUCHED], DEPTH)

GAP = 8.0
"""Between agent and block, when it is not pushing."""

BEFORE: Complex = CONTACT - (AGENT_RADIUS + GAP) * INWARD
"""[contact]: where the agent stands before it pushes."""

_OUTWARD = np.array([-1 - 1j, 1 - 1j, 1 + 1j, 1 + 1j, -1 + 1j, -1 + 1j])
PLACES: Complex = np.concatenate([BEFORE, BLOCK[[0, 1, 2, 4, 5, 7]] + (AGENT_RADIUS + GAP + 3) * _OUTWARD])
"""[place]: these, and one at each outer corner; between them the agent goes in straight lines."""

TRAVEL_SPEED = 20.0
PUSH_SPEED = 8.0
"""Pixels in a control step."""

PAUSE, REST = 2, 4
"""Control steps before a push, in which the agent comes to a halt, and after it."""

PUSH_STEPS = (DEPTH + GAP) / PUSH_SPEED + PAUSE + REST
"""[push]: how long each takes."""

ERROR_STEPS = 10.0
"""A pixel off the goal is worth as many control steps."""

TURN_RADIUS = 50.0
"""Being turned by an angle counts as much as it moves a point at that distance, in pixels."""


def blocked(start: Complex, end: Complex) -> Bools:
    """Whether the block is in the way of the agent between two points of its frame."""
    start, way = np.broadcast_arrays(start, end - start)
    margin = (AGENT_RADIUS + GAP - 1e-3) * (1 + 1j)
    hit = np.zeros(start.shape, np.bool_)
    for low, high in ((BLOCK[0], BLOCK[2]), (BLOCK[6], BLOCK[4])):  # bar and stem
        enter, leave = np.zeros(start.shape), np.ones(start.shape)
        for axis in ("real", "imag"):
            speed = getattr(way, axis)
            speed = np.where(np.abs(speed) < 1e-9, 1e-9, speed)
            times = [getattr(bound - start, axis) / speed for bound in (low - margin, high + margin)]
            enter, leave = np.maximum(enter, np.minimum(*times)), np.minimum(leave, np.maximum(*times))
        hit |= enter < leave
    return hit


def links(start: Complex, end: Complex) -> Floats:
    """Lengths of straight lines between points of the block's frame, infinite where it is in the way."""
    return np.where(blocked(start, end), np.inf, np.abs(end - start).clip(min=1e-6))  # 0 would mean: no link


_LINKS = links(PLACES[:, None], PLACES)
_BETWEEN_STEPS = shortest_path(_LINKS)[: len(BEFORE), : len(BEFORE)] / TRAVEL_SPEED


class PushTExpert:
    """Pushes the block onto its outline, one push after another; an expert of one episode.

    Before every push it looks for the best one or two in a row, of about 800: the steps that they take, and the error
    that they leave. It carries out the first, and looks again. Where no push is possible, it stays for a few steps.
    """

    def __init__(self) -> None:
        self._targets: deque[complex] = deque()

    def act(self, state: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Where the agent is to go, [2] in [0, 512].

        Args:
            state: agent, block and its angle [5], as in ``PushTEnv.state`` and the observation ``"state"``.

        Raises:
            ValueError: it has another shape, or is not finite.
        """
        if np.shape(state) != (5,) or not np.isfinite(state).all():
            raise ValueError(f"state = {state}; valid: 5 finite numbers")
        if not self._targets:
            x, y, block_x, block_y, angle = map(float, state)
            self._targets.extend(_planned(np.asarray(x + 1j * y), pose_of(block_x + 1j * block_y, angle)))
        target = self._targets.popleft()
        return np.array([target.real, target.imag]).clip(0, SIDE).astype(np.float32)


def _planned(agent: Complex, pose: Pose) -> Complex:
    """Targets of the agent for the next push."""
    length, previous = _ways(agent, pose)
    push = _best_push(pose, length / TRAVEL_SPEED)
    if push is None:
        return np.full(REST, agent)
    way, place = [], TOUCHED[push]
    while place != len(PLACES):
        way.append(pose.at(PLACES[place]))
        place = previous[place]
    return _targets([agent, *reversed(way)], pose, push)


def _ways(agent: Complex, pose: Pose) -> tuple[Floats, NDArray[np.int32]]:
    """Lengths of the shortest ways of the agent to before the contacts, and the place before each place [place + 1].

    The agent itself counts as the last place. From where it is too close to the block, it first backs off.
    """
    start = pose.local(agent)
    step = links(start, PLACES)
    if blocked(start, start):
        nearest = np.where(_margin(pose.at(BEFORE)) > 0, np.abs(BEFORE - start), np.inf).argmin()
        step = np.full(len(PLACES), np.inf)
        step[nearest] = np.abs(BEFORE[nearest] - start)
    graph = np.full((len(PLACES) + 1,) * 2, np.inf)
    graph[:-1, :-1], graph[-1, :-1] = _LINKS, step
    graph[:, :-1][:, _margin(pose.at(PLACES)) <= 0] = np.inf
    length, previous = shortest_path(graph, indices=len(PLACES), return_predecessors=True)
    return length[: len(BEFORE)], previous


def _best_push(pose: Pose, steps: Floats) -> int | None:
    """The first of the two pushes, or the one, that cost least, given the steps to before each contact."""
    once = pose.then(MOTION)
    room = _margin(once.at(BLOCK[:, None])).min(0)
    last = once.at((CONTACT - AGENT_RADIUS * INWARD)[TOUCHED])
    possible = (room > np.minimum(WALL, _margin(pose.at(BLOCK)).min())) & (_margin(last) > 0)
    first = np.flatnonzero(possible & np.isfinite(steps[TOUCHED]))
    if not len(first):
        return None
    once = once.select((first, None))
    between = np.where(_margin(once.at(BEFORE)) > 0, _BETWEEN_STEPS[TOUCHED[first]], np.inf)
    second = between[:, TOUCHED] + PUSH_STEPS + _error_steps(once.then(MOTION))
    least = np.minimum(_error_steps(once)[:, 0], second.min(1))
    return int(first[(steps[TOUCHED[first]] + PUSH_STEPS[first] + least).argmin()])


def _targets(way: list[Complex], pose: Pose, push: int) -> Complex:
    """Targets along the way and the push. They run ahead by one step; by two, the agent's lag, it would overshoot."""
    contact, inward = CONTACT[TOUCHED[push]], INWARD[TOUCHED[push]]
    depth = np.linspace(-GAP, DEPTH[push], int(np.ceil((GAP + DEPTH[push]) / PUSH_SPEED)) + 1)[1:]
    touching = contact - inward * (AGENT_RADIUS - depth.clip(max=0))
    pushing = pose.then(pushed(contact, inward, depth.clip(min=0))).at(touching)
    legs = [np.linspace(a, b, int(np.ceil(abs(b - a) / TRAVEL_SPEED)) + 1)[1:] for a, b in pairwise(way)]
    path = np.concatenate([way[:1], *legs, np.full(PAUSE, way[-1]), pushing, np.full(REST, pushing[-1])])
    return path[1:] + np.diff(path)


def _error_steps(pose: Pose) -> Floats:
    error = np.hypot(np.abs(pose.center - GOAL.center), TURN_RADIUS * np.abs(pose.turn - GOAL.turn))
    return ERROR_STEPS * error


def _margin(point: Complex) -> Floats:
    """Distance to the edge of the arena, negative beyond."""
    return SIDE / 2 - np.maximum(np.abs(point.real - SIDE / 2), np.abs(point.imag - SIDE / 2))
