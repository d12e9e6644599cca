"""The linear MDPs of the literature, each a function that builds one."""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.linear_mdp.model import LinearMDP, linear_rewards


def tabular(
    kernel: Float[Tensor, "*batch H S A S"],
    rewards: Float[Tensor, "*batch H S A"],
    initial: Float[Tensor, "*batch S"],
    *,
    fail_state: int | None = None,
    max_reward: float = 1.0,
    name: str = "tabular MDP",
) -> LinearMDP:
    """Any tabular MDP, with one-hot features: d = S A, and phi(s, a) is the unit vector s A + a.

    Its d-rectangular uncertainty is that of the (s, a)-rectangular robust MDP.
    """
    states, actions = rewards.shape[-2:]
    eye = torch.eye(states * actions, dtype=torch.float64, device=rewards.device)
    return LinearMDP(
        features=eye.reshape(states, actions, -1),
        factors=kernel.flatten(-3, -2),
        rewards=rewards,
        initial=initial,
        fail_state=fail_state,
        max_reward=max_reward,
        name=name,
    )


def five_state(
    *,
    delta: float = 0.3,
    xi_norm: float = 0.1,
    p: float = 0.001,
    perturbation: float | Tensor | None = None,
) -> LinearMDP:
    """The simulated MDP of arXiv 2402.15399 (section 6.1): 5 states, 16 actions, H = 3, d = 4.

    With a in {-1, 1}^4 and u = delta + <xi, a>, xi = xi_norm / 4 (1, 1, 1, 1):

        phi(x1, a) = (1-u, 0, 0, u)    phi(x2, a) = (0, 1-u, 0, u)    phi(x3, a) = (0, 0, 1-u, u)
        phi(x4, a) = (0, 0, 1, 0)      phi(x5, a) = (0, 0, 0, 1)

    The reward is phi_4 from the second stage on. x4 fails, x5 pays forever. mu_{1,1} and mu_{2,2} lead on to x2 and x3,
    but for a probability p of x4; every mu_4 leads to x5, and mu_{2,3} to x4. What the source leaves open does not
    matter.

    Args:
        delta: probability of x5 of a middling action.
        xi_norm: ||xi||_1; delta - xi_norm >= 0 and delta + xi_norm <= 1.
        p: probability of failing on the way on.
        perturbation: q [*] in [0, 1] for target environments, in which the first stage has mu_1 = x2 for sure and
            mu_4 = (1 - q) x5 + q x4; None for the source.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= xi_norm <= min(delta, 1 - delta):
        raise ValueError(f"xi_norm = {xi_norm} with delta = {delta}; valid: 0 <= xi_norm <= min(delta, 1 - delta)")
    if not 0 <= p <= 1:
        raise ValueError(f"p = {p}; valid: in [0, 1]")
    action = torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    u = delta + xi_norm / 4 * action.sum(-1)
    features = torch.zeros(5, 16, 4, dtype=torch.float64)
    for state in range(3):
        features[state, :, state] = 1 - u
        features[state, :, 3] = u
    features[3, :, 2] = 1
    features[4, :, 3] = 1

    factors = torch.zeros(3, 4, 5, dtype=torch.float64)
    factors[:, :3, 3] = 1  # x4, where nothing else is said
    factors[:, 3, 4] = 1
    factors[0, 0] = torch.tensor([0, 1 - p, 0, p, 0], dtype=torch.float64)
    factors[1, 1] = torch.tensor([0, 0, 1 - p, p, 0], dtype=torch.float64)
    name = "five-state MDP"
    if perturbation is not None:
        q = torch.as_tensor(perturbation, dtype=torch.float64)
        if not ((q >= 0) & (q <= 1)).all():
            raise ValueError(f"perturbation = {perturbation}; valid: in [0, 1]")
        factors = factors.expand(*q.shape, -1, -1, -1).clone()
        factors[..., 0, 0, :] = torch.tensor([0, 1, 0, 0, 0], dtype=torch.float64)
        factors[..., 0, 3, 3] = q
        factors[..., 0, 3, 4] = 1 - q
        name = "perturbed five-state MDP"
    theta = torch.zeros(3, 4, dtype=torch.float64)
    theta[1:, 3] = 1
    return LinearMDP(
        features=features,
        factors=factors,
        rewards=linear_rewards(features, theta),
        initial=_start(0, 5),
        fail_state=3,
        name=name,
    )


def five_state_radius(rho: float | Tensor) -> Float[Tensor, "*batch H d"]:
    """The radius of the experiments: rho [*] on the factor mu_4 of the first stage, 0 elsewhere; [*, 3, 4]."""
    rho = torch.as_tensor(rho, dtype=torch.float64)
    radius = torch.zeros(*rho.shape, 3, 4, dtype=torch.float64)
    radius[..., 0, 3] = rho
    return radius


def american_put(
    *,
    horizon: int = 10,
    up_probability: float | Tensor = 0.5,
    start_price: float | Tensor = 100.0,
    strike: float = 100.0,
    up: float = 1.02,
    down: float = 0.98,
) -> LinearMDP:
    """The American put option of arXiv 2402.15399 (section 6.2) on its lattice of prices, exactly.

    State i < H + 1 of stage h is the price start_price up^i down^(h - i), see :func:`put_prices`; state H + 1 is the
    end. Action 0 holds: i becomes i + 1 with the up-probability. Action 1 exercises, pays max(0, strike - price) and
    ends. Features are one-hot, so dynamic programming is exact; the features that the published methods learn with are
    :func:`put_features`.

    Args:
        up_probability, start_price: [*], broadcast together.

    Raises:
        ValueError: an argument is out of its range.
    """
    probability = torch.as_tensor(up_probability, dtype=torch.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"up_probability = {up_probability}; valid: in [0, 1]")
    prices = put_prices(horizon=horizon, start_price=start_price, up=up, down=down)
    end = horizon + 1
    kernel = torch.zeros(*probability.shape, horizon, end + 1, 2, end + 1, dtype=torch.float64)
    kernel[..., 1, end] = 1
    kernel[..., end, 0, end] = 1
    for i in range(end):
        kernel[..., i, 0, min(i + 1, horizon)] = probability.unsqueeze(-1)
        kernel[..., i, 0, i] += 1 - probability.unsqueeze(-1)
    rewards = torch.zeros(*prices.shape[:-2], horizon, end + 1, 2, dtype=torch.float64)
    rewards[..., :end, 1] = (strike - prices[..., :horizon, :]).clamp(min=0)
    return tabular(kernel, rewards, _start(0, end + 1), fail_state=end, max_reward=strike, name="American put option")


def put_prices(
    *, horizon: int, start_price: float | Tensor, up: float = 1.02, down: float = 0.98
) -> Float[Tensor, "*batch stages states"]:
    """start_price up^i down^(h - i) for h = 0, ..., H and i = 0, ..., H, [*, H + 1, H + 1]; i <= h can happen."""
    start = torch.as_tensor(start_price, dtype=torch.float64)
    if not (start > 0).all() or not 0 < down < up:
        raise ValueError(
            f"start_price = {start_price}, down = {down}, up = {up}; valid: 0 < start_price, 0 < down < up"
        )
    if horizon < 1:
        raise ValueError(f"horizon = {horizon}; valid: a whole number >= 1")
    stage = torch.arange(horizon + 1, dtype=torch.float64)
    return start[..., None, None] * up**stage * down ** (stage[:, None] - stage)


def put_features(
    num_features: int,
    *,
    horizon: int = 10,
    start_price: float | Tensor = 100.0,
    up: float = 1.02,
    down: float = 0.98,
    lowest: float = 80.0,
    width: float | None = None,
) -> Float[Tensor, "*batch H S A d"]:
    """The hat functions with which the put option is learned, [*, H, H + 2, 2, d] for the states of the lattice.

    phi_i(s, hold) = max(0, 1 - |s - s_i| / D) with s_i = lowest + i D, i = 0, ..., d - 1, and D = width, by default
    100 / d as in the authors' code. Exercising, and the end, have features 0: what they pay is known. Below the first
    and above the last anchor the features do not sum to 1, so these are no features of a :class:`LinearMDP`.
    """
    prices = put_prices(horizon=horizon, start_price=start_price, up=up, down=down)[..., :horizon, :]
    spacing = 100.0 / num_features if width is None else width
    anchors = lowest + spacing * torch.arange(num_features, dtype=torch.float64)
    features = torch.zeros(*prices.shape[:-1], horizon + 2, 2, num_features, dtype=torch.float64)
    features[..., : horizon + 1, 0, :] = (1 - (prices.unsqueeze(-1) - anchors).abs() / spacing).clamp(min=0)
    return features


def frozen_lake(*, map_name: str = "4x4", horizon: int = 30) -> LinearMDP:
    """Gymnasium's slippery FrozenLake, with one-hot features; the value is the probability to succeed.

    Gymnasium pays for a step into the goal. Here being in the goal pays 1 and leads to an end, one more state, so there
    are ``horizon`` + 1 stages for ``horizon`` moves. Holes are never left. States are numbered as in Gymnasium.
    """
    if horizon < 1:
        raise ValueError(f"horizon = {horizon}; valid: a whole number >= 1")
    lake: Any = gymnasium.make("FrozenLake-v1", map_name=map_name, is_slippery=True).unwrapped
    states, actions, end = len(lake.P), len(lake.P[0]), len(lake.P)
    kernel = torch.zeros(states + 1, actions, states + 1, dtype=torch.float64)
    for state, action in product(range(states), range(actions)):
        for probability, following, _, _ in lake.P[state][action]:
            kernel[state, action, following] += probability
    goal = torch.from_numpy((lake.desc == b"G").reshape(-1).nonzero()[0])
    kernel[goal] = 0
    kernel[goal, :, end] = 1
    kernel[end, :, end] = 1
    rewards = torch.zeros(states + 1, actions, dtype=torch.float64)
    rewards[goal] = 1
    initial = torch.zeros(states + 1, dtype=torch.float64)
    initial[:states] = torch.from_numpy(np.asarray(lake.initial_state_distrib, dtype=np.float64))
    stages = horizon + 1
    return tabular(
        kernel.expand(stages, -1, -1, -1),
        rewards.expand(stages, -1, -1),
        initial,
        fail_state=end,
        name=f"FrozenLake {map_name}",
    )


def random_tabular(seed: int = 147) -> tuple[LinearMDP, Float[Tensor, "H d"]]:
    """A tabular MDP (S = 6, A = 3, H = 4) with a fail state, and a radius for it, [4, 18].

    Kernels are Dirichlet(0.4), with a tenth of the probability of the last state, which fails; rewards are uniform;
    the radius is 0.6 for about half of the (s, a), the same at all stages, and 0 for the others. Seed 147 has a large
    gap, 1.65, between the robust optimum and the robust value of the nominal policy.
    """
    rng = np.random.default_rng(seed)
    stages, states, actions = 4, 6, 3
    kernel = _rare_last(rng.dirichlet(np.full(states, 0.4), size=(stages, states, actions)), 0.1)
    kernel[:, -1] = 0
    kernel[:, -1, :, -1] = 1
    rewards = rng.random((stages, states, actions))
    rewards[:, -1] = 0
    rho = np.where(rng.random((states, actions)) < 0.5, 0.6, 0.0)
    mdp = tabular(
        torch.from_numpy(kernel),
        torch.from_numpy(rewards),
        _start(0, states),
        fail_state=states - 1,
        name="random tabular MDP",
    )
    return mdp, torch.from_numpy(rho.reshape(-1)).expand(stages, -1)


def random_linear(seed: int = 155) -> tuple[LinearMDP, Float[Tensor, "H d"]]:
    """A linear MDP with dense features (S = 12, A = 6, H = 5, d = 5) and a fail state, and a radius for it, [5, 5].

    Features are Dirichlet(0.4), factors Dirichlet(0.3) with a fifth of the probability of the last state, which fails;
    the last factor is that state, and theta is uniform. The radius is 0.7 on the first two factors. Factors are hard to
    tell apart here: bonuses on the diagonal of the inverse covariance shrink very slowly.
    """
    rng = np.random.default_rng(seed)
    stages, states, actions, d = 5, 12, 6, 5
    features = rng.dirichlet(np.full(d, 0.4), size=(states, actions))
    features[-1] = 0
    features[-1, :, -1] = 1
    factors = _rare_last(rng.dirichlet(np.full(states, 0.3), size=(stages, d)), 0.2)
    factors[:, -1] = 0
    factors[:, -1, -1] = 1
    theta = rng.random((stages, d))
    theta[:, -1] = 0
    phi = torch.from_numpy(features)
    mdp = LinearMDP(
        features=phi,
        factors=torch.from_numpy(factors),
        rewards=linear_rewards(phi, torch.from_numpy(theta)),
        initial=_start(0, states),
        fail_state=states - 1,
        name="random linear MDP",
    )
    radius = torch.zeros(stages, d, dtype=torch.float64)
    radius[:, :2] = 0.7
    return mdp, radius


def _rare_last(distributions: np.ndarray, share: float) -> np.ndarray:
    """Distributions [..., S] with the probability of the last state times ``share``, normalized."""
    distributions[..., -1] *= share
    normalized: np.ndarray = distributions / distributions.sum(-1, keepdims=True)
    return normalized


def _start(state: int, states: int) -> Tensor:
    initial = torch.zeros(states, dtype=torch.float64)
    initial[state] = 1
    return initial
