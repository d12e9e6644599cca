"""A causal language model as a policy: its actions are tokens.

    policy = LanguagePolicy(model)                 # of transformers, or of PEFT around one
    evaluation = policy.evaluate(batch)            # log-probabilities and entropies [batch, step] at the temperature

Rows of a batch are prompts and what follows them. ``state`` [batch, P] is the prompt, -1 where there is none;
``action`` [batch, step] are the tokens after it, and ``observation`` [batch, step] is the token before each, -1 where
no token is. What is there and not in ``mask`` came from the environment, such as the output of a tool: the model
reads it, and nothing is trained on it. Padding may stand anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from decisionrl.policies.actor_critic import Critic, Steps
from decisionrl.policies.evaluation import Batch, Evaluation, Head, Observation
from decisionrl.policies.prefix_sharing import PrefixAttention, grouped_hidden, unique_prompts
from decisionrl.policies.token_log_probs import CHUNK, TokenLogits, token_log_probs

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenRows:
    """Tokens as a model reads them: row by row without gaps, padded on the right to the longest.

    Attributes:
        ids: 0 at padding.
        attention_mask: 1 where a token is.
        position_ids: 0, 1, 2, ... in each row.
    """

    ids: Int[Tensor, "batch place"]
    attention_mask: Int[Tensor, "batch place"]
    position_ids: Int[Tensor, "batch place"]


@dataclass(frozen=True)
class PredictedRows:
    """A batch as a model reads it, and where in it the tokens after the prompts are predicted.

    Attributes:
        rows: prompts and what follows them.
        there: the columns of the batch that hold a token.
        row, place: for each of these n columns, row by row, the place before its token: what the model says there
            is the distribution that the token is from.
    """

    rows: TokenRows
    there: Bool[Tensor, "batch step"]
    row: Int[Tensor, " n"]
    place: Int[Tensor, " n"]


class LanguagePolicy(nn.Module):
    """A causal language model whose tokens are actions, drawn at a temperature.

    The distribution of a token is ``softmax(z / temperature)`` over the whole vocabulary, z being the logits of all
    that stands before it in its row; a policy that samples otherwise (top-k, top-p) is another one. Logits are never in
    memory as a whole (:func:`~decisionrl.policies.token_log_probs.token_log_probs`). Rows depend neither on each other
    nor on where padding stands.

    Only what requires a gradient is trained: with LoRA, the adapters (:meth:`trainable_parameters`).

    Args:
        model: for causal language modeling, of transformers or of PEFT around one. It is used, not copied.
        temperature: at which tokens are sampled, and log-probabilities meant.
        value: a critic, linear in the last hidden state and 0 at first. ``"shared"`` reads that of the policy, so its
            loss trains the policy's backbone; ``"separate"`` has a copy of the backbone with its adapters, which
            takes as much memory again, for frozen weights as well.
        gradient_checkpointing: in training mode, keep only what goes into each layer for the backward pass and work
            out the rest again.
        share_prompts: read a prompt once for all rows of a batch that begin with it (arXiv 2506.05433; see
            :func:`~decisionrl.policies.prefix_sharing.grouped_hidden`), which pays where prompts are long. The results
            are the same, but for rounding. A separate critic reads every row.
        prefix_attention: by which of torch's attentions that is done: ``"sdpa"``, or ``"flex"`` on a GPU.
        dropout: have the model's dropout in training mode. Without it, probabilities are those the tokens were drawn
            with, which ratios to them assume.
        chunk: logits held at a time.
        keep: the share of an update's logits that is held until its backward pass, which saves that pass time; see
            :func:`~decisionrl.policies.token_log_probs.token_log_probs`.

    Attributes:
        critic: its last layer; None without one.

    Raises:
        ValueError: an option has no valid value; the model's last layer is not linear, or has an adapter; its logits
            are not those of its last layer, which the constructor tries out.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        temperature: float = 1.0,
        value: Critic | None = None,
        gradient_checkpointing: bool = False,
        share_prompts: bool = False,
        prefix_attention: PrefixAttention = "sdpa",
        dropout: bool = False,
        chunk: int = CHUNK,
        keep: float = 0.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}; valid: a positive number")
        if value not in (None, *get_args(Critic)):
            raise ValueError(f"value = {value!r}; valid: {', '.join(get_args(Critic))}, None")
        if chunk < 1:
            raise ValueError(f"chunk = {chunk}; valid: at least 1")
        if not 0 <= keep <= 1:
            raise ValueError(f"keep = {keep}; valid: from 0 to 1")
        if prefix_attention not in get_args(PrefixAttention):
            valid = ", ".join(get_args(PrefixAttention))
            raise ValueError(f"prefix_attention = {prefix_attention!r}; valid: {valid}")
        if prefix_attention != "sdpa" and not share_prompts:
            raise ValueError(f"prefix_attention = {prefix_attention!r}; valid without share_prompts: 'sdpa'")
        self.model = model
        self.temperature, self.dropout, self.chunk, self.keep = temperature, dropout, chunk, keep
        self.gradient_checkpointing = gradient_checkpointing
        self.share_prompts, self.prefix_attention = share_prompts, prefix_attention
        if gradient_checkpointing:
            _enable_checkpointing(self.causal_model, dropout=dropout)
        self.critic: nn.Linear | None = None
        self.critic_backbone: nn.Module | None = None
        if value is not None:
            weight = self.head.weight
            self.critic = nn.Linear(
                self.head.in_features,
                1,
                device=weight.device,
                dtype=torch.promote_types(weight.dtype, torch.float32),
            )
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
        if value == "separate":
            self.critic_backbone = copy.deepcopy(self.backbone)
        self.train(False)
        self._try_out()
        self.train()

    @property
    def causal_model(self) -> Any:
        """The PreTrainedModel of transformers, with what PEFT has put into it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def backbone(self) -> nn.Module:
        """The model without its last layer: ids to hidden states."""
        backbone: nn.Module = self.causal_model.get_decoder()
        return backbone

    @property
    def head(self) -> nn.Linear:
        """The last layer: hidden states to logits."""
        head = self.causal_model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(f"the model's last layer is {type(head).__name__}; valid: torch's Linear, without adapter")
        return head

    @property
    def softcap(self) -> float | None:
        """c of logits ``c tanh(x / c)``; None for those of models that do without."""
        softcap: float | None = getattr(self._config, "final_logit_softcapping", None)
        return softcap

    @property
    def context(self) -> int | None:
        """Tokens of the longest row that the model can read; None where its configuration does not say."""
        limit: int | None = getattr(self._config, "max_position_embeddings", None)
        return limit

    def trainable_parameters(self) -> list[nn.Parameter]:
        """For the optimizer: those that require a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> LanguagePolicy:
        """Training mode, in which the model has no dropout unless asked for."""
        super().train(mode)
        if not mode or self.dropout:
            return self
        for part in (self.model, self.critic_backbone):
            if part is not None:
                part.eval()
                if self.gradient_checkpointing:
                    for layer in _checkpointed_layers(part):
                        layer.training = True  # not of what is in it: dropout stays off
        return self

    def evaluate(self, batch: Batch) -> Evaluation:
        """log_prob, entropy and, with a critic, value of each token that is there; 0 at the other columns.

        The value is that of the text before the token.

        Raises:
            TypeError: observations are dicts.
            ValueError: a row has tokens and no prompt, more tokens than the model has positions, or one that is not in
                the vocabulary.
        """
        predicted = predicted_rows(batch)
        steps = Steps(predicted.there)
        hidden = self._predicting(batch, predicted)
        token = steps.take(batch.action)
        log_prob, entropy = self.log_probs(hidden, token)
        value = None
        if self.critic_backbone is not None:
            value = self.values(self._states(self.critic_backbone, predicted.rows)[predicted.row, predicted.place])
        elif self.critic is not None:
            value = self.values(hidden)
        return Evaluation(
            log_prob=steps.put(log_prob),
            entropy=steps.put(entropy),
            value=None if value is None else steps.put(value),
            head=TokenHead(self.token_logits(hidden.detach()), token, steps),
        )

    def initial_state(self, copies: int) -> None:
        """None: what the policy remembers is the text itself."""

    def value(self, observation: Observation, state: Tensor | None = None) -> Float[Tensor, " n"] | None:
        """V [n] of the texts ``state`` [n, P], -1 where no token is; None without a critic.

        ``observation``, the last token of each, is not read.

        Raises:
            ValueError: there is no state, or one of its rows has no token, or too many.
        """
        if self.critic is None:
            return None
        if state is None:
            raise ValueError("state = None; valid: the texts [n, P], -1 where no token is")
        lengths = (state >= 0).sum(1)
        _refuse_empty(lengths == 0)
        rows = token_rows(state, state >= 0)
        backbone = self.backbone if self.critic_backbone is None else self.critic_backbone
        return self.values(self._states(backbone, rows)[torch.arange(len(state), device=state.device), lengths - 1])

    def hidden(self, rows: TokenRows) -> Float[Tensor, "batch place d"]:
        """The policy's last hidden states, of which the last layer makes logits."""
        return self._states(self.backbone, rows)

    def _predicting(self, batch: Batch, predicted: PredictedRows) -> Float[Tensor, "n d"]:
        """The hidden states that the tokens of a batch are predicted from."""
        if not self.share_prompts or batch.state is None:
            return self.hidden(predicted.rows)[predicted.row, predicted.place]
        self._check(predicted.rows)
        some = predicted.there.any(1)
        there = predicted.there[some]
        if not len(there):
            return self.head.weight.new_zeros(0, self.head.in_features)
        prompts, group = unique_prompts(batch.state[some])
        responses = torch.where(there, batch.action[some], -1)
        hidden = grouped_hidden(
            self.causal_model,
            prompts=prompts,
            responses=responses,
            group=group,
            prefix_attention=self.prefix_attention,
        )
        return hidden[there]

    def log_probs(
        self, hidden: Float[Tensor, "n d"], token: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Log-probabilities of tokens after these hidden states, and the entropies there."""
        head = self.head
        log_prob, entropy = token_log_probs(
            hidden,
            head.weight,
            head.bias,
            token,
            temperature=self.temperature,
            softcap=self.softcap,
            chunk=self.chunk,
            keep=self.keep,
        )
        assert entropy is not None
        return log_prob, entropy

    def values(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """V of hidden states of the critic's backbone."""
        assert self.critic is not None
        return functional.linear(hidden.to(self.critic.weight.dtype), self.critic.weight, self.critic.bias).squeeze(-1)

    def token_logits(self, hidden: Float[Tensor, "n d"]) -> TokenLogits:
        """The logits after these hidden states, divided by the temperature, to be worked out."""
        return TokenLogits(hidden, self.head.weight, self.head.bias, self.temperature, self.softcap)

    @property
    def _config(self) -> Any:
        return self.causal_model.config.get_text_config()

    def _check(self, rows: TokenRows) -> None:
        longest = rows.ids.shape[1]
        if self.context is not None and longest > self.context:
            raise ValueError(f"a row has {longest} tokens; valid: at most the model's {self.context} positions")
        vocabulary = self.head.out_features
        if (outside := rows.ids >= vocabulary).any():
            raise ValueError(f"token = {int(rows.ids[outside][0])}; valid: 0 to {vocabulary - 1}")

    def _states(self, backbone: nn.Module, rows: TokenRows) -> Float[Tensor, "batch place d"]:
        self._check(rows)
        output = backbone(
            input_ids=rows.ids,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            use_cache=False,
            return_dict=True,
        )
        states: Tensor = output.last_hidden_state
        return states

    @torch.no_grad()
    def _try_out(self) -> None:
        """Some models scale their logits, or let PEFT put tokens before a row: refuse what is not computed here."""
        tokens = torch.arange(min(4, self.head.out_features), device=self.head.weight.device).unsqueeze(0)
        rows = token_rows(tokens, torch.ones_like(tokens, dtype=torch.bool))
        model: Any = self.model
        theirs = model(input_ids=rows.ids, attention_mask=rows.attention_mask, use_cache=False).logits[0]
        logits = self.token_logits(self.hidden(rows)[0])
        ours = logits.columns() * self.temperature
        theirs = theirs.to(ours.dtype)
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > 0.02 * theirs.abs().max():
            raise ValueError(
                f"the logits of {type(self.causal_model).__name__} are not its last layer's outputs on its backbone's "
                "hidden states; valid: a model that neither scales them nor reads more than its tokens"
            )


class TokenHead(Head):
    """The last layer of a language model, worked out without a graph when it is looked at.

    ``score`` [batch, step, vocabulary] and what ``fisher`` takes and returns are as large as the logits of the whole
    batch, which all else here avoids: for small vocabularies or few tokens.
    """

    def __init__(self, logits: TokenLogits, token: Int[Tensor, " n"], steps: Steps) -> None:
        vars(self).update(_logits=logits, _token=token, _steps=steps)

    _logits: TokenLogits
    _token: Tensor
    _steps: Steps

    @cached_property
    def hidden(self) -> Tensor:
        hidden = self._logits.hidden.to(self._logits.dtype)
        return self._steps.put(hidden, hidden.shape[1])

    @cached_property
    @torch.no_grad()
    def score(self) -> Tensor:
        probabilities, slope = self._distribution
        chosen = functional.one_hot(self._token, probabilities.shape[1])
        return self._steps.put((chosen - probabilities) * slope, probabilities.shape[1])

    @cached_property
    @torch.no_grad()
    def fisher(self) -> Callable[[Tensor], Tensor]:
        probabilities, slope = self._distribution

        def product(u: Tensor) -> Tensor:
            along = self._steps.take(u) * slope
            centered = along - (probabilities * along).sum(1, keepdim=True)
            return self._steps.put(probabilities * centered * slope, probabilities.shape[1])

        return product

    @cached_property
    @torch.no_grad()
    def _distribution(self) -> tuple[Tensor, Tensor | float]:
        """softmax(z) [n, vocabulary], and the derivative of z in the layer's outputs."""
        z = self._logits.columns()
        return z.softmax(1), self._logits.slope(z)


def predicted_rows(batch: Batch) -> PredictedRows:
    """The rows of a batch as a model reads them, see the module's first lines, and where it predicts their tokens.

    Raises:
        TypeError: observations are dicts.
        ValueError: a row has tokens and no prompt.
    """
    if not isinstance(batch.observation, Tensor):
        raise TypeError("observations are dicts; valid: the tokens before the actions, [batch, step]")
    there = batch.observation >= 0
    prompt = batch.action.new_empty(len(there), 0) if batch.state is None else batch.state
    lengths = (prompt >= 0).sum(1)
    _refuse_empty((lengths == 0) & there.any(1))
    rows = token_rows(torch.cat([prompt, batch.action], 1), torch.cat([prompt >= 0, there], 1))
    row, _ = there.nonzero(as_tuple=True)
    place = (lengths.unsqueeze(1) + there.cumsum(1) - 2)[there]
    return PredictedRows(rows, there, row, place)


def token_rows(tokens: Int[Tensor, "batch column"], there: Bool[Tensor, "batch column"]) -> TokenRows:
    """The tokens that are there, without the gaps between them."""
    lengths = there.sum(1, keepdim=True)
    places = torch.arange(max(1, int(lengths.max())), device=tokens.device).expand(len(tokens), -1)
    attention_mask = places < lengths
    ids = torch.zeros_like(places).masked_scatter(attention_mask, tokens[there])
    # A row without any token attends to one, as a softmax over nothing would be NaN.
    return TokenRows(ids, (attention_mask | (places == 0)).long(), places)


def _refuse_empty(empty: Bool[Tensor, " batch"]) -> None:
    if empty.any():
        raise ValueError(f"row {int(empty.nonzero()[0])} has no prompt; valid: at least one token to begin with")


def _enable_checkpointing(model: nn.Module, *, dropout: bool) -> None:
    """Gradient checkpointing of transformers, which goes by each layer's training mode.

    Raises:
        ValueError: no layer can do so, or one has dropout of its own, which that mode would turn on unasked.
    """
    layers: list[Any] = _checkpointed_layers(model)
    if not layers:
        raise ValueError(f"gradient_checkpointing = True; {type(model).__name__} has no layers for it, valid: False")
    for layer in layers:
        for name, rate in vars(layer).items():
            if not dropout and "dropout" in name and isinstance(rate, float) and rate > 0:
                raise ValueError(
                    f"gradient_checkpointing = True: {type(layer).__name__} has {name} = {rate}; "
                    "valid: 0.0 in the model's config, or dropout = True"
                )
        layer.gradient_checkpointing = True
        # The reentrant form needs inputs with a gradient, which frozen embeddings have not.
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def _checkpointed_layers(model: nn.Module) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
