"""Where a trainer's batches come from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from decisionrl.learner import Update


class Source(Protocol):
    """Yields one batch per update, and hears what the learner made of it.

    A source owns everything its next batch depends on (its position, its random generators, the worlds it
    steps), and its ``state_dict`` holds all of it: that is what makes a resumed run bit-identical.
    """

    @property
    def steps_per_sample(self) -> int:
        """How many of the trainer's steps the last batch counts for, read after every ``sample``.

        1 counts gradient steps; a rollout source returns the environment steps that the batch has cost.
        """
        ...

    def sample(self) -> Any:
        """The next batch, of the type that the learner it is paired with expects."""
        ...

    def observe(self, update: "Update", /) -> None:
        """Take back the result of the update on the last batch, such as ``update.carry``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next batches depend on, as nested plain values, arrays and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from a ``state_dict`` of an equally built source."""
        ...
