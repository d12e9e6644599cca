"""Checkpoints: nested state in one safetensors file, written so that a crash at any instant loses nothing.

A state is nested plain data: None, bool, int, float, str, lists, tuples, dicts with int or str keys, torch
tensors, NumPy arrays and scalars. The states of ``torch.Generator``, ``random`` and NumPy's generators are
that already. Tensors are stored as safetensors; the rest, with a checksum over all of it, is JSON in the
file's header. Nothing is pickled, so a checkpoint from a stranger can be read without running their code.
"""

import json
import math
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from decisionrl import distributed
from decisionrl.files import replacing

FORMAT = "decisionrl-checkpoint-1"
_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
_STEP_FILE = re.compile(r"step-(\d+)\.safetensors")


class CheckpointError(RuntimeError):
    """A checkpoint file cannot be used; the message names it."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to a file, atomically: a crash leaves either the old file or the new one.

    Raises:
        TypeError: a value is none of the supported kinds (names its place in the state).
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(dict(state), "", tensors), allow_nan=False)
    tensors = _independent(tensors)
    metadata = {"format": FORMAT, "state": structure, "checksum": _checksum(structure, tensors)}
    _save_tensors(path, tensors, metadata)


def load(path: Path) -> dict[str, Any]:
    """Read a state; tensors are on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint.
    """
    tensors, metadata = _load_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a decisionrl checkpoint of format {FORMAT!r}")
    if metadata.get("checksum") != _checksum(metadata["state"], tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    state: dict[str, Any] = _decode(json.loads(metadata["state"]), tensors)
    return state


def save_step(
    directory: Path, step: int, state: Mapping[str, Any], *, keep: int, shared: Collection[str] = ("learner",)
) -> None:
    """Write ``directory/step-N.safetensors`` and delete all but the newest ``keep``.

    In a distributed run every process calls this. The others write their own part of the state, that is all
    but the entries in ``shared``, beside it, and the main process's file comes last and makes it complete.
    """
    if distributed.is_main():
        directory.mkdir(parents=True, exist_ok=True)
    distributed.wait_for_all()
    path = _step_path(directory, step)
    if not distributed.is_main():
        own = {name: value for name, value in state.items() if name not in shared}
        save(_rank_path(path, distributed.rank()), own)
    distributed.wait_for_all()
    if distributed.is_main():
        save(path, state)
        for old in steps(directory)[:-keep]:
            _step_path(directory, old).unlink()
            for part in _rank_paths(_step_path(directory, old)):
                part.unlink()
    distributed.wait_for_all()


def load_newest(directory: Path) -> dict[str, Any] | None:
    """The state of the newest complete checkpoint in a directory; None if there is none.

    Raises:
        CheckpointError: that checkpoint is damaged, or from a run with another number of processes.
    """
    complete = steps(directory)
    if not complete:
        return None
    path = _step_path(directory, complete[-1])
    saved = 1 + len(_rank_paths(path))
    if saved != distributed.processes():
        raise CheckpointError(f"{path} is of a run with {saved} processes; this one has {distributed.processes()}")
    state = load(path)
    if not distributed.is_main():
        state.update(load(_rank_path(path, distributed.rank())))
    return state


def remove_partial(directory: Path) -> None:
    """Delete what a killed process was still writing. Only for the one process that writes here."""
    for temporary in directory.glob(".step-*.tmp"):
        temporary.unlink()


def steps(directory: Path) -> list[int]:
    """The steps of the complete checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(match[1]) for p in directory.iterdir() if (match := _STEP_FILE.fullmatch(p.name)))


def save_weights(policy: nn.Module, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a policy's weights alone, as a safetensors file that any reader of the format opens."""
    weights: dict[str, Tensor] = {}
    for name, value in policy.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; weights are tensors")
        weights[name] = value
    _save_tensors(Path(path), _independent(weights), {"format": "pt", **(metadata or {})})


def load_weights(policy: nn.Module, path: Path | str, *, part: str = "") -> dict[str, str]:
    """Read weights into an equally built policy; returns the file's metadata.

    part: read those of a submodule of what was saved, such as "encoder", into a module like it.

    Raises:
        CheckpointError: the file is missing, damaged, or does not fit the policy.
    """
    tensors, metadata = _load_tensors(Path(path))
    prefix = f"{part}." if part else ""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        policy.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the {part or 'policy'}: {error}") from error
    return metadata


def _step_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:012d}.safetensors"


def _rank_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}.rank{rank}.safetensors")


def _rank_paths(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.stem}.rank*.safetensors"))


def _save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


def _load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # Cloned, as the tensors of an open file share its memory.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none of which shares memory with another, as the format requires."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _checksum(structure: str, tensors: Mapping[str, Tensor]) -> str:
    value = zlib.crc32(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        if tensor.numel():
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a value. What JSON lacks becomes an object with one key that starts with ``$``."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is list:
        return [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{place}/{key}", tensors) for key, item in value.items()}
        for key in value:
            if type(key) not in (int, str):
                raise TypeError(f"state{place}: the key {key!r} is a {type(key).__name__}, not an int or str")
        return {"$items": [[key, _encode(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, Tensor):
        return {"$tensor": _store(value, place, tensors)}
    if isinstance(value, np.ndarray | np.generic):
        if not value.dtype.isnative:
            raise TypeError(f"state{place} is {value.dtype.str}, which is not the native byte order")
        try:
            tensor = torch.from_numpy(np.array(value, order="C", copy=True))
        except TypeError as error:
            raise TypeError(f"state{place} has the dtype {value.dtype}, which cannot be saved") from error
        return {"$array" if isinstance(value, np.ndarray) else "$scalar": _store(tensor, place, tensors)}
    raise TypeError(f"state{place} is a {type(value).__name__}, which cannot be saved")


def _store(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
        raise TypeError(f"state{place} is a {tensor.layout} tensor of {tensor.dtype}, which cannot be saved")
    name = f"{len(tensors)}:{place}".encode("ascii", "backslashreplace").decode()
    tensors[name] = tensor
    return name


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``_encode``."""
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    match next(iter(node.items()), None):
        case ("$float", text):
            return float(text)
        case ("$tuple", items):
            return tuple(_decode(item, tensors) for item in items)
        case ("$items", items):
            return {key: _decode(item, tensors) for key, item in items}
        case ("$tensor", name):
            return tensors[name]
        case ("$array", name):
            return tensors[name].numpy()
        case ("$scalar", name):
            return tensors[name].numpy()[()]
    return {key: _decode(item, tensors) for key, item in node.items()}
