"""Change a fact in a language model, and measure what the change does."""

from edit.benchmarks import load_counterfact, load_reference_texts, load_zsre
from edit.choosing import LayerChoice, choose_layer
from edit.conflicts import find_conflicts
from edit.contexts import sample_prefixes
from edit.corpus import SAMPLED
from edit.demo import Demo, run_demo
from edit.evaluation import Baseline, Evaluation, ReferenceTexts, baseline, evaluate, evaluate_each
from edit.exporting import export
from edit.lowrank import LowRank
from edit.methods import EMMET, KN, MEMIT, PMET, ROME, AlphaEdit
from edit.probes import Probe, probes_for
from edit.propagation import Propagation, load_propagation, propagate
from edit.requests import EditRequest, Unrelated
from edit.session import EditSession
from edit.stabilisers import BLUE, ENCORE, NAS, PRUNE, RECT
from edit.statistics import KeyStatistics, Part, collect_statistics, key_statistics, load_statistics
from edit.updates import WeightUpdate, load_update
from edit.values import ValueObjective

__all__ = [
    "BLUE",
    "EMMET",
    "ENCORE",
    "KN",
    "MEMIT",
    "NAS",
    "PMET",
    "PRUNE",
    "RECT",
    "ROME",
    "SAMPLED",
    "AlphaEdit",
    "Baseline",
    "Demo",
    "EditRequest",
    "EditSession",
    "Evaluation",
    "KeyStatistics",
    "LayerChoice",
    "LowRank",
    "Part",
    "Probe",
    "Propagation",
    "ReferenceTexts",
    "Unrelated",
    "ValueObjective",
    "WeightUpdate",
    "baseline",
    "choose_layer",
    "collect_statistics",
    "evaluate",
    "evaluate_each",
    "export",
    "find_conflicts",
    "key_statistics",
    "load_counterfact",
    "load_propagation",
    "load_reference_texts",
    "load_statistics",
    "load_update",
    "load_zsre",
    "probes_for",
    "propagate",
    "run_demo",
    "sample_prefixes",
]
