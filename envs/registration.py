"""The Gymnasium ids of our worlds. Registering reads names only; torch is imported when a world is made."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

import gymnasium

NAMESPACE = "decisionrl"


def register_envs() -> None:
    """Register every shipped inventory setting that needs no files of the user, once.

    ``one_store_lost`` becomes ``decisionrl/OneStoreLost-v0``. Importing ``decisionrl.envs`` calls this;
    ``gymnasium.make("decisionrl.envs:decisionrl/OneStoreLost-v0")`` does both.
    """
    for name in _inventory_settings():
        identifier = f"{NAMESPACE}/{name.title().replace('_', '')}-v0"
        if identifier not in gymnasium.registry:
            gymnasium.register(
                id=identifier,
                entry_point="decisionrl.envs.gymnasium:InventorySingleEnv",
                vector_entry_point="decisionrl.envs.gymnasium:InventoryVectorEnv",
                kwargs={"setting": name},
            )


def _inventory_settings() -> list[str]:
    folder = resources.files("decisionrl.envs") / "inventory" / "settings"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return [
        file.name.removesuffix(".toml")
        for file in files
        if not _reads_files(tomllib.loads(file.read_text(encoding="utf-8")))
    ]


def _reads_files(value: Any) -> bool:
    """Whether a setting takes numbers from a file, as in ``{ file = "costs.npy" }``."""
    if isinstance(value, dict):
        return "file" in value or any(map(_reads_files, value.values()))
    return isinstance(value, list) and any(map(_reads_files, value))
