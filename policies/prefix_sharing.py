"""One forward of a prompt for all of its responses (Prefix Grouper, arXiv 2506.05433).

Prompts and responses lie one after the other in a single row without padding, [P_1; P_2; ...; R_1; R_2; ...].
Positions of a response go on from those of its prompt, and a token of R_i sees the whole prompt of R_i, and R_i up to
itself. With a prompt of L tokens and G responses of T, layers that look at single tokens cost (L + G T) / (G (L + T))
of the repeated forward, and attention (L^2 + G T (2 L + T)) / (G (L + T)^2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PrefixAttention = Literal["sdpa", "flex"]

_NAME = "decisionrl_shared_prefix"
"""Of the attention function in transformers' registry."""

_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
"""Attributes of transformers' modules that are probabilities, beside the ``p`` of torch's own module."""

_VARIANTS = ("position_bias", "s_aux", "sliding_window", "softcap")
"""Arguments by which attention is another function than a softmax over all that came before."""


class PrefixAttentionError(ValueError):
    """A kind of attention that does not work here."""


def unique_prompts(state: Int[Tensor, "batch P"]) -> tuple[Int[Tensor, "prompts P"], Int[Tensor, " batch"]]:
    """Which rows have the same prompt, wherever their padding stands.

    Args:
        state: token ids, -1 where there is none.

    Returns:
        The different prompts, padded on the right, and the one of each row.
    """
    prompts, group = torch.unique(_compact(state), dim=0, return_inverse=True)
    return prompts, group


def grouped_hidden(
    model: PreTrainedModel,
    *,
    prompts: Int[Tensor, "prompts P"],
    responses: Int[Tensor, "batch T"],
    group: Int[Tensor, " batch"],
    prefix_attention: PrefixAttention = "sdpa",
) -> Float[Tensor, "batch T d"]:
    """The last hidden states that predict the tokens of responses, from one forward of each prompt.

    They and the gradients of the weights are those of a forward of [prompt; response] for every row. Gradient
    checkpointing, autocast and the layers of PEFT work as they do there.

    Args:
        model: a decoder of transformers with full causal attention in all layers, with or without its head; of a
            ``PeftModel``, its ``get_base_model()``.
        prompts: token ids, -1 where there is none, which may be anywhere.
        responses: likewise. What is returned at padding is finite and means nothing.
        group: the row of ``prompts`` before each response. Groups may have any sizes and stand in any order.
        prefix_attention: ``"sdpa"``, two calls of torch's scaled dot-product attention; or ``"flex"``, one of its
            flex-attention with a block mask, which copies no keys and leaves out blocks that nobody sees. That is
            compiled on a GPU; on the CPU it holds all scores, and torch has no backward pass of it.

    Raises:
        TypeError: the model is not one of transformers.
        ValueError: shapes or dtypes do not fit, a group is no row of ``prompts``, or a prompt is empty; the model has
            another kind of attention, or dropout in training mode; flex-attention is asked for gradients on the CPU.
    """
    if prefix_attention not in get_args(PrefixAttention):
        raise ValueError(f"prefix_attention = {prefix_attention!r}; valid: {', '.join(get_args(PrefixAttention))}")
    backbone = _checked(model)
    row = _pack(prompts, responses, group)
    shared = _TwoCalls(row) if prefix_attention == "sdpa" else _BlockMasked(row)
    with _attention(backbone.config), _checkpoints(backbone):
        output = backbone(
            input_ids=row.tokens[None],
            position_ids=row.positions[None],
            use_cache=False,
            return_dict=True,
            shared_prefix=shared,
        )
    if shared.calls != backbone.config.num_hidden_layers:
        raise ValueError(
            f"{type(backbone).__name__} attends in {shared.calls} of {backbone.config.num_hidden_layers} layers by "
            "way of transformers' attention interface; valid: all layers"
        )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden.index_select(0, row.predictor.flatten()).view(*row.predictor.shape, -1)


def _compact(tokens: Tensor) -> Tensor:
    """The tokens of each row in their order, then -1."""
    order = (tokens < 0).to(torch.uint8).argsort(dim=1, stable=True)
    return tokens.gather(1, order)


# The row.


@dataclass(frozen=True, kw_only=True)
class _Row:
    """The tokens of all prompts and responses [N], and where in the row they are; 0 stands for padding.

    The last token of a response predicts none of them and is left out; n is the length of the longest without it.

    Attributes:
        prompt, response: places of the tokens of each.
        context: of each prompt with its response; the s-th token has position s.
        start: how many tokens each response's prompt has.
        slot: places of the row's tokens in [prompt; response], both flattened.
        predictor: places of the tokens that stand before those of the responses.
    """

    tokens: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    prompt: Int[Tensor, "prompts P"]
    response: Int[Tensor, "batch n"]
    context: Int[Tensor, "batch S"]
    start: Int[Tensor, " batch"]
    slot: Int[Tensor, " N"]
    predictor: Int[Tensor, "batch T"]

    def visible(self) -> Bool[Tensor, "batch n S"]:
        """What of its context a token of a response sees."""
        position = self.start[:, None] + torch.arange(self.response.shape[1], device=self.start.device)
        return torch.arange(self.context.shape[1], device=self.start.device) <= position[..., None]


