"""Worlds to act in. Importing this registers their Gymnasium ids, ``decisionrl/...``."""

from decisionrl.envs.registration import register_envs

__all__ = ["register_envs"]

register_envs()
