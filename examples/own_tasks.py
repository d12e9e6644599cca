"""python examples/own_tasks.py: your own family of tasks, your own histories, a policy that learns in its context."""

import gymnasium
import numpy as np
import torch

from decisionrl.envs.gridworld.family import split_ids
from decisionrl.envs.seeded import uniform
from decisionrl.experience.histories import HistoryLayout, Transitions, write_histories
from decisionrl.recipes.ad import ad
from decisionrl.trainer import Trainer


class Lock:  # three doors in a row, each opened by one of five levers; the task is which by which, and a state the door
    name, num_tasks, horizon, start_draws, device = "lock", 5**3, 6, 0, torch.device("cpu")
    observation_space, action_space = gymnasium.spaces.Box(0, 3, (1,), np.int32), gymnasium.spaces.Discrete(5)
    max_return = torch.full((5**3,), 3.0)

    def to(self, device):
        return self  # on a CPU only

    def split(self, seed=None):
        return split_ids(self.name, 5**3, train_share=0.8, seed=seed or 0, shuffle="python", device=self.device)

    def start(self, uniform):
        return torch.zeros(*uniform.shape[:-1], 1, dtype=torch.int64)

    def step(self, state, action, task):
        opened = self.optimal_action(state, task).eq(action) & ~self.success(state, task)
        return state + opened[..., None], opened.float()

    def observation(self, state):
        return state

    def state_of(self, observation, collected):
        return observation

    def success(self, state, task):
        return state[..., 0] == 3

    def optimal_action(self, state, task):
        return task // 5 ** state[..., 0] % 5


def learners(task, histories=20, episodes=20):  # who know the way, and explore less and less
    family = Lock()
    seed = histories * task[:, None] + torch.arange(histories)  # what happens in a task depends on no other
    task = task[:, None].expand_as(seed)
    for episode in range(episodes):
        number = uniform(seed.flatten(), torch.tensor(episode), 2 * family.horizon).view(*seed.shape, 2, -1)
        state, steps = family.start(torch.empty(*seed.shape, 0)), []
        for chance, drawn in number.permute(3, 2, 0, 1):
            explores = chance <= 1 - episode / (episodes - 1)
            action = torch.where(explores, (5 * drawn).long() % 5, family.optimal_action(state, task))
            following, reward = family.step(state, action, task)
            steps.append((family.observation(state), action, reward, family.observation(following)))
            state = following
        yield Transitions(*(torch.stack(each, 2) for each in zip(*steps, strict=True)))


def main(data="data/lock", steps=300):
    family = Lock()
    train, _ = family.split()
    shape = {"histories": 20, "episodes": 20, "horizon": family.horizon, "observation_shape": (1,)}
    layout = HistoryLayout(task=train.tolist(), max_return=family.max_return[train].tolist(), **shape)
    write_histories(data, layout, learners)  # what is there already is left as it is
    small = {"sizes": "cpu", "batch": 64, "learning_rate": 3e-3, "warmup": 20, "steps": steps}
    experiment = ad(data=str(data), family=family, every=2, **small)
    Trainer(experiment).fit(steps)
    return experiment.evaluate(experiment.policy, episodes=20)


if __name__ == "__main__":
    result = main()
    print(f"{result['first_return']:.2f} in the first episode, {result['last_return']:.2f} in the last, 3 possible")
