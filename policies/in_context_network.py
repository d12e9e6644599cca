"""The transformers of in-context reinforcement learning: causal, over one token a step, with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from decisionrl.policies.sequence import linear

Block = Literal["llama", "gpt"]

Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the angles by which queries and keys are rotated."""

_ROTARY_BASE = 10000.0
_EPSILON = 1e-5
INITIAL_STD = 0.02
"""Of embeddings at first, as in GPT-2: with 1, what the blocks add is long but a small part of a token."""


@dataclass(frozen=True, kw_only=True)
class InContextSizes:
    """Sizes of a :class:`CausalTransformer`; the defaults are those of DICP (arXiv 2502.19009) on grid worlds, which
    filtered learning histories (arXiv 2505.15143, appendix) take over.

    Attributes:
        width: of a token, d.
        layers, heads: blocks, and attention heads in each.
        feedforward: hidden units of the perceptron.
        dropout: of the tokens and of the output of each half of a block.
        attention_dropout: of the attention weights.
        block: ``"llama"`` has RMSNorm, rotary positions and SwiGLU without biases; ``"gpt"`` has LayerNorm, learned
            positions, which are added to the tokens, and GELU.
        last_norm: normalize the outputs.
    """

    width: int = 32
    layers: int = 4
    heads: int = 4
    feedforward: int = 128
    dropout: float = 0.1
    attention_dropout: float = 0.1
    block: Block = "llama"
    last_norm: bool = False


SIZES: dict[str, InContextSizes] = {
    "paper": InContextSizes(),
    "light": InContextSizes(layers=2, heads=2, width=16, feedforward=64),
    "cpu": InContextSizes(layers=2, dropout=0.0, attention_dropout=0.0, block="gpt", last_norm=True),
}
"""``"light"`` is the lightweight model of arXiv 2505.15143; ``"cpu"`` trains in minutes on one core."""


class ContextLengthError(ValueError):
    """More tokens than the context that a network was built for."""


@dataclass(frozen=True)
class KeyValueCache:
    """What a network keeps of the tokens it has seen.

    Attributes:
        entries: keys and values, [n, layers, 2, heads, context, width / heads]; those from ``length`` on mean nothing.
            Keys are stored rotated: a token keeps its position for as long as the cache lives.
        length: how many tokens each row has.
    """

    entries: Float[Tensor, "n layers 2 heads context each"]
    length: Int[Tensor, " n"]


@dataclass(frozen=True)
class Branches:
    """Several continuations of every row of a cache, which is the trunk of them all.

    Attributes:
        trunk: what they share.
        entries: keys and values of each branch's own tokens.
    """

    trunk: KeyValueCache
    entries: Float[Tensor, "n layers 2 heads branch token each"]

    @classmethod
    def of(cls, trunk: KeyValueCache) -> Branches:
        """One branch a row, without tokens of its own."""
        n, layers, two, heads, _, each = trunk.entries.shape
        return cls(trunk, trunk.entries.new_empty(n, layers, two, heads, 1, 0, each))

    def chosen(self, branch: Int[Tensor, "n kept"]) -> Branches:
        """Those branches of every row; one may be chosen more than once."""
        row = torch.arange(len(branch), device=branch.device)[:, None]
        return replace(self, entries=self.entries.movedim(4, 1)[row, branch].movedim(1, 4))


