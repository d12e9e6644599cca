"""Sampling responses from a language model, many at once, with a key-value cache.

    generated = generate(policy, prompts, max_tokens=128, stop=[tokenizer.eos_token_id], generator=rng)

``transformers``' own ``generate`` samples from torch's global generator, encodes a prompt anew for each of its
responses, carries finished rows along to the end, and knows no replies of an environment; hence this loop. Whatever
fulfills :class:`Engine` may take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import NO_TOKEN

if TYPE_CHECKING:
    from decisionrl.policies.language import LanguagePolicy

Temperature = Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]
"""From the entropy of the next token, in nats at the policy's temperature, to the one it is sampled at, in units of the
policy's."""

Reply = Callable[[int, Sequence[int]], Sequence[int]]
"""``reply(row, tokens so far) -> tokens`` that the environment appends to a response; asked after every own token, and
before the first, when there are no tokens yet, for what a context was cut off from."""


class ContextLengthError(ValueError):
    """A prompt and its response do not fit into the model's context."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Responses, padded on the right.

    Attributes:
        token: -1 where there is none.
        mask: the policy's own tokens; the others that are there are replies of the environment.
        log_prob: of the own tokens when they were sampled, at the policy's temperature; else 0.
        entropy: in nats, of what the own tokens were sampled from, at the policy's temperature; else 0. None where the
            engine does not say.
        finished: the response ended by itself, not because it had as many tokens as allowed.
    """

    token: Int[Tensor, "batch step"]
    mask: Bool[Tensor, "batch step"]
    log_prob: Float[Tensor, "batch step"]
    entropy: Float[Tensor, "batch step"] | None
    finished: Bool[Tensor, " batch"]


class Engine(Protocol):
    """What writes responses; :func:`generate` does."""

    def __call__(
        self,
        policy: LanguagePolicy,
        context: Int[Tensor, "batch prompt"],
        *,
        max_tokens: int | Int[Tensor, " batch"],
        stop: Sequence[int],
        generator: torch.Generator | None,
        temperature: Temperature | None = None,
        reply: Reply | None = None,
    ) -> Generated: ...


@torch.no_grad()
def generate(
    policy: LanguagePolicy,
    context: Int[Tensor, "batch prompt"],
    *,
    max_tokens: int | Int[Tensor, " batch"],
    stop: Sequence[int],
    generator: torch.Generator | None,
    temperature: Temperature | None = None,
    reply: Reply | None = None,
) -> Generated:
    """Continue each row of tokens. Equal rows are encoded once; rows that have ended cost nothing more.

    A context is all that comes before: a prompt, a prompt and the beginning of a response to branch from, or one that
    an earlier call has left unfinished. It is in the policy's mode, training or evaluation.

    Args:
        policy: says what the next token may be.
        context: -1 where there is no token, on whichever side.
        max_tokens: of a response, replies included; one number, or one for each row.
        stop: tokens that end a response; they are a part of it.
        generator: of the sampling; None takes the most probable tokens.
        temperature: of single tokens; by default the policy's own. Log-probabilities are at the policy's own always.
        reply: of the environment. Its tokens count as steps that are not the policy's own.

    Raises:
        ValueError: a context is empty, or max_tokens is below 1.
        ContextLengthError: a context with its response may be longer than the model can read.
    """
    limit = torch.as_tensor(max_tokens, device=context.device).expand(len(context))
    _check(policy, context, limit)
    if not len(context):
        return _nothing(context)
    rows = _Rows(policy, context)
    stops = torch.tensor(list(stop), dtype=torch.int64, device=context.device)
    batch, steps = len(context), int(limit.max())
    dtype = torch.promote_types(policy.head.weight.dtype, torch.float32)
    token = context.new_full((batch, steps), NO_TOKEN)
    mask = torch.zeros_like(token, dtype=torch.bool)
    log_prob, entropy = torch.zeros_like(token, dtype=dtype), torch.zeros_like(token, dtype=dtype)
    finished = torch.zeros_like(limit, dtype=torch.bool)
    replies = _Replies(reply, batch)
    for t in range(steps):
        own = torch.log_softmax(rows.logits.to(dtype) / policy.temperature, -1)
        chosen, surprise = _sampled(own, generator, temperature)
        given = replies.next(rows.index, chosen)
        mine = given < 0
        chosen = torch.where(mine, chosen, given)
        at = rows.index, torch.full_like(rows.index, t)
        token[at], mask[at] = chosen, mine
        log_prob[at] = torch.where(mine, own.gather(1, chosen[:, None])[:, 0], 0)
        entropy[at] = torch.where(mine, surprise, 0)
        ended = mine & torch.isin(chosen, stops)
        finished[rows.index] = ended
        replies.ask(rows.index, mine & ~ended, token)
        going = ~ended & (limit[rows.index] > t + 1)
        if not going.any():
            break
        rows = rows.after(chosen, going)
    used = int((token != NO_TOKEN).any(0).sum())
    return Generated(
        token=token[:, :used],
        mask=mask[:, :used],
        log_prob=log_prob[:, :used],
        entropy=entropy[:, :used],
        finished=finished,
    )


