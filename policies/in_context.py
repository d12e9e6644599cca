"""Policies that learn in their context: algorithm distillation, decision-pretrained transformers, and planning.

    policy = InContextPolicy(world.observation_space, world.action_space, context=80, sizes="cpu")
    state = policy.initial_state(n)
    action, state = policy.act(observation, state, noise=policy.sample_noise((n,), generator))
    state = policy.hear(state, reward, ended)                      # the context goes on over the ends of episodes

Weights are frozen when it acts: what it learns of its task is in the state, which a source must not forget at the
end of an episode.

Algorithm distillation (AD, arXiv 2210.14215) and decision-pretrained transformers (DPT, arXiv 2306.14892) are one
policy and differ in what it is trained to predict: the next action of a learning history, or the optimal one
(``decisionrl.objectives.in_context``). :class:`PlanningPolicy` also has a model of the world (DICP, arXiv 2502.19009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from decisionrl.policies.distributions import MultiCategorical, head_for
from decisionrl.policies.evaluation import Evaluation, Observation
from decisionrl.policies.in_context_network import (
    INITIAL_STD,
    Branches,
    CausalTransformer,
    InContextSizes,
    KeyValueCache,
)
from decisionrl.policies.sequence import linear

Embedding = Literal["axis", "linear", "cell"]
Forget = Literal["episode", "step"]


class History(Protocol):
    """Windows of learning histories: what a policy saw and did, episode after episode.

    Attributes:
        observation: s_t, [batch, step, ...].
        action: a_t, [batch, step, ...].
        reward: r_t, of a_t, [batch, step].
        start: where an episode begins, [batch, step].
    """

    @property
    def observation(self) -> Tensor: ...

    @property
    def action(self) -> Tensor: ...

    @property
    def reward(self) -> Float[Tensor, "batch step"]: ...

    @property
    def start(self) -> Bool[Tensor, "batch step"]: ...


class StepTokens(nn.Module):
    """One token a step: ``e(s_t) + e(a_{t-1}) + w r_{t-1}``, plus e_start where an episode begins.

    At the first step of a window a symbol of its own stands for the action, and there is no reward. At the beginning
    of later episodes they are those of the step before, so that what an episode ended with is not lost.

    Args:
        embedding: of observations. ``"axis"`` sums one embedding for each coordinate; ``"cell"`` has one for each cell.
            Nothing ties the embedding of a cell in which no goal lay in training to the others, and what is learned
            does not generalize to goals there. Both are for a Box of integers. ``"linear"`` is for any Box.

    Raises:
        TypeError: a space is of another kind.
        ValueError: the embedding is none of these, or the bounds are not finite.
    """

    stride: Tensor
    offset: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        width: int,
        *,
        embedding: Embedding = "axis",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if embedding not in get_args(Embedding):
            raise ValueError(f"embedding = {embedding!r}; valid: {', '.join(get_args(Embedding))}")
        if not isinstance(observation_space, spaces.Box):
            raise TypeError(f"observation_space = {observation_space}; valid: a Box")
        self.embedding = embedding
        self.observation_shape = observation_space.shape
        self.observation_features = math.prod(observation_space.shape)
        self.embed_observation: nn.Module
        if embedding == "linear":
            self.embed_observation = linear(self.observation_features, width, generator)
        else:
            sizes, low = grid_of(observation_space, f"embedding = {embedding!r}")
            rows = int(sizes.sum()) if embedding == "axis" else int(sizes.prod())
            # A row is chosen by (x - low) . stride + offset: of each axis, or of the cell in row-major order.
            stride = np.ones_like(sizes) if embedding == "axis" else sizes.prod() // sizes.cumprod()
            offset = sizes.cumsum() - sizes if embedding == "axis" else np.zeros_like(sizes)
            self.register_buffer("stride", torch.from_numpy(stride), persistent=False)
            self.register_buffer("offset", torch.from_numpy(offset - low * stride), persistent=False)
            self.embed_observation = _embedding(rows, width, generator)
        self.discrete = isinstance(action_space, spaces.Discrete)
        self.embed_action: nn.Module
        if isinstance(action_space, spaces.Discrete):
            self.action_shape: tuple[int, ...] = ()
            self.first_action = int(action_space.start)
            self.embed_action = _embedding(int(action_space.n), width, generator)
        elif isinstance(action_space, spaces.Box):
            self.action_shape = action_space.shape
            self.embed_action = linear(math.prod(action_space.shape), width, generator)
        else:
            raise TypeError(f"action_space = {action_space}; valid: Discrete or Box")
        self.no_action = _vector(width, generator)
        self.embed_reward = _vector(width, generator)
        self.begins = _vector(width, generator)

    def forward(
        self,
        observation: Tensor,
        previous_action: Tensor,
        previous_reward: Float[Tensor, ...],
        *,
        first: Bool[Tensor, ...],
        start: Bool[Tensor, ...],
    ) -> Float[Tensor, "... width"]:
        """Tokens [..., width] of steps [...]; first: those of a window, whose previous action and reward are not
        read."""
        before = self._action(previous_action) + previous_reward[..., None].to(self.begins.dtype) * self.embed_reward
        return (
            self._observation(observation)
            + torch.where(first[..., None], self.no_action, before)
            + start[..., None].to(self.begins.dtype) * self.begins
        )

    def window(self, history: History) -> Float[Tensor, "batch step width"]:
        """The tokens of whole windows."""
        action, reward = history.action, history.reward
        first = torch.zeros_like(history.start)
        first[:, :1] = True
        return self.forward(
            history.observation,
            torch.cat([action[:, :1], action[:, :-1]], 1),
            torch.cat([reward[:, :1], reward[:, :-1]], 1),
            first=first,
            start=history.start,
        )

    def _observation(self, observation: Tensor) -> Tensor:
        flat = observation.reshape(*observation.shape[: observation.dim() - len(self.observation_shape)], -1)
        if self.embedding == "linear":
            return self.embed_observation(flat.to(self.begins.dtype))  # type: ignore[no-any-return]
        row = flat.long() * self.stride + self.offset
        if self.embedding == "cell":
            return self.embed_observation(row.sum(-1))  # type: ignore[no-any-return]
        return self.embed_observation(row).sum(-2)  # type: ignore[no-any-return]

    def _action(self, action: Tensor) -> Tensor:
        if self.discrete:
            return self.embed_action(action.long() - self.first_action)  # type: ignore[no-any-return]
        flat = action.reshape(*action.shape[: action.dim() - len(self.action_shape)], -1)
        return self.embed_action(flat.to(self.begins.dtype))  # type: ignore[no-any-return]


class InContextPolicy(nn.Module):
    """pi(a_t | C_{t-1}, s_t), C being the steps so far of a window of at most L, over several episodes.

    The token of step t holds s_t and the action and reward before it, so one causal pass predicts at every step from
    the context so far: AD's next action, and DPT's optimal action for every prefix of the context, s_t being the query.

    A full context forgets its oldest episode (or step), and then is what a window of the steps that are left would be:
    their first token has no step before it, and positions count from 0. An action costs one token, or a pass
    over the window where something was forgotten: once an episode, or at every step with ``forget="step"``.

    Args:
        observation_space: a Box; see :class:`StepTokens`.
        action_space: Discrete, or a Box, over which the policy is Gaussian with a mean and a log standard deviation
            that depend on the context.
        context: L in steps; to hold several episodes.
        sizes: of the transformer; ``"paper"``, ``"cpu"``, or any.
        embedding: of observations.
        forget: what a full context does without.
        generator: draws the weights; by default torch's global generator.

    Raises:
        TypeError, ValueError: a space or an option is not valid.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        context: int,
        sizes: InContextSizes | str = "paper",
        embedding: Embedding = "axis",
        forget: Forget = "episode",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if forget not in get_args(Forget):
            raise ValueError(f"forget = {forget!r}; valid: {', '.join(get_args(Forget))}")
        self.context, self.forget = context, forget
        self.network = CausalTransformer(sizes, context=context, generator=generator)
        width = self.network.sizes.width
        self.tokens = StepTokens(observation_space, action_space, width, embedding=embedding, generator=generator)
        self.head = head_for(action_space, std="dependent")
        self.actor = linear(width, self.head.num_outputs, generator)

    def forward(self, history: History) -> Float[Tensor, "batch step outputs"]:
        """The outputs of the action head at every step of windows; those at step t depend on s_0, a_0, r_0, ..., s_t.

        Raises:
            ContextLengthError: the windows are longer than the context.
        """
        return self.actor(self.network(self.tokens.window(history)))  # type: ignore[no-any-return]

    def evaluate(self, history: History) -> Evaluation:
        """log_prob and entropy of the actions at every step of windows."""
        return Evaluation(*self.head.evaluate(self(history), history.action))

    @torch.no_grad()
    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [n, ...] for observations [n, ...], and the next state; rows do not depend on each other.

        Without noise it is the action of greatest probability (density). That is what DPT does with a context that is
        given; online, in-context learning needs samples, so noise, to explore. In training mode there is dropout.

        Raises:
            ValueError: with ``forget="episode"``, an episode is longer than the context.
        """
        state = self.initial_state(len(observation)) if state is None else state
        context = self.context_of(state.clone())
        hidden = self.see(observation, context)
        outputs = self.actor(hidden)
        action = self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)
        self.did(context, action)
        return action, context.state

    def hear(
        self, state: Float[Tensor, "n state"], reward: Float[Tensor, " n"], ended: Bool[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n state"]:
        """The state after the rewards of the step; ended: the rows whose next observation begins an episode."""
        context = self.context_of(state.clone())
        context.next_reward.copy_(reward)
        if ended is not None:
            context.next_start.copy_(ended)
        return context.state

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The state of n empty contexts, before the first observation of a task."""
        features = self._features
        columns = (self.context + 1) * features + math.prod(self.network.entries_shape) + 2
        context = self.context_of(self.actor.weight.new_zeros(n, columns))
        context.next_start.fill_(1)
        return context.state

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, ...]."""
        weight = self.actor.weight
        return self.head.noise(shape, generator=generator, dtype=weight.dtype, device=weight.device)

    def context_of(self, state: Float[Tensor, "n state"]) -> Context:
        """What is in a state, as views of it."""
        features = self._features
        sizes = [self.context * features, math.prod(self.network.entries_shape), features, 1, 1]
        steps, entries, coming, length, total = state.split_with_sizes(sizes, 1)
        return Context(
            state=state,
            steps=steps.view(-1, self.context, features),
            entries=entries.view(-1, *self.network.entries_shape),
            coming=coming,
            length=length[:, 0],
            total=total[:, 0],
        )

    def see(self, observation: Observation, context: Context) -> Float[Tensor, "n width"]:
        """The network's output at a new step of every context, which is written into it."""
        if not isinstance(observation, Tensor):
            raise TypeError(f"observation has the keys {sorted(observation)}; valid: one tensor")
        self._make_room(context)
        context.coming[:, : self.tokens.observation_features] = observation.reshape(len(observation), -1)
        length = context.length.long()
        context.steps[torch.arange(len(length), device=length.device), length] = context.coming
        token = self._embedded(context.coming, first=length == 0)
        hidden, _ = self.network.step(token, KeyValueCache(context.entries, length))
        context.length.add_(1)
        context.total.add_(1)
        return hidden

    def did(self, context: Context, action: Tensor) -> None:
        """Write the action into the step that is to come; its reward is 0 until it is heard."""
        features = self.tokens.observation_features
        context.coming[:, features:-2] = action.reshape(len(action), -1)
        context.coming[:, -2:] = 0

    def _make_room(self, context: Context) -> None:
        full = context.length >= self.context
        if not full.any():
            return
        row = full.nonzero()[:, 0]
        gone = torch.ones_like(row)
        if self.forget == "episode":
            begins = torch.cat([context.starts, context.next_start[:, None]], 1)[row, 1:] > 0
            if not begins.any(1).all():
                raise ValueError(
                    f"an episode has more than context = {self.context} steps; valid with forget = 'episode': at most "
                    "as many"
                )
            gone = 1 + begins.long().argmax(1)
        length = self.context - gone
        index = torch.arange(self.context, device=row.device)
        kept = context.steps[row[:, None], (index + gone[:, None]).clamp(max=self.context - 1)]
        first = (index == 0).expand(len(row), -1)
        context.steps[row] = kept
        context.entries[row] = self.network.cached(self._embedded(kept, first=first), length)
        context.length[row] = length.to(context.length.dtype)

    def _embedded(self, steps: Float[Tensor, "... features"], *, first: Bool[Tensor, ...]) -> Tensor:
        seen = self.tokens.observation_features
        observation, action = steps[..., :seen], steps[..., seen:-2]
        if self.tokens.discrete:
            # Where nothing was done yet there is a zero, which need not be an action; it is not read.
            action = torch.where(first, self.tokens.first_action, action[..., 0])
        else:
            action = action.reshape(*action.shape[:-1], *self.tokens.action_shape)
        observation = observation.reshape(*observation.shape[:-1], *self.tokens.observation_shape)
        start = steps[..., -1] > 0
        return self.tokens(observation, action, steps[..., -2], first=first, start=start)  # type: ignore[no-any-return]

    @property
    def _features(self) -> int:
        return self.tokens.observation_features + math.prod(self.tokens.action_shape) + 2


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of an :class:`InContextPolicy`'s state, as views of it.

    Attributes:
        state: all of it, [n, ...].
        steps: s_t, a_{t-1}, r_{t-1} and whether an episode begins, side by side, [n, context, features].
        entries: of the network's cache.
        coming: the next step, of which the observation is still to come, [n, features].
        length: how many steps count, [n].
        total: how many there have been, [n].
    """

    state: Float[Tensor, "n state"]
    steps: Float[Tensor, "n context features"]
    entries: Float[Tensor, "n layers 2 heads context each"]
    coming: Float[Tensor, "n features"]
    length: Float[Tensor, " n"]
    total: Float[Tensor, " n"]

    @property
    def starts(self) -> Float[Tensor, "n context"]:
        """1 where an episode begins."""
        return self.steps[..., -1]

    @property
    def next_reward(self) -> Float[Tensor, " n"]:
        return self.coming[:, -2]

    @property
    def next_start(self) -> Float[Tensor, " n"]:
        return self.coming[:, -1]

    @property
    def episode_step(self) -> Int[Tensor, " n"]:
        """The number of the newest step in its episode, from 0 on (in the window, if that begins later)."""
        index = torch.arange(self.steps.shape[1], device=self.steps.device)
        length = self.length.long()
        begun = (self.starts > 0) & (index < length[:, None])
        return length - 1 - torch.where(begun, index, 0).amax(1)


class PlanningPolicy(nn.Module):
    """An :class:`InContextPolicy` with a model of the world in its context, by which it plans (arXiv 2502.19009).

    The model p(r_t, s_{t+1} | C_{t-1}, s_t, a_t) is read from an action token after that of step t, which no other
    token sees: actions are predicted as without it. Rewards are one of ``reward_values``, and every coordinate
    of the next observation has a softmax of its own.

    Once as many steps have been made as the context holds, the action is the first of the best plan that a beam
    search finds; before that it is sampled. The search ends with the episode. Its imagined steps are appended to
    the context, so it also ends where that is full: never, if episodes are of ``horizon`` steps and the context is
    a multiple of it. (The release drops the oldest step for each imagined one.)

    Args:
        base: the policy; its actions are Discrete, observations a Box of integers, and it forgets episodes.
        reward_values: all there are.
        horizon: H, the steps of an episode.
        beams: k, the plans that are kept; the release's default.
        depth: the most steps ahead; in the paper the size of the grid less one, or twice that where a task asks for
            more.
        generator: draws the weights; by default torch's global generator.

    Raises:
        TypeError, ValueError: a space or an option is not valid.
    """

    reward_values: Tensor

    def __init__(
        self,
        base: InContextPolicy,
        observation_space: spaces.Space[Any],
        *,
        reward_values: Sequence[float] = (0.0, 1.0),
        horizon: int,
        beams: int = 10,
        depth: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("horizon", horizon), ("beams", beams), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} = {value}; valid: at least 1")
        if not base.tokens.discrete:
            raise TypeError("base has a Box of actions; valid: Discrete actions")
        if base.forget != "episode":
            raise ValueError(f"forget = {base.forget!r}; valid for planning: 'episode'")
        if len(set(reward_values)) < max(1, len(reward_values)):
            raise ValueError(f"reward_values = {tuple(reward_values)}; valid: different numbers, at least one")
        if not isinstance(observation_space, spaces.Box) or observation_space.shape != base.tokens.observation_shape:
            raise TypeError(f"observation_space = {observation_space}; valid: the Box of the base")
        self.base, self.horizon, self.beams, self.depth = base, horizon, beams, depth
        width, self.actions = base.network.sizes.width, base.head.num_outputs
        sizes, low = grid_of(observation_space, "planning")
        self.embed_taken = _embedding(self.actions, width, generator)
        self.reward = linear(width, len(reward_values), generator)
        self.coordinates = MultiCategorical(sizes, start=low)
        self.next_observation = linear(width, self.coordinates.num_outputs, generator)
        self.register_buffer("reward_values", torch.tensor(reward_values, dtype=torch.get_default_dtype()))

    def forward(self, history: History) -> tuple[Tensor, Tensor, Tensor]:
        """At every step of windows the outputs of the action head, the logits of the rewards [batch, step, rewards],
        and those of the coordinates of the next observation, side by side."""
        base = self.base
        taken = self.embed_taken(history.action.long() - base.tokens.first_action)
        hidden, aside = base.network.with_asides(base.tokens.window(history), taken)
        return base.actor(hidden), self.reward(aside), self.next_observation(aside)

    def model_log_prob(
        self, reward_logits: Tensor, next_logits: Tensor, reward: Float[Tensor, ...], next_observation: Tensor
    ) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
        """log p(r_t) and log p(s_{t+1}), the latter summed over coordinates, from the outputs of :meth:`forward`.

        Raises:
            ValueError: a reward is none of ``reward_values``.
        """
        equal = torch.isclose(reward[..., None].to(self.reward_values.dtype), self.reward_values)
        if not equal.any(-1).all():
            odd = reward[~equal.any(-1)][0].item()
            raise ValueError(f"reward = {odd}; valid: one of reward_values = {self.reward_values.tolist()}")
        reward_log_prob = torch.where(equal, reward_logits.log_softmax(-1), 0).sum(-1)
        cell = next_observation.reshape(*reward.shape, -1).long()
        return reward_log_prob, self.coordinates.log_prob(next_logits, cell)

    def evaluate(self, history: History) -> Evaluation:
        """log_prob and entropy of the actions under the policy, without planning."""
        return self.base.evaluate(history)

    @torch.no_grad()
    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [n] for observations [n, ...], and the next state. The noise orders the actions at the root, as drawn
        from the policy without replacement: between plans of equal return, the first of them decides."""
        base = self.base
        state = base.initial_state(len(observation)) if state is None else state
        context = base.context_of(state.clone())
        outputs = base.actor(base.see(observation, context))
        order = (outputs if noise is None else outputs + noise).argsort(dim=1, descending=True, stable=True)
        action = order[:, 0].clone()
        planning = (context.total > base.context).nonzero()[:, 0]
        if len(planning):
            action[planning] = self._planned(context, order, planning)
        action = action + base.tokens.first_action
        base.did(context, action)
        return action, context.state

    def hear(
        self, state: Float[Tensor, "n state"], reward: Float[Tensor, " n"], ended: Bool[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n state"]:
        """The state after the rewards of the step; ended: the rows whose next observation begins an episode."""
        return self.base.hear(state, reward, ended)

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The state of n empty contexts."""
        return self.base.initial_state(n)

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, ...]."""
        return self.base.sample_noise(shape, generator)

    def _planned(self, context: Context, order: Tensor, row: Tensor) -> Int[Tensor, " rows"]:
        length, entries = context.length[row].long(), context.entries[row]
        room = self.base.context - length
        left = self.horizon - context.episode_step[row]
        depth = torch.minimum(left, 1 + room).clamp(1, self.depth)
        root = _Imagined(self, Branches.of(KeyValueCache(entries, length)))
        return beam_search(root, order=order[row], depth=depth, max_depth=self.depth, beams=self.beams)


class Imagination(Protocol):
    """Where plans have led so far: b of them in each of n rows."""

    @property
    def reward(self) -> Float[Tensor, "n b actions"]:
        """Of every action that a plan may go on with."""
        ...

    def followed(self, beam: Int[Tensor, "n kept"], action: Int[Tensor, "n kept"]) -> Imagination:
        """Where those plans lead that go on from these with these actions."""
        ...


def beam_search(
    root: Imagination,
    *,
    order: Int[Tensor, "n actions"],
    depth: Int[Tensor, " n"],
    max_depth: int,
    beams: int,
) -> Int[Tensor, " n"]:
    """The first actions of the plans of greatest return, undiscounted and without a value at their end.

    At every step all actions are tried after each plan, and the ``beams`` best are kept; of equal ones those that come
    first (arXiv 2502.19009, release). With ``beams >= actions^depth`` it is an exhaustive search.

    Args:
        root: with one plan in each row, which is empty.
        order: in which the first actions are tried.
        depth: the steps of a row's plans, from 1 to ``max_depth``.
    """
    returns, rank = root.reward[:, 0].gather(1, order).sort(dim=1, descending=True, stable=True)
    returns, action = returns[:, :beams], order.gather(1, rank)[:, :beams]
    first, beam, imagined = action, torch.zeros_like(action), root
    actions = order.shape[1]
    done = torch.full((actions,), -math.inf, dtype=returns.dtype, device=returns.device)
    done[0] = 0  # a plan that is long enough has itself as its only child
    for steps in range(1, max_depth):
        going = (depth > steps)[:, None, None]
        if not going.any():
            break
        imagined = imagined.followed(beam, action)
        children = returns[..., None] + torch.where(going, imagined.reward, done)
        returns, child = children.flatten(1).sort(dim=1, descending=True, stable=True)
        returns, child = returns[:, :beams], child[:, :beams]
        beam, action = child // actions, child % actions
        first = first.gather(1, beam)
    return first[:, 0]


class _Imagined:
    """Plans in the model of a :class:`PlanningPolicy`: its most probable rewards and observations, as if they had
    happened. newest: the token of the last step of each plan; none at the root."""

    def __init__(
        self, policy: PlanningPolicy, branches: Branches, newest: Float[Tensor, "n b width"] | None = None
    ) -> None:
        self._policy = policy
        rows, _, _, _, plans, _, _ = branches.entries.shape
        taken = policy.embed_taken.weight.expand(rows, plans, -1, -1)
        aside, self._branches = policy.base.network.branched(taken, branches, newest)
        self.reward = policy.reward_values[policy.reward(aside).argmax(-1)]
        self._observation = policy.coordinates.mode(policy.next_observation(aside))

    def followed(self, beam: Int[Tensor, "n kept"], action: Int[Tensor, "n kept"]) -> _Imagined:
        row = torch.arange(len(beam), device=beam.device)[:, None]
        tokens = self._policy.base.tokens
        no = torch.zeros_like(beam, dtype=torch.bool)
        newest = tokens(
            self._observation[row, beam, action].view(*beam.shape, *tokens.observation_shape),
            action + tokens.first_action,
            self.reward[row, beam, action],
            first=no,
            start=no,
        )
        return _Imagined(self._policy, self._branches.chosen(beam), newest)


def grid_of(space: spaces.Box, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """How many values each coordinate of a Box of integers has, and the lowest, as flat int64 arrays.

    Raises:
        ValueError: the Box is of floats or has no bounds.
    """
    if not np.issubdtype(space.dtype, np.integer) or not space.is_bounded():
        raise ValueError(f"observation_space = {space}; valid for {purpose}: a Box of integers with bounds")
    low, high = (np.asarray(bound, np.int64).reshape(-1) for bound in (space.low, space.high))
    return high - low + 1, low


def _embedding(rows: int, width: int, generator: torch.Generator | None) -> nn.Embedding:
    table: nn.Embedding = nn.utils.skip_init(nn.Embedding, rows, width)  # type: ignore[no-untyped-call]
    nn.init.normal_(table.weight, std=INITIAL_STD, generator=generator)
    return table


def _vector(width: int, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.randn(width, generator=generator) * INITIAL_STD)
