"""Episodes of many copies of a linear MDP at once, as functions of uniform random numbers.

Every copy has uniforms of its own, so copy i of a batch does what it would do alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.envs.linear_mdp.model import LinearMDP


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes:
    """One episode of every copy.

    Attributes:
        states: [copies, H + 1], the last one being where the last action led to.
        actions: [copies, H].
        rewards: [copies, H].
    """

    states: Int[Tensor, "copies stages"]
    actions: Int[Tensor, "copies H"]
    rewards: Float[Tensor, "copies H"]


def inverse_cdf(probabilities: Float[Tensor, "... n"], uniforms: Float[Tensor, ...]) -> Int[Tensor, ...]:
    """The smallest k with p_0 + ... + p_k > u: distributed like p for u uniform in [0, 1).

    Rounding never leads to an entry of probability 0.
    """
    cumulative = probabilities.cumsum(-1)
    # Scaled by the sum, which rounding leaves off 1, so that u < 1 always stays inside the support.
    target = (uniforms * cumulative[..., -1]).unsqueeze(-1)
    return (cumulative <= target).sum(-1).clamp(max=probabilities.shape[-1] - 1)


def draw_noise(copies: int, horizon: int, *, generator: torch.Generator) -> Float[Tensor, "copies draws"]:
    """Uniforms for one episode of every copy, [copies, 1 + 2 H]: first state, then action and next state in turn."""
    return torch.rand(copies, 1 + 2 * horizon, dtype=torch.float64, device=generator.device, generator=generator)


def first_states(mdp: LinearMDP, uniforms: Float[Tensor, " copies"]) -> Int[Tensor, " copies"]:
    """s_0 of every copy. The batch of ``mdp`` is () or [copies]."""
    return inverse_cdf(mdp.initial.expand(len(uniforms), -1), uniforms)


def next_states(
    mdp: LinearMDP,
    h: int,
    states: Int[Tensor, " copies"],
    actions: Int[Tensor, " copies"],
    uniforms: Float[Tensor, " copies"],
) -> Int[Tensor, " copies"]:
    """s_{h+1} ~ P_h(. | s, a) of every copy. The batch of ``mdp`` is () or [copies]."""
    return inverse_cdf(_rows(mdp.kernel.select(-4, h), states, actions, dims=3), uniforms)


def rewards_of(
    mdp: LinearMDP, h: int, states: Int[Tensor, " copies"], actions: Int[Tensor, " copies"]
) -> Float[Tensor, " copies"]:
    """r_h(s, a) of every copy."""
    return _rows(mdp.rewards.select(-3, h), states, actions, dims=2)


def rollout(mdp: LinearMDP, policy: Float[Tensor, "*batch H S A"], noise: Float[Tensor, "copies draws"]) -> Episodes:
    """One episode of every copy under a tabular policy.

    Args:
        mdp: of batch () or [copies].
        policy: pi_h(a | s), [H, S, A] or [copies, H, S, A].
        noise: of :func:`draw_noise`.
    """
    state = first_states(mdp, noise[:, 0])
    copies = torch.arange(len(noise), device=noise.device)
    states, actions, rewards = [state], [], []
    for h in range(mdp.horizon):
        probabilities = policy[h, state] if policy.dim() == 3 else policy[copies, h, state]
        action = inverse_cdf(probabilities, noise[:, 1 + 2 * h])
        actions.append(action)
        rewards.append(rewards_of(mdp, h, state, action))
        state = next_states(mdp, h, state, action, noise[:, 2 + 2 * h])
        states.append(state)
    return Episodes(states=torch.stack(states, 1), actions=torch.stack(actions, 1), rewards=torch.stack(rewards, 1))


def _rows(table: Tensor, states: Tensor, actions: Tensor, *, dims: int) -> Tensor:
    """table[s, a] or table[copy, s, a], for a table with ``dims`` dimensions or one more."""
    if table.dim() == dims:
        return table[states, actions]
    return table[torch.arange(len(states), device=states.device), states, actions]
