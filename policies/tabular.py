"""A policy of finitely many states and stages as a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TabularPolicy(nn.Module):
    """pi_h(a | s), for one run or for many at once, kept as a table that methods without gradients write.

    Args:
        shape: [*, H, S, A]. The table begins uniform.
    """

    table: Float[Tensor, "*batch H S A"]

    def __init__(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.register_buffer("table", torch.full(tuple(shape), 1 / shape[-1], dtype=torch.float64, device=device))

    def probabilities(self) -> Float[Tensor, "*batch H S A"]:
        """The table itself; whoever keeps it must copy it."""
        return self.table
