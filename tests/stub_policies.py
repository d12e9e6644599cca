"""The smallest policies that sources accept."""

import torch
from torch import nn

from decisionrl.policies.evaluation import Evaluation


class Drawn(nn.Module):
    """Draws among ``actions`` in proportion to exp(bias); V is the sum of the observation, entries squared.

    Without noise it takes the last of the actions.
    """

    def __init__(self, actions):
        super().__init__()
        self.actions = torch.as_tensor(actions)
        self.bias = nn.Parameter(torch.zeros(len(self.actions)))

    def act(self, observation, state=None, *, noise=None):
        count = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        if noise is None:
            return self.actions[-1].expand(count, *self.actions.shape[1:]).clone(), None
        cumulative = self.bias.detach().softmax(0).cumsum(0)
        return self.actions[torch.bucketize(noise, cumulative[:-1])], None

    def sample_noise(self, shape, generator=None):
        return torch.rand(shape, generator=generator)

    def initial_state(self, copies):
        return None

    def evaluate(self, batch):
        same = batch.action[:, :, None] == self.actions
        index = same.flatten(3).all(-1).long().argmax(-1) if same.ndim > 3 else same.long().argmax(-1)
        log_prob = self.bias.log_softmax(0)
        entropy = -(log_prob.exp() * log_prob).sum().expand(batch.mask.shape)
        return Evaluation(log_prob[index], entropy, squares(batch.observation, 2))

    def value(self, observation, state=None):
        return squares(observation, 1)


def squares(observation, leading):
    """The sum of the squares of each observation."""
    parts = observation.values() if isinstance(observation, dict) else [observation]
    return sum(part.double().square().reshape(*part.shape[:leading], -1).sum(-1) for part in parts)


class Remembering(nn.Module):
    """Counts the steps of its episode in its recurrent state and plays them: action = count % 3; V = count."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def act(self, observation, state=None, *, noise=None):
        return state[:, 0].long() % 3, state + 1

    def sample_noise(self, shape, generator=None):
        return torch.zeros(shape)

    def initial_state(self, copies):
        return torch.zeros(copies, 1)

    def evaluate(self, batch):
        count, counts = batch.state[:, 0], []
        for t in range(batch.mask.shape[1]):
            if batch.start is not None:
                count = torch.where(batch.start[:, t], 0.0, count)
            counts.append(count)
            count = count + 1
        value = torch.stack(counts, 1)
        assert (batch.action == value.long() % 3)[batch.mask].all()
        return Evaluation(torch.zeros_like(value), None, value)

    def value(self, observation, state=None):
        return state[:, 0]
