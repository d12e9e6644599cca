"""Train an inventory policy from Python, measure its gap to the exact optimum, and look at a few of its orders."""

import torch

from decisionrl.callbacks import Progress
from decisionrl.recipes.hdpo import hdpo
from decisionrl.trainer import Trainer

torch.set_num_threads(1)

# A shipped setting by name, or the path of your own TOML file; overrides change single fields of it.
experiment = hdpo(setting="one_store_lost", policy="mlp", steps=300, overrides={"store.underage_cost": 19})
Trainer(experiment, callbacks=[Progress(show=("cost",))]).fit(300)

result = experiment.evaluate(experiment.policy, episodes=2048)
print(f"cost {result['mean_cost']:.3f}, optimum {result['reference']:.3f}, gap {100 * result['gap']:.2f} %")
