"""Beam search in worlds that are made by hand: what greed misses, what a beam drops, and who wins a tie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from decisionrl.envs.gridworld.darkroom import GridFamily, dark_key_to_door, darkroom
from decisionrl.policies.in_context import beam_search

ACTIONS = 3
Plan = tuple[int, ...]
World = Mapping[Plan, float]
"""The reward of the last action of a plan; 0 where there is none."""

TRAP: World = {(0,): 1.0, (1, 2): 3.0}
"""The first action pays at once and then no more; the second pays only in the next step, and more."""

FAR: World = {(0,): 1.0, (2, 1, 0): 10.0}
"""The same, with the reward of waiting two steps further."""


@dataclass(frozen=True)
class Table:
    """An Imagination in which row i is in ``worlds[i]``; log has the plans that were followed."""

    worlds: list[World]
    plans: list[list[Plan]]
    log: list[list[list[Plan]]] = field(default_factory=list)

    @property
    def reward(self) -> Tensor:
        return torch.tensor(
            [
                [[world.get((*plan, action), 0.0) for action in range(ACTIONS)] for plan in plans]
                for world, plans in zip(self.worlds, self.plans, strict=True)
            ]
        )

    def followed(self, beam: Tensor, action: Tensor) -> Table:
        plans = [
            [(*before[b], a) for b, a in zip(beams, actions, strict=True)]
            for before, beams, actions in zip(self.plans, beam.tolist(), action.tolist(), strict=True)
        ]
        self.log.append(plans)
        return replace(self, plans=plans)


def search(
    *worlds: World, order: Plan = (0, 1, 2), depth: int | list[int], beams: int, max_depth: int | None = None
) -> tuple[list[int], Table]:
    """The first actions found, and the root."""
    depths = [depth] * len(worlds) if isinstance(depth, int) else depth
    root = Table(list(worlds), [[()] for _ in worlds])
    found = beam_search(
        root,
        order=torch.tensor([order] * len(worlds)),
        depth=torch.tensor(depths),
        max_depth=max_depth or max(depths),
        beams=beams,
    )
    return found.tolist(), root


@pytest.mark.parametrize(
    ("depth", "beams", "order", "first"),
    [
        (1, 9, (0, 1, 2), 0),  # one step sees the bait only
        (2, 9, (0, 1, 2), 1),
        (2, 1, (0, 1, 2), 0),  # a single beam is greedy
        (2, 2, (0, 1, 2), 1),
        (2, 2, (1, 2, 0), 1),
        (2, 2, (0, 2, 1), 0),  # of those that pay nothing yet, the one that comes later is dropped
        (2, 2, (2, 1, 0), 0),
        (2, 3, (2, 1, 0), 1),
        (3, 2, (0, 1, 2), 1),
    ],
)
def test_a_plan_of_two_steps(depth: int, beams: int, order: Plan, first: int) -> None:
    assert search(TRAP, depth=depth, beams=beams, order=order)[0] == [first]


@pytest.mark.parametrize(
    ("depth", "beams", "order", "first"),
    [
        (2, 27, (0, 1, 2), 0),
        (3, 27, (0, 1, 2), 2),
        (3, 3, (0, 2, 1), 0),  # what goes on from the bait fills the beams
        (3, 4, (0, 2, 1), 0),  # (2, 0) is kept, (2, 1) not yet
        (3, 5, (0, 2, 1), 2),
        (3, 5, (0, 1, 2), 0),  # (1, 0) and (1, 1) come before
        (3, 7, (0, 1, 2), 0),
        (3, 8, (0, 1, 2), 2),
        (3, 8, (2, 1, 0), 2),
    ],
)
def test_a_plan_of_three_steps(depth: int, beams: int, order: Plan, first: int) -> None:
    assert search(FAR, depth=depth, beams=beams, order=order)[0] == [first]


def test_returns_are_sums_of_all_steps() -> None:
    steady: World = {(0,): 2.0, (1,): 1.0, (1, 0): 1.0, (1, 0, 0): 1.0, (2, 2, 2): 2.5}
    assert search(steady, depth=1, beams=27)[0] == [0]
    assert search(steady, depth=3, beams=27)[0] == [1]
    losses: World = {(a,): -1.0 - a for a in range(3)} | {(0, a): -5.0 for a in range(3)} | {(2, 1): 2.5}
    assert search(losses, depth=1, beams=9)[0] == [0]
    assert search(losses, depth=2, beams=9)[0] == [2]
    assert search(losses, depth=2, beams=2)[0] == [1], "the best was third after one step"


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("beams", [1, 2, 27])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_between_equal_plans_the_first_of_the_order_decides(depth: int, beams: int, order: Plan) -> None:
    assert search({}, depth=depth, beams=beams, order=order)[0] == [order[0]]


def test_between_equal_plans_that_pay_the_order_of_their_first_actions_decides() -> None:
    equal: World = {(0, 2): 1.0, (2, 0): 1.0}
    for order, first in (((0, 1, 2), 0), ((0, 2, 1), 0), ((2, 0, 1), 2), ((1, 2, 0), 2)):
        assert search(equal, depth=2, beams=27, order=order)[0] == [first]


def test_later_actions_are_tried_in_the_order_of_their_numbers() -> None:
    _, root = search({}, depth=3, beams=2, order=(2, 0, 1))
    assert root.log == [[[(2,), (0,)]], [[(2, 0), (2, 1)]]]
    _, root = search({(0, 2): 1.0}, depth=3, beams=4, order=(2, 0, 1))
    assert root.log == [[[(2,), (0,), (1,)]], [[(0, 2), (2, 0), (2, 1), (2, 2)]]]


def test_rows_plan_as_far_as_they_may_and_do_not_see_each_other() -> None:
    late: World = {**TRAP, (0, 0, 0): 100.0}
    worlds, depths = [late, late, late, FAR, {}], [1, 2, 3, 3, 2]
    found, _ = search(*worlds, depth=depths, beams=27, order=(0, 2, 1))
    assert found == [0, 1, 0, 2, 0], "what comes after the end of a plan does not count"
    alone = [
        search(w, depth=d, beams=27, order=(0, 2, 1), max_depth=3)[0][0] for w, d in zip(worlds, depths, strict=True)
    ]
    assert found == alone


def test_a_search_stops_where_no_row_goes_on() -> None:
    _, root = search(FAR, TRAP, depth=[2, 1], beams=4, max_depth=9)
    assert len(root.log) == 1
    assert search(FAR, depth=1, beams=4, max_depth=9)[1].log == []


# ------------------------------------------------------------------------------------------------- known worlds


@dataclass(frozen=True)
class KnownWorld:
    """Plans in the true world. state: [n, b, 3]."""

    family: GridFamily
    task: Tensor
    state: Tensor

    @property
    def reward(self) -> Tensor:
        return self._all()[1]

    def followed(self, beam: Tensor, action: Tensor) -> KnownWorld:
        return replace(self, state=self._all()[0][torch.arange(len(beam))[:, None], beam, action])

    def _all(self) -> tuple[Tensor, Tensor]:
        state = self.state[:, :, None].expand(-1, -1, self.family.num_actions, -1)
        action = torch.arange(self.family.num_actions).expand(state.shape[:-1])
        return self.family.step(state, action, self.task[:, None, None])


def earned(family: GridFamily, *, beams: int) -> Tensor:
    """The return in every task of planning anew at each step, to the end of the episode."""
    task, generator = torch.arange(family.num_tasks), torch.Generator().manual_seed(0)
    state, total = family.start(torch.zeros(len(task), 2)), torch.zeros(len(task))
    for left in range(family.horizon, 0, -1):
        action = beam_search(
            KnownWorld(family, task, state[:, None]),
            order=torch.rand(len(task), family.num_actions, generator=generator).argsort(1),
            depth=torch.full_like(task, left),
            max_depth=family.horizon,
            beams=beams,
        )
        state, reward = family.step(state, action, task)
        total += reward
    return total


@pytest.mark.parametrize(
    "family", [dark_key_to_door(size=2, horizon=5, start="corner"), darkroom(size=3, horizon=4)], ids=["doors", "room"]
)
def test_an_exhaustive_search_in_the_true_world_earns_the_most(family: GridFamily) -> None:
    every = family.num_actions ** (family.horizon - 1)
    assert torch.equal(earned(family, beams=every), family.max_return)
    greedy = earned(family, beams=1)
    assert (greedy <= family.max_return).all()
    assert (greedy < family.max_return).any()
