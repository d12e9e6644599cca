"""Run directories: what was run, with what, and whether it may go on.

::

    DIR/config.json      every resolved setting
    DIR/run.json         seed, device, threads, versions
    DIR/checkpoints/     see decisionrl.checkpoint
    DIR/final.safetensors  the weights that the training ended with
    DIR/...              what the callbacks write: metrics.jsonl, best.safetensors, tensorboard/
"""

import json
import math
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import decisionrl
from decisionrl import distributed
from decisionrl.files import replacing
from decisionrl.version import commit

CONFIG = "config.json"
RUN = "run.json"
CHECKPOINTS = "checkpoints"
FINAL = "final.safetensors"


class RunError(RuntimeError):
    """A run directory cannot be used as asked."""


def open_directory(out: Path, *, config: Mapping[str, Any], seed: int | None, device: str, resume: bool) -> None:
    """Start a run in ``out``, or check that the run there is the one to resume.

    Raises:
        RunError: a run is there and ``resume`` is False, or its config or seed differ (names the field).
        TypeError: a config value is not plain (names the field).
    """
    distributed.wait_for_all()
    if distributed.is_main():
        plain = _plain(config, "config")
        if not (out / CONFIG).exists():
            out.mkdir(parents=True, exist_ok=True)
            _write_json(out / RUN, {"seed": seed, **environment(device)})
            _write_json(out / CONFIG, plain)  # last: its presence is what makes the directory a run
        elif not resume:
            raise RunError(f"{out} holds a run already; resume it, or choose another directory")
        else:
            _check_same(out, plain, seed, device)
    distributed.wait_for_all()


def environment(device: str) -> dict[str, Any]:
    """What a run's numbers depend on besides its config and seed."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": distributed.processes(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "decisionrl": decisionrl.__version__,
        "commit": commit(),
    }


def _check_same(out: Path, config: Any, seed: int | None, device: str) -> None:
    saved_config = _read_json(out / CONFIG)
    saved_run = _read_json(out / RUN)
    differences = _differences(saved_config, config, "config") + _differences(saved_run["seed"], seed, "seed")
    if differences:
        raise RunError(f"cannot resume {out}: {'; '.join(differences)}")
    now = environment(device)
    changed = [f"{key} {saved_run.get(key)} -> {now[key]}" for key in now if saved_run.get(key) != now[key]]
    if changed:
        warnings.warn(
            f"resuming {out} in another environment, so its numbers may differ: {', '.join(changed)}",
            RuntimeWarning,
            stacklevel=4,
        )


def _differences(saved: Any, now: Any, field: str) -> list[str]:
    """Each field that differs, with both values."""
    if isinstance(saved, dict) and isinstance(now, dict):
        absent = object()
        return [
            difference
            for key in sorted(saved.keys() | now.keys())
            for difference in _differences(saved.get(key, absent), now.get(key, absent), f"{field}.{key}")
        ]
    if type(saved) is type(now) and saved == now:
        return []
    return [f"{field} was {_shown(saved)} and is now {_shown(now)}"]


def _shown(value: Any) -> str:
    return "absent" if type(value) is object else repr(value)


def _plain(value: Any, field: str) -> Any:
    """A copy of plain nested data as JSON would give it back."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{field}: the key {key!r} is not a string")
        return {key: _plain(item, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{field} is a {type(value).__name__}; a config holds None, bool, int, float, str, lists and dicts")


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
