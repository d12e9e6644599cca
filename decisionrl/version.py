"""Which code ran: the package version and, in a checkout, the commit."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import decisionrl


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that the package is run from; None outside one (or without git)."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may stand in another checkout
        return _git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def code_version() -> str:
    """The package version; in a git checkout with the commit, `0.1.0+g1a2b3c4d5` (`.dirty` if edited)."""
    found = commit()
    if found is None:
        return decisionrl.__version__
    dirty = ".dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{decisionrl.__version__}+g{found[:9]}{dirty}"


def _git(*arguments: str) -> str:
    folder = Path(decisionrl.__file__).parent
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()
