"""Log-probabilities of tokens, and entropies, without the logits of the whole vocabulary in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**21
"""Logits that are held at a time: 8 MiB in float32, and up to three times that with what is worked out of them."""


def token_log_probs(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "vocabulary d"],
    bias: Float[Tensor, " vocabulary"] | None,
    token: Int[Tensor, " n"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
    keep: float = 0.0,
    entropy: bool = True,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
    """``log softmax(z)[token]`` and the entropy of softmax(z) in nats; ``z = cap(hidden W^T + bias) / temperature``.

    Some columns of z [n, vocabulary] are worked out at a time. Their largest value, the sum of exponentials and the
    mean of z are carried from one to the next (Milakov and Gimelshein, arXiv 1805.02867); the backward pass works them
    out again, but for those that are kept. Both outputs have gradients in ``hidden``, ``weight`` and ``bias``, of which
    those that need none cost nothing. With a frozen ``weight`` and ``bias``, the gradient of the log-probability is
    worked out on the way forward. There are no second derivatives.

    Numbers of 16 bits are summed, and returned, as float32; the gradient of z is rounded to the inputs' precision
    before it is multiplied with them. Autocast is not applied.

    Args:
        softcap: c in ``cap(x) = c tanh(x / c)`` (Gemma 2, arXiv 2408.00118, section 2); None: ``cap(x) = x``.
        chunk: at most so many elements of z, and of the weights, are worked with at a time; n or d if that is more.
        keep: the share of z that is kept for the backward pass, which saves its time; 1 is all of it.
        entropy: False returns None for it, which saves time.

    Raises:
        ValueError: an option has no valid value, or a token is not in the vocabulary.
    """
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} = {value}; valid: a positive number")
    if chunk < 1:
        raise ValueError(f"chunk = {chunk}; valid: at least 1")
    if not 0 <= keep <= 1:
        raise ValueError(f"keep = {keep}; valid: from 0 to 1")
    outside = (token < 0) | (token >= len(weight))
    if outside.any():
        raise ValueError(f"token = {int(token[outside][0])}; valid: 0 to {len(weight) - 1}")
    log_prob, mean_information = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, token, temperature, softcap, chunk, keep, entropy, torch.is_grad_enabled()
    )
    return log_prob, mean_information


@dataclass(frozen=True)
class TokenLogits:
    """``z = cap(hidden W^T + bias) / temperature``, worked out without a graph; see :func:`token_log_probs`."""

    hidden: Float[Tensor, "n d"]
    weight: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"] | None
    temperature: float
    softcap: float | None

    @property
    def inputs_dtype(self) -> torch.dtype:
        """Of what is multiplied."""
        return torch.promote_types(self.hidden.dtype, self.weight.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of z: at least float32."""
        return torch.promote_types(self.inputs_dtype, torch.float32)

    @torch.no_grad()
    def columns(self, chosen: slice = slice(None), *, out: Tensor | None = None) -> Float[Tensor, "n columns"]:
        """Some columns of z, in ``out`` where torch can."""
        z = self.product(self.hidden, self.weight[chosen].T, out=out)
        if self.bias is not None:
            z += self.bias[chosen]
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z.div_(self.temperature) if self.temperature != 1 else z

    def blocks(
        self, chunk: int, kept: Sequence[Tensor] = ()
    ) -> Iterator[tuple[slice, Float[Tensor, "n columns"], Float[Tensor, "n columns"]]]:
        """All columns of z, so many at a time that neither they nor their weights have more than ``chunk`` elements.

        Each come with memory for as many again; the next are in the same places, as fresh memory takes the CPU much
        time. The first are read from ``kept``.
        """
        n, size = len(self.hidden), self.block_size(chunk)
        first, second = (self.hidden.new_empty(n * size, dtype=self.dtype) for _ in range(2))
        for i, start in enumerate(range(0, len(self.weight), size)):
            chosen = slice(start, min(start + size, len(self.weight)))
            width = chosen.stop - start
            z, space = (each[: n * width].view(n, width) for each in (first, second))
            yield chosen, z.copy_(kept[i]) if i < len(kept) else self.columns(chosen, out=z), space

    def block_size(self, chunk: int) -> int:
        """How many columns are worked out at a time."""
        return min(len(self.weight), max(1, chunk // max(self.hidden.shape)))

    def slope(self, z: Float[Tensor, "n columns"]) -> Tensor | float:
        """The derivative of z in the outputs of the linear layer, element by element."""
        if self.softcap is None:
            return 1 / self.temperature
        return (1 - (z * (self.temperature / self.softcap)).square_()).div_(self.temperature)

    def product(self, a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``a @ b``, summed in ``dtype`` and not rounded after that, in ``out`` where torch can."""
        a, b = a.to(self.inputs_dtype), b.to(self.inputs_dtype)
        if self.inputs_dtype != self.dtype and a.is_cuda:
            return torch.mm(a, b, out_dtype=self.dtype)
        return torch.mm(a.to(self.dtype), b.to(self.dtype), out=out)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        keep: float,
        with_entropy: bool,
        with_graph: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logits = TokenLogits(hidden, weight, bias, temperature, softcap)
        top = hidden.new_full((len(hidden),), torch.finfo(logits.dtype).min, dtype=logits.dtype)
        chosen, total, moment = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        frozen = with_graph and ctx.needs_input_grad[:3] == (True, False, False)
        push = torch.zeros_like(hidden, dtype=logits.dtype) if frozen else None
        to_keep = int(with_graph * keep * len(weight) / logits.block_size(chunk))
        kept: list[Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            for columns, z, space in logits.blocks(chunk):
                if len(kept) < to_keep:
                    kept.append(z.clone())
                index, here = _within(token, columns)
                chosen = torch.where(here, z.gather(1, index).squeeze(1), chosen)
                slope = logits.slope(z) if frozen and softcap is not None else None
                higher = torch.maximum(top, z.amax(1))
                rise, z = top - higher, z.sub_(higher.unsqueeze(1))
                exponential, fall = torch.exp(z, out=space), rise.exp()
                if with_entropy:  # the sum of (z - top) exp(z - top)
                    moment = fall * (moment + rise * total) + torch.linalg.vecdot(z, exponential)
                total = fall * total + exponential.sum(1)
                top = higher
                if push is not None:  # the sum of exp(z - top) dz / dx W, x being the layer's outputs
                    pushed = exponential.mul_(slope) if isinstance(slope, Tensor) else exponential
                    push = push.mul_(fall.unsqueeze(1)).add_(logits.product(pushed, weight[columns]))
        log_total = total.log()
        entropy = log_total - moment / total if with_entropy else None
        direction = None
        if push is not None:  # of the log-probability, in hidden
            expected = push / total.unsqueeze(1) if softcap is not None else push / (total * temperature).unsqueeze(1)
            direction = logits.slope(chosen.unsqueeze(1)) * weight[token].to(logits.dtype) - expected
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, token, top + log_total, entropy, direction, *kept)
        ctx.options = temperature, softcap, chunk
        return chosen - top - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token, normalizer, entropy, direction, *kept = ctx.saved_tensors
        temperature, softcap, chunk = ctx.options
        if grad_log_prob is None:
            grad_log_prob = torch.zeros_like(normalizer)
        if direction is not None and grad_entropy is None:
            return (grad_log_prob.unsqueeze(1) * direction).to(hidden.dtype), *[None] * 9
        logits = TokenLogits(hidden, weight, bias, temperature, softcap)
        wanted = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=logits.dtype) if wanted[0] else None
        grad_weight = torch.empty_like(weight) if wanted[1] else None
        grad_bias = None if bias is None or not wanted[2] else torch.empty_like(bias)
        with torch.autocast(hidden.device.type, enabled=False):
            for columns, z, space in logits.blocks(chunk, kept):
                slope = logits.slope(z)
                log_softmax = z.sub_(normalizer.unsqueeze(1))
                softmax = torch.exp(log_softmax, out=space)
                if grad_entropy is None:
                    grad = softmax.mul_(-grad_log_prob.unsqueeze(1))
                else:  # dH / dz = -softmax (log softmax + H)
                    factor = log_softmax.add_(entropy.unsqueeze(1)).mul_(grad_entropy.unsqueeze(1))
                    grad = factor.add_(grad_log_prob.unsqueeze(1)).mul_(softmax).neg_()
                index, here = _within(token, columns)
                grad.scatter_add_(1, index, torch.where(here, grad_log_prob, 0.0).unsqueeze(1))
                if isinstance(slope, Tensor) or slope != 1:
                    grad *= slope
                if grad_bias is not None:
                    grad_bias[columns] = grad.sum(0)
                if grad_hidden is not None:
                    grad_hidden += logits.product(grad, weight[columns])
                if grad_weight is not None and grad_weight.dtype == logits.dtype:
                    logits.product(grad.T, hidden, out=grad_weight[columns])
                elif grad_weight is not None:
                    grad_weight[columns] = logits.product(grad.T, hidden)
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, *[None] * 7


def _within(token: Tensor, columns: slice) -> tuple[Int[Tensor, "n 1"], Tensor]:
    """Which of these columns is each token's, any if none is, and whether one is."""
    index = token - columns.start
    last = columns.stop - columns.start - 1
    return index.clamp(0, last).unsqueeze(1), (index >= 0) & (index <= last)
