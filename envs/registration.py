"""The Gymnasium ids of our worlds. Registering reads names only; torch is imported when a world is made."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

import gymnasium

NAMESPACE = "decisionrl"

LINEAR_MDPS = {
    "five_state": "five_state",
    "american_put": "american_put",
    "robust_frozen_lake": "frozen_lake",
    "random_tabular": "random_tabular",
    "random_linear": "random_linear",
}
"""Ids, in the same spelling as settings, and the instances of ``envs/linear_mdp`` that they stand for."""

LABS = {
    "preference_gridworld": ("decisionrl.envs.tabular", "TabularEnv"),
    "two_modes": ("decisionrl.envs.two_modes", "TwoModesEnv"),
    "point_reach": ("decisionrl.envs.point", "PointReachEnv"),
}
"""Ids and classes of the small worlds with exact answers that ``decisionrl/recording/labs.py`` records."""

METAWORLD_TASKS = ("bin-picking", "button-press", "door-open", "drawer-open", "plate-slide", "sweep-into")
"""The Meta-World tasks with ids; ``MetaWorldEnv(task)`` makes any other."""

MEMORY_TASKS = {"decisionrl/ReturnSide-v0": "return_side", "decisionrl/CountVisits-v0": "count_visits"}
"""Ids and names of the tasks of ``envs/robotics/memory_tasks.py``."""

METAWORLD_MEMORY_TASKS = {
    "decisionrl/MWCueReach-v0": "cue_reach",
    "decisionrl/MWPickAndReturn-v0": "pick_and_return",
}
"""Ids and names of the tasks of ``envs/robotics/metaworld_memory.py``."""

PUSH_T = {"decisionrl/PushT-v0": "push_t"}
"""Id and name of ``envs/robotics/pusht.py``."""

ML1 = "decisionrl/ML1-v0"
"""Id of ``envs/robotics/ml1.py``."""

TASK_FAMILIES = {
    "decisionrl/Darkroom-v0": "darkroom",
    "decisionrl/DarkroomPermuted-v0": "darkroom_permuted",
    "decisionrl/DarkroomLarge-v0": "darkroom_large",
    "decisionrl/DarkKeyToDoor-v0": "dark_key_to_door",
    "decisionrl/HiddenReach-v0": "hidden_reach",
    "decisionrl/UnknownBandit-v0": "bandit",
}
"""Ids and names of the families of ``envs/gridworld``."""

WORLDS = {
    **dict.fromkeys(MEMORY_TASKS, ("decisionrl.envs.robotics.memory", "MemoryWorld")),
    **dict.fromkeys(TASK_FAMILIES, ("decisionrl.envs.gridworld.world", "TaskWorld")),
}
"""Ids with a batched world behind them: its module and class, which takes the arguments of the id and the number of
copies and their device."""


def register_envs() -> None:
    """Register, once, the inventory settings that need no files of the user, linear MDPs, labs, robot tasks and
    families of tasks.

    ``one_store_lost`` becomes ``decisionrl/OneStoreLost-v0``. Importing ``decisionrl.envs`` calls this;
    ``gymnasium.make("decisionrl.envs:decisionrl/OneStoreLost-v0")`` does both.
    """
    for name in _inventory_settings():
        _register(_id(name), "decisionrl.envs.gymnasium", "InventorySingleEnv", "InventoryVectorEnv", setting=name)
    for name, mdp in LINEAR_MDPS.items():
        _register(_id(name), "decisionrl.envs.linear_mdp.gymnasium", "LinearMDPEnv", "LinearMDPVectorEnv", mdp=mdp)
    for name, (module, single) in LABS.items():
        _register(_id(name), module, single)
    for task in METAWORLD_TASKS:
        _register(_id(task.replace("-", "_")), "decisionrl.envs.robotics.metaworld", "MetaWorldEnv", task=task)
    for identifier, task in MEMORY_TASKS.items():
        _register(identifier, "decisionrl.envs.robotics.memory", "MemoryEnv", "MemoryVectorEnv", task=task)
    for identifier, task in METAWORLD_MEMORY_TASKS.items():
        _register(identifier, "decisionrl.envs.robotics.metaworld_memory", f"{_camel(task)}Env")
    for identifier, family in TASK_FAMILIES.items():
        _register(identifier, "decisionrl.envs.gridworld.gymnasium", "TaskEnv", "TaskVectorEnv", family=family)
    for identifier in PUSH_T:
        _register(identifier, "decisionrl.envs.robotics.pusht", "PushTEnv")
    _register(ML1, "decisionrl.envs.robotics.ml1", "ML1Env")


def _id(name: str) -> str:
    return f"{NAMESPACE}/{_camel(name)}-v0"


def _camel(name: str) -> str:
    return name.title().replace("_", "")


def _register(identifier: str, module: str, single: str, vector: str | None = None, **kwargs: str) -> None:
    if identifier not in gymnasium.registry:
        gymnasium.register(
            id=identifier,
            entry_point=f"{module}:{single}",
            vector_entry_point=None if vector is None else f"{module}:{vector}",
            kwargs=kwargs,
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
