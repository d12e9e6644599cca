"""Action distributions over the outputs of a network, one class for each kind of Gymnasium action space.

Every head maps ``outputs`` [..., num_outputs] to a distribution over actions [..., *action shape], for any leading
dimensions. Sampling is a deterministic function of outputs and noise, so that the noise of a whole rollout can be
drawn in one call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Std = Literal["independent", "dependent"]
LOG_STD_RANGE = (-20.0, 2.0)
"""Bounds of a state-dependent log standard deviation, as in the release of soft actor-critic (arXiv 1812.05905)."""

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_IMPOSSIBLE = -1e9
"""A logit of probability 0, finite so that 0 times its logarithm is 0."""


class ActionHead(nn.Module, ABC):
    """A distribution over actions, given outputs [..., num_outputs].

    It is a module because some have buffers or a parameter; it holds no state that changes between calls.
    """

    num_outputs: int
    noise_shape: tuple[int, ...]

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """The action of greatest probability (density)."""

    @abstractmethod
    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """The action that this noise leads to; distributed like the head if the noise is from :meth:`noise`."""

    def noise(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Noise for ``shape`` actions, [*shape, *noise_shape]."""
        return self._fill(torch.empty((*shape, *self.noise_shape), dtype=dtype, device=device), generator)

    @abstractmethod
    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw the noise in place."""

    @abstractmethod
    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """log_prob and entropy, each [...], which share most of their work; entropy None without a closed form."""

    def log_prob(self, outputs: Tensor, action: Tensor) -> Float[Tensor, ...]:
        """Log-probability (density) of the whole action: the sum over its parts."""
        return self.evaluate(outputs, action)[0]

    @abstractmethod
    def entropy(self, outputs: Tensor) -> Float[Tensor, ...] | None:
        """In nats, of the whole action; None where there is no closed form."""

    @abstractmethod
    def score(self, outputs: Tensor, action: Tensor) -> Float[Tensor, "... outputs"]:
        """The gradient of log_prob in the outputs."""

    @abstractmethod
    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """u [..., num_outputs] -> F u with F = E[score score^T]."""

    def initial_outputs(self) -> Tensor:
        """What an untrained network should put out for every observation: the bias of its last layer."""
        return torch.zeros(self.num_outputs)


class Categorical(ActionHead):
    """``p = softmax(outputs)`` over the actions start, ..., start + n - 1 of a Discrete space."""

    def __init__(self, n: int, *, start: int = 0) -> None:
        super().__init__()
        self.num_outputs, self.noise_shape, self.start = n, (n,), start

    def mode(self, outputs: Tensor) -> Tensor:
        action = outputs.argmax(-1)
        return action + self.start if self.start else action

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.mode(outputs + noise)

    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        return _gumbel(noise, generator)

    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        log_p = outputs.log_softmax(-1)
        return log_p.gather(-1, self._index(action)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        log_p = outputs.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def score(self, outputs: Tensor, action: Tensor) -> Tensor:
        """onehot(a) - p."""
        index = self._index(action)
        return outputs.softmax(-1).neg().scatter_add(-1, index, outputs.new_ones(()).expand(index.shape))

    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """F = diag(p) - p p^T."""
        p = outputs.softmax(-1)
        return lambda u: p * (u - (p * u).sum(-1, keepdim=True))

    def _index(self, action: Tensor) -> Tensor:
        return (action - self.start if self.start else action).unsqueeze(-1)


class MultiCategorical(ActionHead):
    """Independent categorical choices, ``nvec[i]`` each, of a MultiDiscrete space of any shape.

    Outputs are the logits of all choices side by side. Inside they are padded to [..., choices, max(nvec)].
    """

    start: Tensor
    index: Tensor
    padding: Tensor

    def __init__(self, nvec: np.ndarray, *, start: np.ndarray | None = None) -> None:
        super().__init__()
        sizes = torch.as_tensor(nvec.reshape(-1), dtype=torch.int64)
        self.shape, self.num_outputs = nvec.shape, int(sizes.sum())
        self.noise_shape = (len(sizes), int(sizes.max()))
        column = torch.arange(self.noise_shape[1])
        first = sizes.cumsum(0) - sizes
        offset = np.zeros(nvec.size) if start is None else start.reshape(-1)
        self.register_buffer("start", torch.as_tensor(offset, dtype=torch.int64), persistent=False)
        self.register_buffer("padding", column >= sizes[:, None], persistent=False)
        index = (first[:, None] + column).masked_fill(self.padding, 0)
        self.register_buffer("index", index, persistent=False)

    def mode(self, outputs: Tensor) -> Tensor:
        return self._choose(self._logits(outputs))

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self._choose(self._logits(outputs) + noise)

    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        return _gumbel(noise, generator)

    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        log_p = self._logits(outputs).log_softmax(-1)
        chosen = log_p.gather(-1, self._index(action)).squeeze(-1)
        return chosen.sum(-1), -(log_p.exp() * log_p).sum((-1, -2))

    def entropy(self, outputs: Tensor) -> Tensor:
        log_p = self._logits(outputs).log_softmax(-1)
        return -(log_p.exp() * log_p).sum((-1, -2))

    def score(self, outputs: Tensor, action: Tensor) -> Tensor:
        """onehot(a_i) - p_i for every choice i."""
        p = self._logits(outputs).softmax(-1)
        index = self._index(action)
        return self._flatten(p.neg().scatter_add(-1, index, p.new_ones(()).expand(index.shape)))

    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """F = diag(p_i) - p_i p_i^T for every choice i, 0 between them."""
        p = self._logits(outputs).softmax(-1)

        def product(u: Tensor) -> Tensor:
            u = u[..., self.index]
            return self._flatten(p * (u - (p * u).sum(-1, keepdim=True)))

        return product

    def _logits(self, outputs: Tensor) -> Float[Tensor, "... choices options"]:
        return outputs[..., self.index].masked_fill(self.padding, _IMPOSSIBLE)

    def _choose(self, logits: Tensor) -> Tensor:
        action = logits.argmax(-1) + self.start
        return action if len(self.shape) == 1 else action.reshape(*action.shape[:-1], *self.shape)

    def _index(self, action: Tensor) -> Tensor:
        return (_flat(action, len(self.shape)) - self.start).unsqueeze(-1)

    def _flatten(self, padded: Tensor) -> Tensor:
        return padded[..., ~self.padding]


class Bernoulli(ActionHead):
    """Independent bits with ``p = sigmoid(outputs)``, of a MultiBinary space of any shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.num_outputs = tuple(shape), math.prod(shape)
        self.noise_shape = (self.num_outputs,)

    def mode(self, outputs: Tensor) -> Tensor:
        action = (outputs > 0).to(torch.int8)
        return action if len(self.shape) == 1 else action.reshape(*action.shape[:-1], *self.shape)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.mode(outputs + noise)

    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        return noise.uniform_(generator=generator).logit_()

    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        log_total = functional.softplus(outputs)
        log_prob = (self._bits(outputs, action) * outputs - log_total).sum(-1)
        return log_prob, (log_total - outputs * outputs.sigmoid()).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        return (functional.softplus(outputs) - outputs * outputs.sigmoid()).sum(-1)

    def score(self, outputs: Tensor, action: Tensor) -> Tensor:
        """a - p."""
        return self._bits(outputs, action) - outputs.sigmoid()

    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """F = diag(p (1 - p))."""
        p = outputs.sigmoid()
        variance = p * (1 - p)
        return lambda u: variance * u

    def _bits(self, outputs: Tensor, action: Tensor) -> Tensor:
        return _flat(action, len(self.shape)).to(outputs.dtype)