def left_padded(context: Int[Tensor, "batch prompt"]) -> Int[Tensor, "batch prompt"]:
    """The same tokens in each row, moved to its end, in as few columns as they need."""
    there = context >= 0
    order = there.long().argsort(dim=1, stable=True)
    return context.gather(1, order)[:, context.shape[1] - int(there.sum(1).max()) :]


class _Rows:
    """The responses that are being written: what the model keeps of them, and what it says of their next tokens."""

    def __init__(self, policy: LanguagePolicy, context: Tensor) -> None:
        from transformers import DynamicCache

        distinct, copies = torch.unique(left_padded(context), dim=0, return_inverse=True)
        there = distinct >= 0
        self._model, self._cache = policy.model, DynamicCache(config=policy.causal_model.config)
        self._seen, self._length = there, there.sum(1)
        position = (there.cumsum(1) - 1).clamp(min=0)
        self.logits = self._read(distinct.clamp(min=0), position)
        self.index = torch.arange(len(context), device=context.device)
        self._select(copies)

    def after(self, token: Tensor, going: Tensor) -> _Rows:
        """Those of the rows that go on, with one token more."""
        if not going.all():
            self._select(going.nonzero()[:, 0])
            self.index, token = self.index[going], token[going]
        self._seen = torch.cat([self._seen, torch.ones_like(self._seen[:, :1])], 1)
        self.logits = self._read(token[:, None], self._length[:, None])
        self._length = self._length + 1
        return self

    def _read(self, token: Tensor, position: Tensor) -> Tensor:
        output: Any = self._model(
            input_ids=token,
            attention_mask=self._seen.long(),
            position_ids=position,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _select(self, row: Tensor) -> None:
        self._cache.batch_select_indices(row)
        self._seen, self._length, self.logits = self._seen[row], self._length[row], self.logits[row]


class _Replies:
    """Tokens that the environment is yet to write, for each row."""

    def __init__(self, reply: Reply | None, batch: int) -> None:
        self._reply = reply
        self._waiting: dict[int, list[int]] = {}
        for row in range(batch if reply is not None else 0):
            self._hear(row, [])

    def ask(self, index: Tensor, own: Tensor, token: Tensor) -> None:
        """What the environment says to the rows that have just written a token of their own."""
        if self._reply is None:
            return
        for row in index[own].tolist():
            written = token[row]
            self._hear(row, written[written >= 0].tolist())

    def _hear(self, row: int, written: Sequence[int]) -> None:
        assert self._reply is not None
        if answer := self._reply(row, written):
            self._waiting[row] = list(answer)

    def next(self, index: Tensor, like: Tensor) -> Tensor:
        """The next token of each row if it is the environment's, else -1."""
        given = torch.full_like(like, NO_TOKEN)
        if self._waiting:
            place = {row: i for i, row in enumerate(index.tolist())}
            for row in [row for row in self._waiting if row in place]:
                given[place[row]] = self._waiting[row].pop(0)
                if not self._waiting[row]:
                    del self._waiting[row]
        return given


def _sampled(
    log_probs: Float[Tensor, "n vocabulary"], generator: torch.Generator | None, temperature: Temperature | None
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Tokens, and the entropy of what they may be."""
    entropy = torch.special.entr(log_probs.exp()).sum(-1)
    if generator is None:
        return log_probs.argmax(-1), entropy
    if temperature is not None:
        log_probs = log_probs / temperature(entropy)[:, None]
    return torch.multinomial(log_probs.softmax(-1), 1, generator=generator)[:, 0], entropy


def _check(policy: LanguagePolicy, context: Tensor, limit: Tensor) -> None:
    if len(limit) and int(limit.min()) < 1:
        raise ValueError(f"max_tokens = {int(limit.min())}; valid: a whole number >= 1")
    length = (context >= 0).sum(1)
    if len(length) and int(length.min()) < 1:
        row = int(length.argmin())
        raise ValueError(f"context: row {row} has no token; valid: at least one, such as the one that begins a text")
    longest = policy.context
    if longest is not None and len(length) and int((length + limit).max()) > longest:
        row = int((length + limit).argmax())
        raise ContextLengthError(
            f"row {row}: {int(length[row])} tokens and a response of up to {int(limit[row])}; valid: at most "
            f"{longest} in all, the context of the model"
        )


def _nothing(context: Tensor) -> Generated:
    none = context.new_zeros(0, 0)
    return Generated(
        token=none, mask=none.bool(), log_prob=none.float(), entropy=none.float(), finished=none.bool().any(1)
    )
