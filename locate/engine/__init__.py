"""Run a prompt once; run again only the suffix that a change can reach."""

from locate.engine.alike import freeze_alike, freeze_together
from locate.engine.branch import Branch
from locate.engine.freezing import freeze, refreeze
from locate.engine.hooking import Hook, check_live, hook_points
from locate.engine.interventions import Added, BlockedAttention, Intervention, PatternPin, Pin, Scaled, Shift
from locate.engine.run import FrozenRun, Measure
from locate.names import DEFAULT_BUDGET

__all__ = [
    "DEFAULT_BUDGET",
    "Added",
    "BlockedAttention",
    "Branch",
    "FrozenRun",
    "Hook",
    "Intervention",
    "Measure",
    "PatternPin",
    "Pin",
    "Scaled",
    "Shift",
    "check_live",
    "freeze",
    "freeze_alike",
    "freeze_together",
    "hook_points",
    "refreeze",
]
