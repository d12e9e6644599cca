"""Several seeds of one policy trained at once: parameters stacked along a first dimension, one vmapped rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from decisionrl.envs.inventory.simulator import Scenario, Simulator


class _Cost(nn.Module):
    """Mean cost per scenario, period and store of a policy; a module, so that its weights can be swapped."""

    def __init__(self, policy: nn.Module, simulator: Simulator) -> None:
        super().__init__()
        self.policy, self.simulator = policy, simulator

    def forward(self, scenario: Scenario) -> Tensor:
        return self.simulator.rollout(self.policy, scenario).cost.mean() / self.simulator.network.num_stores


class ManySeeds:
    """K policies of one kind as one set of stacked parameters.

    parameters: name -> [K, ...] leaf tensors to optimize; they start as copies of the policies' own.
    """

    def __init__(self, policies: Sequence[nn.Module], simulator: Simulator) -> None:
        modules = [_Cost(policy, simulator) for policy in policies]
        self.parameters, self._buffers = torch.func.stack_module_state(modules)
        self._module = modules[0]

    def costs(self, scenario: Scenario) -> Tensor:
        """[K] costs on the same scenarios; the gradient of their sum holds the gradient of each."""

        def cost(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            value: Tensor = torch.func.functional_call(self._module, (parameters, buffers), (scenario,))
            return value

        costs: Tensor = torch.func.vmap(cost)(self.parameters, self._buffers)
        return costs
