"""Feasibility layers: from what a policy would like to ship to what its nodes can ship.

Each is a differentiable function of tensors with any leading dimensions (HDPO, arXiv 2306.11246, appendices A
and C). Edges from the outside supplier are never limited.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-10
TINY_WISH = 1e-6
"""Added to the wishes of a hub that must ship everything, so that wishes of 0 still share its stock evenly."""


def proportional(
    wanted: Float[Tensor, "... edges"],
    on_hand: Float[Tensor, "... nodes"],
    source: Float[Tensor, "edges nodes"],
    keep: Float[Tensor, "... nodes"] | None = None,
    ship_all: Float[Tensor, " nodes"] | None = None,
) -> Float[Tensor, "... edges"]:
    """Scale the outflow of each node down to what it has: q_e min(1, I / sum_e' q_e').

    wanted: non-negative orders. source: 1 where edge e ships from node n. keep: a weight per node that
    competes for the stock but is not shipped. ship_all: 1 for hubs that may not hold stock, whose outflow is
    scaled up to all they have as well. Stock below 0 (backlog) ships nothing.
    """
    if ship_all is not None:
        wanted = wanted + TINY_WISH * (source @ ship_all)
    total = wanted @ source
    if keep is not None:
        total = total + keep
    stock = on_hand.clamp(min=0)
    limit = (stock / (total + EPSILON)).clamp(max=1)
    if ship_all is not None:
        limit = torch.where(ship_all > 0, stock / torch.where(ship_all > 0, total, 1.0), limit)
    unlimited = 1.0 - source.sum(1)
    return wanted * torch.nn.functional.linear(limit, source, unlimited)


def softmax(
    logits: Float[Tensor, "... edges"],
    on_hand: Float[Tensor, "... nodes"],
    groups: Sequence[tuple[int, Sequence[int]]],
    ship_all: Sequence[bool],
    hold_logit: float = 1.0,
) -> list[tuple[Sequence[int], Float[Tensor, "... group"]]]:
    """Split each node's stock by a softmax over its outgoing edges and a constant logit for what stays.

    groups: (node, its outgoing edges). ship_all: by node, hubs have no share that stays. Returns, for each
    group, its edges and the shipments over them.
    """
    shipments = []
    for node, edges in groups:
        chosen = logits[..., list(edges)]
        if not ship_all[node]:
            hold = torch.full_like(chosen[..., :1], hold_logit)
            shares = torch.cat([chosen, hold], -1).softmax(-1)[..., :-1]
        else:
            shares = chosen.softmax(-1)
        shipments.append((edges, shares * on_hand[..., node : node + 1].clamp(min=0)))
    return shipments