class CausalTransformer(nn.Module):
    """Tokens [batch, token, d] to outputs of the same shape, of which none depends on later tokens.

    A window's first token has position 0. The outputs of a window depend on its tokens and on nothing before them, so
    a window that has lost its oldest tokens is worked out anew (:meth:`cached`). To drop their keys and values would
    not do: from the second layer on, those of the tokens that stay depend on the tokens that went.

    Args:
        sizes: or the name of one in ``SIZES``.
        context: L, the longest window.
        generator: draws the weights; by default torch's global generator.

    Raises:
        ValueError: an option has no valid value.
    """

    def __init__(
        self, sizes: InContextSizes | str = "paper", *, context: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if isinstance(sizes, str):
            if sizes not in SIZES:
                raise ValueError(f"sizes = {sizes!r}; valid: {', '.join(SIZES)}, or InContextSizes")
            sizes = SIZES[sizes]
        _check(sizes, context)
        self.sizes, self.context = sizes, context
        width = sizes.width
        self.position: nn.Parameter | None = None
        if sizes.block == "gpt":
            self.position = nn.Parameter(torch.randn(context, width, generator=generator) * INITIAL_STD)
        self.rotary = _Rotary(width // sizes.heads) if sizes.block == "llama" else None
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(_Block(sizes, generator) for _ in range(sizes.layers))
        self.last_norm = _norm(sizes) if sizes.last_norm else nn.Identity()

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The outputs of whole windows.

        Raises:
            ContextLengthError: a window is longer than the context.
        """
        position = self._positions(tokens)
        x, turn = self._placed(tokens, position), self._turn(position)
        for block in self._stack:
            x = block(x, turn, None)
        return self.last_norm(x)  # type: ignore[no-any-return]

    def with_asides(
        self, tokens: Float[Tensor, "batch token width"], asides: Float[Tensor, "batch token width"]
    ) -> tuple[Float[Tensor, "batch token width"], Float[Tensor, "batch token width"]]:
        """The outputs of :meth:`forward`, and those of a second token at every position: aside t sees the tokens up to
        t and itself, and no token sees an aside.

        Raises:
            ContextLengthError: a window is longer than the context.
        """
        position = self._positions(tokens)
        x = torch.cat([self._placed(tokens, position), self._placed(asides, position)], 1)
        earlier = torch.ones(len(position), len(position), dtype=torch.bool, device=x.device).tril()
        itself, none = torch.eye(len(position), dtype=torch.bool, device=x.device), torch.zeros_like(earlier)
        allowed = torch.cat([torch.cat([earlier, none], 1), torch.cat([earlier, itself], 1)])
        turn = self._turn(position.repeat(2))
        for block in self._stack:
            x = block(x, turn, allowed)
        seen, aside = self.last_norm(x).chunk(2, 1)
        return seen, aside

    def empty_cache(self, n: int) -> KeyValueCache:
        """A cache of n rows without tokens."""
        weight = next(self.parameters())
        shape = self.entries_shape
        return KeyValueCache(weight.new_zeros(n, *shape), torch.zeros(n, dtype=torch.int64, device=weight.device))

    @property
    def entries_shape(self) -> tuple[int, int, int, int, int]:
        """Of one row of a cache: [layers, 2, heads, context, width / heads]."""
        sizes = self.sizes
        return sizes.layers, 2, sizes.heads, self.context, sizes.width // sizes.heads

    def cached(
        self, tokens: Float[Tensor, "n token width"], length: Int[Tensor, " n"]
    ) -> Float[Tensor, "n layers 2 heads token each"]:
        """The entries of windows whose first ``length`` tokens count, worked out from scratch.

        Raises:
            ContextLengthError: a window is longer than the context.
        """
        position = self._positions(tokens)
        x, turn = self._placed(tokens, position), self._turn(position)
        entries = []
        for block in self._stack:
            queries, keys, values = block.projected(x, turn)
            entries.append(torch.stack([keys, values], 1))
            x = block.finished(x, queries, keys, values, None, causal=True)
        counts = position < length[:, None]
        return torch.where(counts[:, None, None, None, :, None], torch.stack(entries, 1), 0)

    def step(
        self, token: Float[Tensor, "n width"], cache: KeyValueCache
    ) -> tuple[Float[Tensor, "n width"], KeyValueCache]:
        """The output of one token more, and the cache with it. The entries are written in place.

        Raises:
            ContextLengthError: a row is full.
        """
        if (cache.length >= self.context).any():
            raise ContextLengthError(f"a row has context = {self.context} tokens; valid before another: fewer")
        position = cache.length[:, None]
        row = torch.arange(len(token), device=token.device)
        seen = (torch.arange(self.context, device=token.device) <= position)[:, None, None]
        x, turn = self._placed(token[:, None], position), self._turn(position)
        for layer, block in enumerate(self._stack):
            queries, keys, values = block.projected(x, turn)
            kept = cache.entries[:, layer]
            kept[row, 0, :, cache.length] = keys[:, :, 0]
            kept[row, 1, :, cache.length] = values[:, :, 0]
            x = block.finished(x, queries, kept[:, 0], kept[:, 1], seen)
        return self.last_norm(x)[:, 0], KeyValueCache(cache.entries, cache.length + 1)

    def branched(
        self,
        asides: Float[Tensor, "n branch aside width"],
        branches: Branches,
        token: Float[Tensor, "n branch width"] | None = None,
    ) -> tuple[Float[Tensor, "n branch aside width"], Branches]:
        """The outputs of tokens at the ends of branches, each of which sees its branch and itself, as in
        :meth:`with_asides`: their position is that of the newest token. With ``token`` the branches are one token
        longer before. The trunk must hold one token at least; it is read where it lies, however many the branches."""
        n, count, width = asides.shape[0], asides.shape[1], asides.shape[3]
        new, own = 0 if token is None else 1, branches.entries.shape[5]
        # Branches of rows that are done may be longer than the context; nobody looks at what comes of them.
        place = (branches.trunk.length + (own + new - 1)).clamp(max=self.context - 1)
        x = asides.flatten(1, 2) if token is None else torch.cat([token, asides.flatten(1, 2)], 1)
        branch = torch.arange(count, device=x.device)
        of = torch.cat([branch[: count * new], branch.repeat_interleave(asides.shape[2])])
        old = torch.arange(self.context, device=x.device) < branches.trunk.length[:, None]
        same, itself = of[:, None] == of, torch.eye(len(of), dtype=torch.bool, device=x.device)
        same[:, count * new :] = itself[:, count * new :]
        same = torch.cat([of[:, None] == branch.repeat_interleave(own), same], 1)
        seen = torch.cat([old[:, None].expand(-1, len(of), -1), same.expand(n, -1, -1)], 2)[:, None]
        position = place[:, None].expand(-1, len(of))
        x, turn = self._placed(x, position), self._turn(position)
        grown = []
        for layer, block in enumerate(self._stack):
            queries, keys, values = block.projected(x, turn)
            newest = torch.stack([keys, values], 1)
            grown.append(newest[:, :, :, : count * new, None])
            past = branches.trunk.entries[:, layer], branches.entries[:, layer].flatten(3, 4)
            keys, values = torch.cat([*past, newest], 3).unbind(1)
            x = block.finished(x, queries, keys, values, seen)
        if new:
            branches = replace(branches, entries=torch.cat([branches.entries, torch.stack(grown, 1)], 5))
        return self.last_norm(x)[:, count * new :].view(n, count, -1, width), branches

    @property
    def _stack(self) -> Iterable[_Block]:
        return cast("Iterable[_Block]", self.blocks)

    def _positions(self, tokens: Tensor) -> Int[Tensor, " token"]:
        count = tokens.shape[1]
        if count > self.context:
            raise ContextLengthError(f"{count} tokens; valid: at most context = {self.context}")
        return torch.arange(count, device=tokens.device)

    def _placed(self, tokens: Tensor, position: Tensor) -> Tensor:
        placed = tokens if self.position is None else tokens + self.position[position]
        return self.dropout(placed)  # type: ignore[no-any-return]

    def _turn(self, position: Tensor) -> Turn | None:
        return None if self.rotary is None else self.rotary(position)


class _Block(nn.Module):
    """``x + f(norm(x))`` with f attention, then a perceptron."""

    def __init__(self, sizes: InContextSizes, generator: torch.Generator | None) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = _norm(sizes), _norm(sizes)
        self.attention = _Attention(sizes, generator)
        self.feedforward = (_SwiGLU if sizes.block == "llama" else _Gelu)(sizes.width, sizes.feedforward, generator)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, turn: Turn | None, allowed: Tensor | None) -> Tensor:
        queries, keys, values = self.projected(x, turn)
        return self.finished(x, queries, keys, values, allowed, causal=allowed is None)

    def projected(self, x: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values of x."""
        return self.attention.projected(self.attention_norm(x), turn)

    def finished(
        self,
        x: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor | None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """What becomes of x, whose queries read these keys and values."""
        x = x + self.dropout(self.attention.read(queries, keys, values, allowed, causal=causal))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, sizes: InContextSizes, generator: torch.Generator | None) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.dropout = sizes.heads, sizes.attention_dropout
        self.query_key_value = linear(width, 3 * width, generator)
        self.output = linear(width, width, generator)

    def projected(self, x: Float[Tensor, "n token width"], turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [n, heads, token, each], the first two turned."""
        projected = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries_keys, values = projected.split((2, 1))
        if turn is not None:
            queries_keys = _rotated(queries_keys, *turn)
        queries, keys = queries_keys
        return queries, keys, values[0]

    def read(
        self,
        queries: Float[Tensor, "n heads token each"],
        keys: Float[Tensor, "n heads seen each"],
        values: Float[Tensor, "n heads seen each"],
        allowed: Bool[Tensor, "... token seen"] | None,
        *,
        causal: bool,
    ) -> Float[Tensor, "n token width"]:
        dropout = self.dropout if self.training else 0.0
        read = scaled_dot_product_attention(
            queries, keys, values, attn_mask=allowed, dropout_p=dropout, is_causal=causal
        )
        return self.output(read.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Rotary(nn.Module):
    """Cosine and sine of the angle ``position 10000^(-i / h)`` by which the pair (x_i, x_{i + h}) of queries and of
    keys is rotated, h being half the features (arXiv 2104.09864): products then depend on the difference of positions.

    Positions are [token] or [n, token].
    """

    frequency: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        frequency = _ROTARY_BASE ** -(torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequency", frequency.to(torch.get_default_dtype()), persistent=False)

    def forward(self, position: Tensor) -> Turn:
        angle = position[..., None] * self.frequency
        if position.dim() == 2:
            angle = angle[:, None]  # the same for all heads
        return angle.cos(), angle.sin()


class _SwiGLU(nn.Module):
    """``W_3 (silu(W_1 x) * W_2 x)`` (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.gate_and_value = linear(width, 2 * hidden, generator)
        self.output = linear(hidden, width, generator)
        for layer in (self.gate_and_value, self.output):
            layer.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, -1)
        return self.output(silu(gate) * value)  # type: ignore[no-any-return]


class _Gelu(nn.Module):
    def __init__(self, width: int, hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.hidden = linear(width, hidden, generator)
        self.output = linear(hidden, width, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(gelu(self.hidden(x)))  # type: ignore[no-any-return]


def _norm(sizes: InContextSizes) -> nn.Module:
    kind = nn.RMSNorm if sizes.block == "llama" else nn.LayerNorm
    return kind(sizes.width, eps=_EPSILON)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _check(sizes: InContextSizes, context: int) -> None:
    for name, value in (
        ("context", context),
        ("layers", sizes.layers),
        ("heads", sizes.heads),
        ("feedforward", sizes.feedforward),
    ):
        if value < 1:
            raise ValueError(f"{name} = {value}; valid: at least 1")
    if sizes.block not in get_args(Block):
        raise ValueError(f"block = {sizes.block!r}; valid: {', '.join(get_args(Block))}")
    if sizes.width < 1 or sizes.width % sizes.heads:
        raise ValueError(f"width = {sizes.width}; valid: a multiple of heads = {sizes.heads}")
    if sizes.block == "llama" and sizes.width // sizes.heads % 2:
        raise ValueError(f"width = {sizes.width}; valid with rotary positions: an even multiple of heads")
    for name, share in (("dropout", sizes.dropout), ("attention_dropout", sizes.attention_dropout)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} = {share}; valid: at least 0 and below 1")
