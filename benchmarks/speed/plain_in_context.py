"""In-context learning as it is written down in plain Python, Gymnasium and PyTorch: the yardsticks of the library's.

Histories come from a network of Stable-Baselines3 for each task, as in DICP's release (arXiv 2502.19009). Transformers
have a linear layer for everything that is projected, or are torch's own. What acts or plans reads its whole window for
every action. Histories are scored and drawn one by one (arXiv 2505.15143).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention, silu

from decisionrl.envs.gridworld.world import TaskWorld
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy, beam_search
from decisionrl.policies.in_context_network import Branches, InContextSizes, KeyValueCache

if TYPE_CHECKING:
    from stable_baselines3 import PPO

Array = NDArray[Any]

Draw = Callable[[], Sequence[Sequence[float]]]
"""Numbers in [0, 1) for a pass over the histories [task, history]."""

EPSILON, ROTARY_BASE = 1e-5, 10000.0


# Histories.


class PlainRoom(gymnasium.Env[Array, np.int64]):
    """Darkroom with one goal: 1 for every step that ends on it."""

    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])

    def __init__(self, goal: Sequence[int], *, size: int, horizon: int) -> None:
        self.goal, self.size, self.horizon = np.array(goal), size, horizon
        self.observation_space = spaces.Box(0, size - 1, (2,), np.int32)
        self.action_space = spaces.Discrete(len(self.moves))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.cell = 0, np.full(2, self.size // 2, np.int32)
        return self.cell, {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.cell = np.clip(self.cell + self.moves[action], 0, self.size - 1).astype(np.int32)
        reward = float((self.cell == self.goal).all())
        return self.cell, reward, False, self.steps >= self.horizon, {}


def room_ppo(goal: Sequence[int], *, size: int, horizon: int, streams: int, seed: int) -> PPO:
    """A learner of one task with the hyperparameters of DICP; an episode of every stream is an update."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    rooms = DummyVecEnv([lambda: PlainRoom(goal, size=size, horizon=horizon)] * streams)
    return PPO(
        "MlpPolicy",
        rooms,
        n_steps=horizon,
        batch_size=50,
        n_epochs=20,
        learning_rate=3e-4,
        gamma=0.99,
        seed=seed,
        device="cpu",
    )


# Training.