def _pack(prompts: Tensor, responses: Tensor, group: Tensor) -> _Row:
    """The row of a batch."""
    for name, tensor, dimensions in (("prompts", prompts, 2), ("responses", responses, 2), ("group", group, 1)):
        if tensor.ndim != dimensions or tensor.dtype != torch.int64 or not tensor.numel():
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; "
                f"valid: torch.int64, {dimensions}-dimensional, not empty"
            )
    if len(group) != len(responses):
        raise ValueError(f"group has {len(group)} elements; valid: one for each of {len(responses)} responses")
    if bool(((group < 0) | (group >= len(prompts))).any()):
        raise ValueError(f"group = {sorted(set(group.tolist()))}; valid: rows of {len(prompts)} prompts")
    length, count = (prompts >= 0).sum(1), ((responses >= 0).sum(1) - 1).clamp(min=0)
    if bool((length == 0).any()):
        raise ValueError(f"prompts {(length == 0).nonzero().flatten().tolist()} are empty; valid: at least one token")

    start = length[group]
    end = start + count
    steps = torch.arange(int(end.max()), device=prompts.device)
    in_prompt = steps[: int(length.max())] < length[:, None]
    in_response = steps[: int(count.max())] < count[:, None]
    prompt_begin = length.cumsum(0) - length
    response_begin = length.sum() + count.cumsum(0) - count
    prompt = prompt_begin[:, None] + steps[: in_prompt.shape[1]]
    response = response_begin[:, None] + steps[: in_response.shape[1]]
    context = torch.where(
        steps < start[:, None], prompt_begin[group][:, None] + steps, (response_begin - start)[:, None] + steps
    )
    before = (responses >= 0).cumsum(1) - 2  # which of the response's tokens, from 0 on, or the prompt's last
    last = prompt_begin[group] + start - 1
    return _Row(
        tokens=torch.cat(
            [
                _compact(prompts)[:, : in_prompt.shape[1]][in_prompt],
                _compact(responses)[:, : in_response.shape[1]][in_response],
            ]
        ),
        positions=torch.cat(
            [(prompt - prompt_begin[:, None])[in_prompt], (response + (start - response_begin)[:, None])[in_response]]
        ),
        prompt=prompt.where(in_prompt, 0),
        response=response.where(in_response, 0),
        context=context.where(steps < end[:, None], 0),
        start=start,
        slot=torch.cat([in_prompt.flatten(), in_response.flatten()]).nonzero().squeeze(1),
        predictor=torch.where(before >= 0, response_begin[:, None] + before, last[:, None]),
    )


# Attention.


class _TwoCalls:
    """Attention within a row, in two calls: prompts among themselves, and responses to prompt and response.

    One call for the whole row would work out, and then mask, what every response sees of all the others.
    """

    def __init__(self, row: _Row) -> None:
        self.calls = 0
        self._row = row
        self._masks = dict[tuple[torch.dtype, int], Tensor]()

    def __call__(
        self,
        query: Float[Tensor, "heads N k"],
        key: Float[Tensor, "kv_heads N k"],
        value: Float[Tensor, "kv_heads N v"],
        *,
        scale: float | None,
    ) -> Float[Tensor, "N heads v"]:
        self.calls += 1
        row, repeats = self._row, len(query) // len(key)
        query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        # Padding stands after the prompt, so that causality hides it.
        of_prompts = scaled_dot_product_attention(
            _gather(query, row.prompt),
            _gather(key, row.prompt),
            _gather(value, row.prompt),
            is_causal=True,
            scale=scale,
            enable_gqa=repeats > 1,
        ).transpose(1, 2)
        # Query heads that share keys are taken for further queries of one head, so that no key is repeated.
        batch, n = row.response.shape
        of_responses = scaled_dot_product_attention(
            _gather(query, row.response).reshape(batch, key.shape[1], repeats * n, query.shape[2]),
            _gather(key, row.context),
            _gather(value, row.context),
            attn_mask=self._mask(query.dtype, repeats),
            scale=scale,
        )
        of_responses = of_responses.reshape(batch, query.shape[1], n, value.shape[2]).transpose(1, 2)
        slots = torch.cat([of_prompts.flatten(0, 1), of_responses.flatten(0, 1)])
        return slots.index_select(0, row.slot)

    def _mask(self, dtype: torch.dtype, repeats: int) -> Float[Tensor, "batch 1 queries S"]:
        """0 or -inf; torch would make it of a mask of booleans anew for every layer, and keep each."""
        if (dtype, repeats) not in self._masks:
            visible = self._row.visible().repeat(1, repeats, 1)[:, None]
            self._masks[dtype, repeats] = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)
        return self._masks[dtype, repeats]


