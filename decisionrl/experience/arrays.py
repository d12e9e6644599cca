"""Named arrays in a file, npz or hdf5 and never a pickle, and the spaces that they imply."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from decisionrl.experience.store import DatasetError
from decisionrl.files import replacing

Array = NDArray[Any]
Arrays = dict[str, Array]


def read_npz(path: str | Path) -> Arrays:
    """All arrays of an npz file.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: it is no npz file, or one with pickled objects, such as sequences of unequal length.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DatasetError(f"{path}: not an npz file; valid: arrays written by numpy.savez")
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except ValueError as error:
                raise DatasetError(
                    f"{path}: {name} cannot be read ({error}); valid: an array of numbers, all rows of equal length"
                ) from None
    return arrays


def write_npz(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz file; a crash leaves the old one."""
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options


def read_hdf5(path: str | Path) -> Arrays:
    """All data sets of an hdf5 file, those in groups as ``group/name``.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: it is no hdf5 file.
        ImportError: h5py is not installed.
    """
    h5py = _h5py()
    path = Path(path)
    path.stat()
    if not h5py.is_hdf5(path):
        raise DatasetError(f"{path}: not an hdf5 file")
    arrays: Arrays = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = np.asarray(item[()])

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays


def write_hdf5(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write an hdf5 file, ``group/name`` into groups; a crash leaves the old one.

    Raises:
        ImportError: h5py is not installed.
    """
    h5py = _h5py()
    with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def column(arrays: Mapping[str, Any], name: str, where: str | Path) -> Array:
    """An array by name.

    Raises:
        DatasetError: it is missing; names those there are.
    """
    if name not in arrays:
        raise DatasetError(f"{where}: {name} is missing; there are {', '.join(sorted(arrays)) or 'no columns'}")
    return np.asarray(arrays[name])


def check_finite(array: Array, name: str, where: str | Path) -> None:
    """Raise DatasetError at the first entry that is not finite, naming its place: record, step, ..."""
    if array.dtype.kind == "f" and not (good := np.isfinite(array)).all():
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        index = ", ".join(map(str, place))
        raise DatasetError(f"{where}: {name}[{index}] = {array[place]}; valid: finite numbers")


def observation_box(shape: tuple[int, ...], dtype: np.dtype[Any]) -> spaces.Box:
    """The space of recorded observations of which only shape and type are known."""
    if dtype == np.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def action_box(actions: Array, shape: tuple[int, ...], where: str | Path) -> spaces.Box:
    """Box(-1, 1), the actions of D4RL and Meta-World tasks.

    Raises:
        DatasetError: the actions are whole numbers, or lie outside.
    """
    if actions.dtype.kind != "f" or not (np.abs(actions) <= 1).all():
        found = f"{actions.dtype} from {actions.min()} to {actions.max()}"
        raise DatasetError(f"{where}: actions are {found}; valid: real numbers in [-1, 1], or give action_space")
    return spaces.Box(-1, 1, shape, np.float32)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("hdf5 files need h5py: pip install 'decisionrl[offline]'") from error
    return h5py
