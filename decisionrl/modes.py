"""Training and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(policy: object) -> Iterator[None]:
    """A module is in evaluation mode meanwhile (no dropout), and its parts are afterwards what they were."""
    modes = [(module, module.training) for module in policy.modules()] if isinstance(policy, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
