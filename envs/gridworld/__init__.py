"""Families of tasks for in-context learning, as functions of tensors and as worlds, bandits among them."""

from decisionrl.envs.gridworld.bandit_family import BanditFamily, bandit
from decisionrl.envs.gridworld.darkroom import (
    GridFamily,
    dark_key_to_door,
    darkroom,
    darkroom_large,
    darkroom_permuted,
)
from decisionrl.envs.gridworld.family import TaskFamily
from decisionrl.envs.gridworld.reach import ReachFamily, hidden_reach
from decisionrl.envs.gridworld.world import FAMILIES, TaskWorld, made_family

__all__ = [
    "FAMILIES",
    "BanditFamily",
    "GridFamily",
    "ReachFamily",
    "TaskFamily",
    "TaskWorld",
    "bandit",
    "dark_key_to_door",
    "darkroom",
    "darkroom_large",
    "darkroom_permuted",
    "hidden_reach",
    "made_family",
]