class PlainLlamaBlock(nn.Module):
    """RMSNorm, rotary positions and SwiGLU."""

    def __init__(self, sizes: InContextSizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.attention_dropout = sizes.heads, sizes.attention_dropout
        self.attention_norm, self.feedforward_norm = (nn.RMSNorm(width, eps=EPSILON) for _ in range(2))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, sizes.feedforward, bias=False) for _ in range(2))
        self.down = nn.Linear(sizes.feedforward, width, bias=False)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        h = self.attention_norm(x)
        queries, keys, values = (
            layer(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        queries, keys = (each * cosine + half_turned(each) * sine for each in (queries, keys))
        dropout = self.attention_dropout if self.training else 0.0
        read = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        x = x + self.dropout(self.output(read.transpose(1, 2).flatten(2)))
        h = self.feedforward_norm(x)
        return x + self.dropout(self.down(silu(self.gate(h)) * self.up(h)))  # type: ignore[no-any-return]


def half_turned(x: Tensor) -> Tensor:
    """(x_1, x_2) to (-x_2, x_1), each half of the features."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class PlainLlama(nn.Module):
    """Blocks one after the other."""

    def __init__(self, sizes: InContextSizes) -> None:
        super().__init__()
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(PlainLlamaBlock(sizes) for _ in range(sizes.layers))
        each = sizes.width // sizes.heads
        self.frequency = ROTARY_BASE ** -(torch.arange(0, each, 2) / each)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] * self.frequency.repeat(2)
        cosine, sine = angle.cos().to(x.device), angle.sin().to(x.device)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, cosine, sine)
        return x


class PlainGPT(nn.Module):
    """Torch's encoder with a causal mask and learned positions."""

    def __init__(self, sizes: InContextSizes, context: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(context, sizes.width))
        layer = nn.TransformerEncoderLayer(
            sizes.width, sizes.heads, sizes.feedforward, sizes.dropout, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(sizes.width)
        self.encoder = nn.TransformerEncoder(layer, sizes.layers, norm, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens, device=x.device)
        return self.encoder(x + self.position[:tokens], mask=mask, is_causal=True)  # type: ignore[no-any-return]


class PlainModel(nn.Module):
    """Algorithm distillation (arXiv 2210.14215) on a grid: logits of the next action at every step of windows."""

    def __init__(self, sizes: InContextSizes, *, size: int, actions: int, context: int) -> None:
        super().__init__()
        width = sizes.width
        self.actions = actions
        self.embed_x0, self.embed_x1 = (nn.Embedding(size, width) for _ in range(2))
        self.embed_action = nn.Embedding(actions + 1, width)  # the last for no action
        self.embed_reward = nn.Linear(1, width, bias=False)
        self.embed_start = nn.Embedding(2, width, padding_idx=0)
        self.body = PlainLlama(sizes) if sizes.block == "llama" else PlainGPT(sizes, context)
        self.head = nn.Linear(width, actions)

    def forward(self, observation: Tensor, action: Tensor, reward: Tensor, start: Tensor) -> Tensor:
        action = torch.cat([torch.full_like(action[:, :1], self.actions), action[:, :-1]], 1)
        reward = torch.cat([torch.zeros_like(reward[:, :1]), reward[:, :-1]], 1)
        x = self.embed_x0(observation[..., 0]) + self.embed_x1(observation[..., 1])
        x = x + self.embed_action(action) + self.embed_reward(reward[..., None]) + self.embed_start(start.long())
        return self.head(self.body(x))  # type: ignore[no-any-return]

    def loss(self, observation: Tensor, action: Tensor, reward: Tensor, start: Tensor) -> Tensor:
        """The mean over all steps."""
        return cross_entropy(self(observation, action, reward, start).flatten(0, 1), action.flatten())


@torch.no_grad()
def plain_model(policy: InContextPolicy) -> PlainModel:
    """The plain model with the weights of a policy on a square grid."""
    sizes, tokens = policy.network.sizes, policy.tokens
    rows = tokens.embed_observation.weight
    assert isinstance(rows, Tensor)
    model = PlainModel(sizes, size=len(rows) // 2, actions=policy.head.num_outputs, context=policy.context)
    embed_action = tokens.embed_action.weight
    assert isinstance(embed_action, Tensor)
    x0, x1 = rows.chunk(2)
    model.embed_x0.weight.copy_(x0)
    model.embed_x1.weight.copy_(x1)
    model.embed_action.weight.copy_(torch.cat([embed_action, tokens.no_action[None]]))
    model.embed_reward.weight.copy_(tokens.embed_reward[:, None])
    model.embed_start.weight[1] = tokens.begins
    model.head.load_state_dict(policy.actor.state_dict())
    model.body.load_state_dict(dict(_body(policy)))
    return model.to(policy.actor.weight.device)


def _body(policy: InContextPolicy) -> Iterator[tuple[str, Tensor]]:
    """The names in the plain network of a policy's weights, and their values."""
    llama = policy.network.sizes.block == "llama"
    for name, value in policy.network.state_dict().items():
        if not llama:
            for own, other in GPT_NAMES.items():
                name = name.replace(own, other)
            yield name, value
        elif "query_key_value" in name:
            prefix, kind = name.split("attention.query_key_value.")
            yield from zip(
                (f"{prefix}{each}.{kind}" for each in ("query", "key", "value")), value.chunk(3), strict=True
            )
        elif "gate_and_value" in name:
            prefix = name.split("feedforward.")[0]
            yield from zip((f"{prefix}gate.weight", f"{prefix}up.weight"), value.chunk(2), strict=True)
        else:
            yield name.replace("attention.output", "output").replace("feedforward.output", "down"), value


GPT_NAMES = {
    "last_norm": "encoder.norm",
    "blocks": "encoder.layers",
    "attention_norm": "norm1",
    "feedforward_norm": "norm2",
    "attention.query_key_value.": "self_attn.in_proj_",
    "attention.output": "self_attn.out_proj",
    "feedforward.hidden": "linear1",
    "feedforward.output": "linear2",
}
"""Parts of the library's names and what torch calls them."""


class PlainLearner:
    """AdamW with a bound on the norm of the gradient."""

    def __init__(self, model: PlainModel) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), 3e-4)

    def step(self, observation: Tensor, action: Tensor, reward: Tensor, start: Tensor) -> None:
        """An optimizer step on windows."""
        loss = self.model.loss(observation, action, reward, start)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


# Acting and planning.


@dataclass(frozen=True)
class Window:
    """Steps of several rows: observations [n, step, ...], actions, rewards, and where episodes begin [n, step]."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    start: Tensor

    def without(self, steps: int) -> Window:
        """What is left when the first steps are gone."""
        return Window(*(each[:, steps:] for each in (self.observation, self.action, self.reward, self.start)))

    def seeing(self, observation: Tensor, *, start: bool) -> Window:
        """With one more step, whose action and reward are still 0."""
        rows = len(observation)
        return Window(
            torch.cat([self.observation, observation[:, None]], 1),
            torch.cat([self.action, self.action.new_zeros(rows, 1)], 1),
            torch.cat([self.reward, self.reward.new_zeros(rows, 1)], 1),
            torch.cat([self.start, self.start.new_full((rows, 1), start)], 1),
        )

    def doing(self, action: Tensor, reward: Tensor) -> Window:
        """With the action and the reward of the last step."""
        return Window(
            self.observation,
            torch.cat([self.action[:, :-1], action[:, None]], 1),
            torch.cat([self.reward[:, :-1], reward[:, None]], 1),
            self.start,
        )


@torch.no_grad()
def play_plainly(
    world: TaskWorld, policy: InContextPolicy, past: Window, seeds: Sequence[int], noise: Tensor
) -> Tensor:
    """Actions [step, n] of an episode after a past that fills the context; of it the oldest episode is forgotten."""
    observation, window = world.reset(seeds), past.without(len(noise))
    actions = []
    for step, drawn in enumerate(noise):
        window = window.seeing(observation, start=step == 0)
        action = policy.head.sample(policy(window)[:, -1], drawn)
        taken = world.step(action)
        window, observation = window.doing(action, taken.reward), world.observation
        actions.append(action)
    return torch.stack(actions)


@torch.no_grad()
def plan_plainly(policy: PlanningPolicy, window: Window, noise: Tensor) -> Tensor:
    """Actions [n] at the last steps of windows, which have room for as many more as a plan has."""
    order = (policy.base(window)[:, -1] + noise).argsort(dim=1, descending=True, stable=True)
    root, depth = WholePasses(policy, window, beams=1), torch.full_like(order[:, 0], policy.depth)
    return beam_search(root, order=order, depth=depth, max_depth=policy.depth, beams=policy.beams)


class WholePasses:
    """Plans in the model of a policy, as a search imagines them; the window of each is read as a whole."""

    def __init__(self, policy: PlanningPolicy, windows: Window, *, beams: int) -> None:
        self._policy, self._windows = policy, windows
        network, (rows, steps) = policy.base.network, windows.reward.shape
        length = torch.full((rows,), steps, device=windows.reward.device)
        entries = network.cached(policy.base.tokens.window(windows), length)
        cache = KeyValueCache(pad(entries, (0, 0, 0, network.context - steps)), length)
        taken = policy.embed_taken.weight.expand(rows, 1, -1, -1)
        aside = network.branched(taken, Branches.of(cache))[0][:, 0]
        reward, seen = policy.reward(aside).argmax(-1), policy.coordinates.mode(policy.next_observation(aside))
        self.reward = policy.reward_values[reward].view(-1, beams, *reward.shape[1:])
        self._observation = seen.view(-1, beams, *seen.shape[1:])

    def followed(self, beam: Tensor, action: Tensor) -> WholePasses:
        rows, beams, _ = self.reward.shape
        row = torch.arange(rows, device=beam.device)[:, None]
        plan = (row * beams + beam).flatten()
        reward, seen = (each[row, beam, action].flatten(0, 1) for each in (self.reward, self._observation))
        each = (self._windows.observation, self._windows.action, self._windows.reward, self._windows.start)
        before = Window(*(part[plan] for part in each))
        longer = before.doing(action.flatten(), reward).seeing(seen, start=False)
        return WholePasses(self._policy, longer, beams=beam.shape[1])


# Filtering.


def plain_filter(
    returns: Sequence[Sequence[Sequence[float]]], r_max: Sequence[float], uniform: Draw
) -> list[list[int]]:
    """The histories [task, history] that the linear rule with lambda = 1 keeps of returns [task, history, episode]."""
    probability = [retained([scored(each, most) for each in task]) for task, most in zip(returns, r_max, strict=True)]
    kept: list[list[int]] = [[] for _ in returns]
    while any(len(index) < len(task) for index, task in zip(kept, returns, strict=True)):
        for index, chance, drawn in zip(kept, probability, uniform(), strict=True):
            for history, (p, v) in enumerate(zip(chance, drawn, strict=True)):
                if v < p and len(index) < len(chance):
                    index.append(history)
    return kept


def scored(returns: Sequence[float], most: float) -> float:
    """Improvement and stability of a history."""
    improvement = (sum(returns) / len(returns) + max(returns) - min(returns)) / (2 * most)
    drops = [after - before for before, after in pairwise(returns) if after < before]
    return improvement + 1 + (sum(drops) / len(drops) if drops else 0.0) / most


def retained(scores: Sequence[float]) -> list[float]:
    """The probabilities with which the histories of a task are kept."""
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]
