"""Actions in units in which a data set fills [-1, 1], which samplers that clip rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Mode = Literal["limits", "gaussian"]
Constant = Literal["center", "error"]


class ConstantDimensionsError(ValueError):
    """Dimensions of data that do not vary, though they have to; ``dimensions`` are their numbers."""

    def __init__(self, dimensions: Sequence[int], *, range_eps: float) -> None:
        super().__init__(
            f"data is constant in dimensions {list(dimensions)} (within range_eps = {range_eps}); valid: values that "
            "vary in every dimension, or constant = 'center'"
        )
        self.dimensions = list(dimensions)


class LinearNormalizer(nn.Module):
    """``x -> scale x + offset`` in each dimension, fitted to data; before :meth:`fit` it is the identity.

    "limits" takes [min, max] to [-1, 1]: ``scale = 2 / (max - min)``, ``offset = -1 - scale min``. A dimension whose
    range is below ``range_eps`` is constant: with "center" it is only moved, ``scale = 1`` and ``offset = -min``, so
    that its value becomes 0. "gaussian" is ``(x - mean) / std`` with the population's std; a dimension whose std is
    below ``range_eps`` is only moved. As in Diffusion Policy (arXiv 2303.04137).

    Args:
        shape: of one action.
        mode: see above.
        range_eps: see above.
        constant: "error" refuses constant dimensions instead.

    Raises:
        ValueError: an option has no valid value.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        mode: Mode = "limits",
        range_eps: float = 1e-4,
        constant: Constant = "center",
    ) -> None:
        super().__init__()
        for name, value, valid in (("mode", mode, get_args(Mode)), ("constant", constant, get_args(Constant))):
            if value not in valid:
                raise ValueError(f"{name} = {value!r}; valid: {', '.join(valid)}")
        if not range_eps > 0:
            raise ValueError(f"range_eps = {range_eps}; valid: positive")
        self.mode, self.range_eps, self.constant = mode, range_eps, constant
        self.register_buffer("scale", torch.ones(*shape))
        self.register_buffer("offset", torch.zeros(*shape))

    @torch.no_grad()
    def fit(self, data: Float[Tensor, "*batch *shape"]) -> None:
        """Take the statistics of data [..., *shape] in place of those before.

        Raises:
            ValueError: there is no data.
            ConstantDimensionsError: a dimension is constant and ``constant`` is "error".
        """
        rows = data.reshape(-1, *self.scale.shape).double()
        if not len(rows):
            raise ValueError("data is empty; valid: at least one row")
        if self.mode == "limits":
            low, width = rows.amin(0), rows.amax(0) - rows.amin(0)
            still = width < self.range_eps
            scale = 2 / torch.where(still, 2.0, width)
            offset = torch.where(still, 0.0, -1.0) - scale * low
        else:
            width = rows.std(0, correction=0)
            still = width < self.range_eps
            scale = 1 / torch.where(still, 1.0, width)
            offset = -scale * rows.mean(0)
        if self.constant == "error" and still.any():
            raise ConstantDimensionsError(still.flatten().nonzero().flatten().tolist(), range_eps=self.range_eps)
        self.scale.copy_(scale)
        self.offset.copy_(offset)

    def forward(self, value: Float[Tensor, "*batch *shape"]) -> Float[Tensor, "*batch *shape"]:
        """[..., *shape] in normalized units."""
        return value * self.scale + self.offset

    def inverse(self, normalized: Float[Tensor, "*batch *shape"]) -> Float[Tensor, "*batch *shape"]:
        """[..., *shape] back in the units of the data."""
        return (normalized - self.offset) / self.scale
