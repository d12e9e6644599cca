"""Advantages of the edges of a tree of answers: a node against its siblings (SPO-tree, arXiv 2505.23564)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.groups import Groups, numbered
from decisionrl.pipeline.requirements import required, required_extra
from decisionrl.pipeline.returns import with_advantage

Baseline = Literal["rloo", "grpo"]


def tree_values(parent: Int[Tensor, " nodes"], leaf_reward: Float[Tensor, " nodes"]) -> Float[Tensor, " nodes"]:
    """V(leaf) = its reward, V(n) = mean of V over n's children; one pass for each level.

    Args:
        parent: the index of every node's parent, -1 for a root. Any number of trees.
        leaf_reward: NaN at inner nodes.

    Raises:
        ValueError: a node with neither a reward nor children, or a cycle.
    """
    child = parent >= 0
    mother = parent[child]
    children = torch.zeros_like(leaf_reward).index_add(0, mother, torch.ones_like(leaf_reward[child]))
    value = leaf_reward
    unknown = value.isnan()
    while unknown.any():
        # NaN until the values of all children are known
        mean = torch.zeros_like(value).index_add(0, mother, value[child]) / children
        value = torch.where(unknown, mean, value)
        left = value.isnan()
        if torch.equal(left, unknown):
            raise ValueError(f"no value for nodes {left.nonzero().flatten().tolist()}: neither a reward nor children")
        unknown = left
    return value


@dataclass(frozen=True, kw_only=True)
class TreeAdvantage:
    """``A(n) = V(n) - V(parent)``, V the mean reward of the leaves below, level by level (SPO-tree).

    Every row is an edge: the steps sampled from a node's parent to the node. ``extras["node"]`` and
    ``extras["parent"]`` [batch] name the two by integers that are unique within the row's group; the prompt, at which
    the tree begins, has no row and may be any other number, such as -1. ``extras["leaf_reward"]`` [batch] is the
    reward of an answer that ends at the node and NaN at inner nodes. All edges of a tree must be in the batch.
    The advantages of siblings sum to 0; ``batch.reward`` is not read.

    Attributes:
        baseline: "rloo" as above; "grpo" divides by the population standard deviation over the siblings + 1e-8.

    Raises:
        ValueError: an unknown baseline, a missing field, or rows that are no trees.
    """

    baseline: Baseline = "rloo"

    def __post_init__(self) -> None:
        if self.baseline not in get_args(Baseline):
            raise ValueError(f"baseline = {self.baseline!r}; valid: {', '.join(get_args(Baseline))}")

    def __call__(self, batch: Trajectories) -> Trajectories:
        group, trees = numbered(required(batch, "group", self))
        names = torch.cat([required_extra(batch, "node", self), required_extra(batch, "parent", self)])
        edges = batch.num_sequences
        distinct, index = torch.unique(torch.stack([group.repeat(2), names], 1), dim=0, return_inverse=True)
        node, mother = index[:edges], index[edges:]
        nodes = len(distinct)
        if len(torch.unique(node)) < edges:
            raise ValueError("extras['node'] names a node twice in one group; valid: one row for every edge")
        if nodes - edges != trees:
            raise ValueError(
                f"{nodes - edges} nodes without a row in {trees} groups; valid: one in every group, the prompt, "
                "from which extras['parent'] leads to all others"
            )
        reward = required_extra(batch, "leaf_reward", self)
        parent = torch.full_like(index, -1)[:nodes].scatter(0, node, mother)
        value = tree_values(parent, reward.new_full((nodes,), torch.nan).scatter(0, node, reward))[node]
        siblings = Groups(mother, torch.ones_like(value), nodes)
        advantage = siblings.centered(value)
        if self.baseline == "grpo":
            advantage = advantage / (siblings.std(value, population=True) + 1e-8)
        return with_advantage(batch, advantage.unsqueeze(1))
