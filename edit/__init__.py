"""Change a fact in a language model, and measure what the change does."""

from edit.contexts import sample_prefixes
from edit.corpus import SAMPLED
from edit.demo import Demo, run_demo
from edit.evaluation import Evaluation, evaluate, evaluate_each
from edit.exporting import export
from edit.methods import ROME
from edit.probes import Probe, probes_for
from edit.propagation import Propagation, load_propagation, propagate
from edit.requests import EditRequest
from edit.statistics import KeyStatistics, key_statistics, load_statistics
from edit.updates import LowRank, WeightUpdate, load_update
from edit.values import ValueObjective

__all__ = [
    "ROME",
    "SAMPLED",
    "Demo",
    "EditRequest",
    "Evaluation",
    "KeyStatistics",
    "LowRank",
    "Probe",
    "Propagation",
    "ValueObjective",
    "WeightUpdate",
    "evaluate",
    "evaluate_each",
    "export",
    "key_statistics",
    "load_propagation",
    "load_statistics",
    "load_update",
    "probes_for",
    "propagate",
    "run_demo",
    "sample_prefixes",
]