class _BlockMasked:
    """Attention within a row, in one call with a block mask."""

    def __init__(self, row: _Row) -> None:
        self.calls = 0
        self._row = row

    def __call__(
        self,
        query: Float[Tensor, "heads N k"],
        key: Float[Tensor, "kv_heads N k"],
        value: Float[Tensor, "kv_heads N v"],
        *,
        scale: float | None,
    ) -> Float[Tensor, "N heads v"]:
        self.calls += 1
        on_cpu = query.device.type == "cpu"
        if on_cpu and torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            raise PrefixAttentionError(
                "prefix_attention = 'flex' on the CPU, where torch has no backward pass of it; valid: 'sdpa', or "
                "torch.no_grad"
            )
        attend: Any = flex_attention if on_cpu else _compiled()
        attended: Any = attend(
            query[None], key[None], value[None], block_mask=self._mask, scale=scale, enable_gqa=len(query) > len(key)
        )
        of_row: Tensor = attended[0].transpose(0, 1)
        return of_row

    @cached_property
    def _mask(self) -> BlockMask:
        row = self._row
        (prompts, length), (_, n) = row.prompt.shape, row.response.shape
        after = row.slot - prompts * length  # the slots of prompts come first
        response_of = torch.where(after < 0, -1, after // max(1, n))
        own, given = (
            row.prompt[(row.slot // length).clamp(max=prompts - 1), 0],
            row.context[response_of.clamp(min=0), 0],
        )
        begin = torch.where(after < 0, own, given)  # of the prompt of each token, or of its response

        def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            # Prompts stand before responses, so "not later" is causality within both and between them.
            of_prompt = (response_of[k] < 0) & (begin[k] == begin[q])
            of_response = (response_of[k] >= 0) & (response_of[k] == response_of[q])
            return (k <= q) & (of_prompt | of_response)

        count = len(row.tokens)
        return create_block_mask(visible, None, None, count, count, device=row.tokens.device)


@cache
def _compiled() -> Callable[..., Any]:
    """Flex-attention as one kernel, for rows of any length."""
    return torch.compile(flex_attention, dynamic=True)


def _gather(tokens: Float[Tensor, "N heads k"], places: Int[Tensor, "rows n"]) -> Float[Tensor, "rows heads n k"]:
    """Some tokens, for attention."""
    return tokens.index_select(0, places.flatten()).view(*places.shape, *tokens.shape[1:]).transpose(1, 2)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: _TwoCalls | _BlockMasked,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers, [1, heads, N, k] -> [1, N, heads, v]."""
    for name in _VARIANTS:
        if options.get(name) is not None:
            raise ValueError(f"{type(module).__name__} attends with {name}; valid: full causal attention")
    return shared_prefix(query[0], key[0], value[0], scale=scaling)[None], None


# The model.


def _checked(model: PreTrainedModel) -> Any:
    """The model without its head.

    Raises:
        TypeError, ValueError: see :func:`grouped_hidden`.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}; valid: a PreTrainedModel, or get_base_model() of a PeftModel"
        )
    backbone: Any = model.base_model
    if not backbone.is_backend_compatible():
        raise ValueError(
            f"{type(backbone).__name__} does not use transformers' attention interface; valid: one that does"
        )
    config = backbone.config
    kinds = getattr(config, "layer_types", None)
    if kinds is None and getattr(config, "sliding_window", None) is not None:
        kinds = ["sliding_attention"]
    if other := sorted(set(kinds or ()) - {"full_attention"}):
        raise ValueError(f"{type(backbone).__name__} has {', '.join(other)}; valid: full_attention in all layers")
    for name, module in backbone.named_modules():
        rates = ("p",) if isinstance(module, nn.Dropout) else _DROPOUTS
        for rate in rates:
            p = getattr(module, rate, 0.0)
            if module.training and isinstance(p, int | float) and p > 0:
                raise ValueError(
                    f"{name or 'model'}.{rate} = {p} in training mode; valid: 0, as rows share one forward"
                )
    return backbone


@contextmanager
def _attention(config: Any) -> Iterator[None]:
    """Within the block, attention is :func:`_attend`."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _checkpoints(backbone: Any) -> Iterator[None]:
    """What is checkpointed within the block attends in the same way when the backward pass runs it again."""

    def attending(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            def run(*arguments: Any) -> Any:
                with _attention(backbone.config):
                    return function(*arguments)

            return checkpoint(run, *arguments)

        return call

    layers = [each for each in backbone.modules() if getattr(each, "gradient_checkpointing", False)]
    before = [each._gradient_checkpointing_func for each in layers]
    for layer, checkpoint in zip(layers, before, strict=True):
        layer._gradient_checkpointing_func = attending(checkpoint)
    try:
        yield
    finally:
        for layer, checkpoint in zip(layers, before, strict=True):
            layer._gradient_checkpointing_func = checkpoint
