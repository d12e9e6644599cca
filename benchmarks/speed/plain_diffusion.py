"""Diffusion policies as they are written down in plain PyTorch: the yardstick of the library's.

After the released code of Diffusion Policy (arXiv 2303.04137) and past-token prediction (arXiv 2505.09561): windows are
cut out of arrays one by one and stacked, the network reads the observations anew in every denoising step, candidates
are sampled one after the other, and episodes are played one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import default_collate

Array = NDArray[Any]

Draw = Callable[[int, int], Tensor]
"""``(step of the episode, candidate) -> normals [tokens, Da]`` to begin the denoising with."""


class PlainWindows:
    """All windows of To + F - 1 steps, each recorded step being the present one of one of them.

    observation, action: of all steps, [steps, ...]. ends: of the episodes in them.
    """

    def __init__(self, observation: Array, action: Array, ends: Sequence[int], *, observations: int, future: int):
        self.observation, self.action, self.observations = observation, action, observations
        self.span = observations + future - 1
        self.indices: list[tuple[int, int, int, int]] = []
        first = 0
        for end in ends:
            for start in range(1 - observations, end - first - self.span + future):
                begin, over = max(start, 0) + first, min(start + self.span, end - first) + first
                self.indices.append((begin, over, begin - first - start, over - first - start))
            first = end

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        begin, over, left, right = self.indices[number]
        window = {}
        for name, values in (("observation", self.observation), ("action", self.action)):
            part = values[begin:over]
            whole = np.zeros((self.span, *values.shape[1:]), values.dtype)
            whole[:left] = part[0]
            whole[right:] = part[-1]
            whole[left:right] = part
            window[name] = torch.from_numpy(whole)
        window["observation"] = window["observation"][: self.observations]
        return window


class PlainNetwork(nn.Module):
    """The transformer, from noisy actions, the step and encoded observations to a prediction; all past tokens."""

    def __init__(self, observed: int, acted: int, *, width: int, layers: int, observations: int, future: int) -> None:
        super().__init__()
        tokens, half = observations - 1 + future, width // 2
        self.frequency = torch.exp(-np.log(10000.0) * torch.arange(half) / (half - 1))
        self.embed_observation = nn.Linear(observed, width)
        self.memory_position = nn.Parameter(torch.zeros(1 + observations, width))
        self.memory_perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.embed_action = nn.Linear(acted, width)
        self.action_position = nn.Parameter(torch.zeros(tokens, width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, acted)
        token, seen = torch.arange(tokens)[:, None], torch.arange(1 + observations)
        self.after, self.unseen = token < torch.arange(tokens), seen > token + 1

    def forward(self, noisy: Tensor, step: Tensor, features: Tensor) -> Tensor:
        device = noisy.device
        angle = step[:, None] * self.frequency.to(device)
        time = torch.cat([angle.sin(), angle.cos()], 1)[:, None]
        memory = torch.cat([time, self.embed_observation(features)], 1)
        memory = self.memory_perceptron(memory + self.memory_position)
        x = self.embed_action(noisy) + self.action_position
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=self.after.to(device), memory_mask=self.unseen.to(device))
        return self.head(self.norm(x))  # type: ignore[no-any-return]


@dataclass
class PlainPolicy:
    """A network, what makes features of observations [n, ...], the actions' units, and one of diffusers' schedulers."""

    encoder: nn.Module
    normalizer: Any
    network: PlainNetwork
    scheduler: Any
    observations: int
    candidates: int = 1

    def predict(self, noisy: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        """The prediction for observations [n, To, ...]."""
        features = self.encoder(observation.flatten(0, 1)).view(len(noisy), self.observations, -1)
        return self.network(noisy, step, features)  # type: ignore[no-any-return]

    def loss(self, observation: Tensor, action: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Of windows; the clean actions are predicted."""
        clean = self.normalizer(action)
        noisy = self.scheduler.add_noise(clean, noise, step)
        return nn.functional.mse_loss(self.predict(noisy, step, observation), clean)

    @torch.no_grad()
    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Tokens [1, tokens, Da] for observations [1, To, ...]."""
        tokens = noise
        for k in self.scheduler.timesteps:
            step = k.to(tokens.device).expand(len(tokens))
            tokens = self.scheduler.step(self.predict(tokens, step, observation), int(k), tokens).prev_sample
        return tokens

    def decide(self, seen: Tensor, executed: Tensor, count: int, draw: Draw) -> Tensor:
        """The action [Da] after observations [To, ...]; of the candidates the one closest to what was executed
        [To - 1, Da], in normalized units, once there are as many observations."""
        known = count >= self.observations
        best, least = None, float("inf")
        for candidate in range(self.candidates if known else 1):
            tokens = self.sample(seen[None], draw(count - 1, candidate)[None])[0]
            error = float((tokens[: self.observations - 1] - self.normalizer(executed)).square().sum())
            if best is None or error < least:
                best, least = tokens, error
        assert best is not None
        action: Tensor = self.normalizer.inverse(best[self.observations - 1])
        return action.clamp(-1, 1)


def play_one(env: gymnasium.Env[Any, Any], policy: PlainPolicy, seed: int, draw: Draw, device: str) -> Tensor:
    """The actions [steps, Da] of one episode."""
    observation, _ = env.reset(seed=seed)
    seen = torch.as_tensor(observation, device=device).expand(policy.observations, -1)
    actions: list[Tensor] = []
    over = False
    while not over:
        past = policy.observations - 1
        padding = [torch.zeros(env.action_space.shape or (), device=device)] * past
        action = policy.decide(seen, torch.stack((padding + actions)[len(actions) :]), len(actions) + 1, draw)
        observation, _, terminated, truncated, _ = env.step(action.cpu().numpy())
        seen = torch.cat([seen[1:], torch.as_tensor(observation, device=device)[None]])
        actions.append(action)
        over = terminated or truncated
    return torch.stack(actions)


class PlainLearner:
    """AdamW on the loss with a schedule of the learning rate, and an average of the weights."""

    def __init__(self, policy: PlainPolicy, windows: PlainWindows, *, batch: int, device: str = "cpu", seed: int = 0):
        self.policy, self.windows, self.batch, self.device = policy, windows, batch, device
        self.average = copy.deepcopy(policy.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(policy.network.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=1e-3)
        self.schedule = LambdaLR(self.optimizer, lambda step: 1.0)
        self.generator = np.random.default_rng(seed)

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Observations and actions of random windows."""
        numbers = self.generator.integers(len(self.windows), size=self.batch)
        batch = default_collate([self.windows[number] for number in numbers])
        return batch["observation"].to(self.device), batch["action"].to(self.device)

    def step(self) -> None:
        """Draw a batch and take an optimizer step on it."""
        observation, action = self.drawn()
        noise = torch.randn(action.shape, device=self.device)
        step = torch.randint(self.policy.scheduler.config.num_train_timesteps, (self.batch,), device=self.device)
        loss = self.policy.loss(observation, action, noise, step)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        with torch.no_grad():
            for average, weight in zip(self.average.parameters(), self.policy.network.parameters(), strict=True):
                average.mul_(0.999).add_(weight, alpha=0.001)
