"""The few things a run of several processes needs beside the averaged gradient."""

from collections.abc import Mapping

import torch
import torch.distributed


def rank() -> int:
    """This process's number, from 0; 0 outside a distributed run."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    """How many processes the run has."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


def wait_for_all() -> None:
    """Wait until every process is here."""
    if processes() > 1:
        torch.distributed.barrier()


def from_main(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The main process's values, in all processes, which give the same names."""
    if processes() == 1:
        return dict(values)
    shared = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return dict(zip(values, shared.tolist(), strict=True))
