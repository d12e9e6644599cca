"""Recorded data that benchmark cases share: made once, by whichever process comes first, and kept."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Maker = Callable[..., list[Path]]


def recorded(root: Path, name: str, make: Maker, **arguments: Any) -> Path:
    """The data set ``name`` under ``root``; what is not there yet is made, and others wait for it meanwhile.

    make: called with the arguments and ``out``, a folder that it fills with data sets; returns their folders.

    Raises:
        FileNotFoundError: it has not made one of that name.
    """
    target = root / name
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f"{make.__name__}-{_stem(arguments)}.lock"):
        if not target.exists():
            work = root / f"{make.__name__}-{_stem(arguments)}.part"
            shutil.rmtree(work, ignore_errors=True)
            for folder in make(**arguments, out=work):
                if not (root / folder.name).exists():
                    folder.rename(root / folder.name)
            shutil.rmtree(work, ignore_errors=True)
    if not target.exists():
        made = sorted(each.name for each in root.iterdir() if each.is_dir())
        raise FileNotFoundError(f"{name} was not made in {root}; there are {', '.join(made) or 'no data sets'}")
    return target


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stem(arguments: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in sorted(arguments.items()) if key in ("env", "seed")).replace("/", "-")