class DiagonalGaussian(ActionHead):
    """``N(mean, diag(std^2))`` over a Box of any shape. Actions are not clipped to the box: that is the world's part.

    std "independent": outputs are the mean, and ``log_std`` is a parameter, the same in every state;
    "dependent": outputs are [mean, log_std], log_std clamped to LOG_STD_RANGE.
    """

    def __init__(self, shape: Sequence[int], *, std: Std = "independent", initial_log_std: float = 0.0) -> None:
        super().__init__()
        if std not in get_args(Std):
            raise ValueError(f"std = {std!r}; valid: {', '.join(get_args(Std))}")
        if not math.isfinite(initial_log_std):
            raise ValueError(f"initial_log_std = {initial_log_std}; valid: finite")
        self.shape, self.size, self.initial_log_std = tuple(shape), math.prod(shape), initial_log_std
        self.noise_shape = (self.size,)
        self.dependent = std == "dependent"
        self.num_outputs = 2 * self.size if self.dependent else self.size
        if not self.dependent:
            self.log_std = nn.Parameter(torch.full((self.size,), initial_log_std))

    def mode(self, outputs: Tensor) -> Tensor:
        return self._action(self._mean_and_log_std(outputs)[0])

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self._mean_and_log_std(outputs)
        return self._action(torch.addcmul(mean, log_std.exp(), noise))

    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        return noise.normal_(generator=generator)

    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_std = self._mean_and_log_std(outputs)
        log_scale = log_std.sum(-1) + self.size * _HALF_LOG_2PI
        z = (_flat(action, len(self.shape)) - mean) * (-log_std).exp()
        entropy = (log_scale + 0.5 * self.size).expand(mean.shape[:-1])
        return torch.sub(-log_scale, z.square().sum(-1), alpha=0.5), entropy

    def entropy(self, outputs: Tensor) -> Tensor | None:
        mean, log_std = self._mean_and_log_std(outputs)
        return (log_std.sum(-1) + self.size * (_HALF_LOG_2PI + 0.5)).expand(mean.shape[:-1])

    def score(self, outputs: Tensor, action: Tensor) -> Tensor:
        """(a - mean) / std^2 for the mean, and ((a - mean) / std)^2 - 1 for a log_std among the outputs."""
        mean, log_std = self._mean_and_log_std(outputs)
        inverse = (-log_std).exp()
        z = (_flat(action, len(self.shape)) - mean) * inverse
        return torch.cat([z * inverse, (z.square() - 1) * self._free(outputs)], -1) if self.dependent else z * inverse

    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """F = diag(1 / std^2) for the mean, diag(2) for a log_std among the outputs."""
        _, log_std = self._mean_and_log_std(outputs)
        diagonal = (-2 * log_std).exp()
        if self.dependent:
            diagonal = torch.cat([diagonal, 2 * self._free(outputs)], -1)
        return lambda u: diagonal * u

    def initial_outputs(self) -> Tensor:
        outputs = torch.zeros(self.num_outputs)
        outputs[self.size :] = self.initial_log_std
        return outputs

    def _mean_and_log_std(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.dependent:
            return outputs, self.log_std
        mean, log_std = outputs.chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def _free(self, outputs: Tensor) -> Tensor:
        """1 where a log_std among the outputs is within its bounds, 0 where it is clamped."""
        log_std = outputs[..., self.size :]
        return ((log_std >= LOG_STD_RANGE[0]) & (log_std <= LOG_STD_RANGE[1])).to(outputs.dtype)

    def _action(self, flat: Tensor) -> Tensor:
        return flat if len(self.shape) == 1 else flat.reshape(*flat.shape[:-1], *self.shape)


class SquashedGaussian(ActionHead):
    """``a = center + radius tanh(x)`` with x Gaussian: actions inside a bounded Box (arXiv 1812.05905, app. C).

    ``log pi(a) = log N(x) - sum log(radius (1 - tanh(x)^2))``. x is worked out from the action; where rounding
    has put an action on the border of the box, it is taken to be one float inside. ``mode`` is the image of the
    Gaussian's mean. The entropy has no closed form.
    """

    center: Tensor
    radius: Tensor

    def __init__(
        self, low: np.ndarray, high: np.ndarray, *, std: Std = "independent", initial_log_std: float = 0.0
    ) -> None:
        super().__init__()
        self.gaussian = DiagonalGaussian((low.size,), std=std, initial_log_std=initial_log_std)
        self.shape, self.num_outputs, self.noise_shape = low.shape, self.gaussian.num_outputs, (low.size,)
        lower, upper = (torch.as_tensor(bound.reshape(-1), dtype=torch.get_default_dtype()) for bound in (low, high))
        self.register_buffer("center", (upper + lower) / 2, persistent=False)
        self.register_buffer("radius", (upper - lower) / 2, persistent=False)

    def mode(self, outputs: Tensor) -> Tensor:
        return self._squash(self.gaussian.mode(outputs))

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self._squash(self.gaussian.sample(outputs, noise))

    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        return noise.normal_(generator=generator)

    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        y = self._unit(action)
        log_prob, _ = self.gaussian.evaluate(outputs, y.atanh())
        return log_prob - (self.radius * (1 - y) * (1 + y)).log().sum(-1), None

    def entropy(self, outputs: Tensor) -> None:
        return None

    def score(self, outputs: Tensor, action: Tensor) -> Tensor:
        """The Gaussian's, as the squashing does not depend on the outputs."""
        return self.gaussian.score(outputs, self._unit(action).atanh())

    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """The Gaussian's."""
        return self.gaussian.fisher(outputs)

    def initial_outputs(self) -> Tensor:
        return self.gaussian.initial_outputs()

    def _squash(self, x: Tensor) -> Tensor:
        action = torch.addcmul(self.center, self.radius, x.tanh())
        return action if len(self.shape) == 1 else action.reshape(*action.shape[:-1], *self.shape)

    def _unit(self, action: Tensor) -> Tensor:
        """tanh(x), kept off -1 and 1."""
        y = (_flat(action, len(self.shape)) - self.center) / self.radius
        border = 1 - torch.finfo(y.dtype).eps
        return y.clamp(-border, border)


def head_for(
    action_space: spaces.Space[object], *, std: Std = "independent", squash: bool = False, initial_log_std: float = 0.0
) -> ActionHead:
    """The head of an action space: Discrete, MultiDiscrete, MultiBinary or Box.

    std, initial_log_std, squash: for a Box, see :class:`DiagonalGaussian` and :class:`SquashedGaussian`.

    Raises:
        TypeError: the space is of another kind, or a Box of integers.
        ValueError: the Box is unbounded and squash is set, or squash is set and the space is no Box.
    """
    if isinstance(action_space, spaces.Box):
        return _box_head(action_space, std, squash, initial_log_std)
    if squash:
        raise ValueError(f"squash = True; valid only for a Box action space, not {action_space}")
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n), start=int(action_space.start))
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategorical(action_space.nvec, start=action_space.start)
    if isinstance(action_space, spaces.MultiBinary):
        return Bernoulli(action_space.shape)
    raise TypeError(f"action_space = {action_space}; valid: Discrete, MultiDiscrete, MultiBinary, Box")


def _box_head(box: spaces.Box, std: Std, squash: bool, initial_log_std: float) -> ActionHead:
    if not np.issubdtype(box.dtype, np.floating):
        raise TypeError(f"action_space = {box}; valid: a Box of floats (for integers, MultiDiscrete)")
    if not squash:
        return DiagonalGaussian(box.shape, std=std, initial_log_std=initial_log_std)
    if not box.is_bounded():
        raise ValueError(f"action_space = {box} is unbounded; valid with squash = True: finite low and high")
    return SquashedGaussian(box.low, box.high, std=std, initial_log_std=initial_log_std)


def _gumbel(noise: Tensor, generator: torch.Generator | None) -> Tensor:
    return noise.exponential_(generator=generator).log_().neg_()


def _flat(action: Tensor, dimensions: int) -> Tensor:
    """The last ``dimensions`` dimensions of an action as one."""
    if dimensions == 1:
        return action
    return action.flatten(-dimensions) if dimensions else action.unsqueeze(-1)
