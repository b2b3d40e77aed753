"""Run a prompt once; run again only the suffix that a change can reach."""

from locate.engine.branch import Branch
from locate.engine.run import DEFAULT_BUDGET, FrozenRun, Hook, freeze, hook_points

__all__ = ["DEFAULT_BUDGET", "Branch", "FrozenRun", "Hook", "freeze", "hook_points"]
