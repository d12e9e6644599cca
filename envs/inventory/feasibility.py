"""What nodes can ship of what was ordered from them: the meaning of an action in the inventory worlds."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.inventory.network import Network


class Rationing:
    """Turn any real-valued order into one that can be (HDPO, arXiv 2306.11246, appendix A, "proportional").

    For edge e out of node n with I_n units on hand, an order w_e becomes

        q_e = max(w_e, 0) min(1, max(I_n, 0) / sum_e' max(w_e', 0)),   e' over the edges out of n.

    A hub that may not hold stock ships all it has: the minimum with 1 is dropped there, and if nothing is
    ordered from it, its stock is split evenly over its edges. Orders to the outside supplier are only clipped
    at 0. Differentiable in w and I almost everywhere.
    """

    NOTHING = 1e-9
    """Orders to a hub that sum to less than this count as none."""

    def __init__(self, network: Network, *, device: torch.device | str, dtype: torch.dtype) -> None:
        source = torch.zeros(network.num_edges, network.num_nodes, device=device, dtype=dtype)
        for edge, node in enumerate(network.edge_source):
            if node >= 0:
                source[edge, node] = 1.0
        self._source = source  # [edges, nodes]
        self._from_supplier = 1.0 - source.sum(1)
        self._internal = bool(source.any())
        self._hub = torch.tensor(network.must_ship_all, device=device)
        self._any_hub = any(network.must_ship_all)

    def __call__(
        self, wanted: Float[Tensor, "... edges"], on_hand: Float[Tensor, "... nodes"]
    ) -> Float[Tensor, "... edges"]:
        """The units shipped over each edge when ``wanted`` units are ordered and ``on_hand`` are there."""
        wanted = wanted.clamp(min=0)
        if not self._internal:
            return wanted
        total = wanted @ self._source
        if self._any_hub:
            idle = (self._hub & (total < self.NOTHING)).to(wanted.dtype)
            wanted = wanted + idle @ self._source.T
            total = wanted @ self._source
        share = on_hand.clamp(min=0) / torch.where(total > 0, total, 1.0)
        limit = torch.where(self._hub, share, share.clamp(max=1))
        return wanted * (limit @ self._source.T + self._from_supplier)
