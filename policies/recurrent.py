"""Actor and critic with a memory: a gated recurrent unit between features and decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.policies.actor_critic import Critic, Decision, Steps
from decisionrl.policies.distributions import Std, head_for
from decisionrl.policies.encoders import Activation, encoder_for
from decisionrl.policies.evaluation import Batch, Evaluation, Observation


class RecurrentActorCritic(nn.Module):
    """An actor, and a critic if wanted, that remember: features, a GRU that both share, hidden layers, outputs.

    The state [N, layers * memory] is that before an observation; 0 at the start of an episode. The caller of
    ``act`` and ``value`` sets the rows of new episodes to 0; ``evaluate`` does so itself where ``batch.start`` is
    set. Masked steps leave the state as it is (but a start among them still sets it to 0).

    Args:
        memory: width of the GRU (arXiv 1406.1078).
        layers: of the GRU.
        hidden: widths of the layers between GRU and outputs.

    The other arguments and the errors are those of :class:`~decisionrl.policies.actor_critic.ActorCritic`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        memory: int = 64,
        layers: int = 1,
        hidden: Sequence[int] = (64,),
        activation: Activation = "tanh",
        critic: Critic | None = "separate",
        std: Std = "independent",
        initial_log_std: float = 0.0,
        squash: bool = False,
        normalize_observations: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder_for(observation_space, normalize=normalize_observations, generator=generator)
        self.memory = GRU(self.encoder.features, memory, layers=layers, generator=generator)
        head = head_for(action_space, std=std, squash=squash, initial_log_std=initial_log_std)
        self.decision = Decision(memory, head, hidden=hidden, activation=activation, critic=critic, generator=generator)

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [N, ...] and the next state; see ``ActorCritic.act``. No state stands for one of zeros."""
        remembered, state = self._step(observation, state)
        return self.decision.act(remembered, noise), state

    def value(self, observation: Observation, state: Tensor | None = None) -> Float[Tensor, " n"] | None:
        """V [N] of observations [N, ...] in the state before them; None without a critic."""
        return self.decision.value(self._step(observation, state)[0])

    def evaluate(self, batch: Batch) -> Evaluation:
        """log_prob, entropy, value and head of the batch's actions; masked steps are 0.

        The state before the first step is ``batch.state``, or 0; gradients run through all steps of a row, as far
        as its episode goes back.
        """
        steps = Steps(batch.mask)
        features = self._features(steps.take_observation(batch.observation))
        remembered: Tensor = self.memory(
            steps.put(features, self.encoder.features),
            self._state(batch.state, len(batch.mask)),
            batch.mask,
            batch.start,
        )
        return self.decision.evaluate(steps.take(remembered), steps.take(batch.action), steps)

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The state [n, layers * memory] before the first observation of an episode: zeros."""
        return self.decision.actor.weight.new_zeros(n, self.memory.layers * self.memory.width)

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, ...]."""
        return self.decision.sample_noise(shape, generator)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.encoder.update(observation, mask)

    def _features(self, observation: Observation) -> Float[Tensor, "n features"]:
        return self.encoder.forward(observation).to(self.decision.actor.weight.dtype)

    def _step(self, observation: Observation, state: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self._features(observation)
        return self.memory.step(features, self._state(state, len(features)))

    def _state(self, state: Tensor | None, n: int) -> Tensor:
        return self.initial_state(n) if state is None else state


class GRU(nn.Module):
    """Gated recurrent units in layers, one state [N, layers * width] for all; orthogonal weights, biases 0.

    torch's GRU has no starts in the middle of a sequence and no masked steps.
    """

    def __init__(self, inputs: int, width: int, *, layers: int = 1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, value in (("memory", width), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} = {value}; valid: at least 1")
        self.width, self.layers = width, layers
        self.cells = nn.ModuleList()
        for layer in range(layers):
            cell = nn.utils.skip_init(nn.GRUCell, width if layer else inputs, width)  # type: ignore[no-untyped-call]
            for weight in (*cell.weight_ih.chunk(3), *cell.weight_hh.chunk(3)):
                nn.init.orthogonal_(weight, generator=generator)
            nn.init.zeros_(cell.bias_ih)
            nn.init.zeros_(cell.bias_hh)
            self.cells.append(cell)

    def step(self, x: Float[Tensor, "n inputs"], state: Float[Tensor, "n state"]) -> tuple[Tensor, Tensor]:
        """The output [n, width] of one step, and the state after it."""
        states = []
        for cell, before in zip(self.cells, torch.split(state, self.width, 1), strict=True):
            x = cell(x, before)
            states.append(x)
        return x, torch.cat(states, 1) if self.layers > 1 else x

    def forward(
        self,
        x: Float[Tensor, "batch step inputs"],
        state: Float[Tensor, "batch state"],
        mask: Bool[Tensor, "batch step"],
        start: Bool[Tensor, "batch step"] | None = None,
    ) -> Float[Tensor, "batch step width"]:
        """The outputs of every step; what stands at masked steps means nothing."""
        resets = [False] * mask.shape[1] if start is None else start.any(0).tolist()
        complete = mask.all(0).tolist()
        outputs = []
        for t, inputs in enumerate(x.unbind(1)):
            if start is not None and resets[t]:
                state = torch.where(start[:, t, None], 0.0, state)
            output, after = self.step(inputs, state)
            state = after if complete[t] else torch.where(mask[:, t, None], after, state)
            outputs.append(output)
        return torch.stack(outputs, 1)
