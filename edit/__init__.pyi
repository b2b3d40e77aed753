from .changes.exporting import export
from .changes.lowrank import LowRank
from .changes.updates import WeightUpdate, load_update
from .datasets import load_counterfact, load_reference_texts, load_zsre
from .datasets.probed import load_probed_edits
from .datasets.reading import ProbedEdit
from .evaluation import Baseline, Evaluation, ReferenceTexts, baseline, evaluate, evaluate_each
from .evaluation.generation import generate_greedily
from .location.choosing import LayerChoice, choose_layer
from .location.concentration import Concentration, concentration, load_concentration
from .location.concentration_figures import plot_concentration
from .location.layer_choice import layer_choice
from .location.layer_study import LayerStudy, load_layer_study
from .location.readout import ColumnReadout, column_readout, load_column_readout
from .location.readout_figures import plot_column_readout
from .location.similarity import LocalisationSimilarity, load_localisation_similarity, localisation_similarity
from .methods import EMMET, KN, MEMIT, PMET, ROME, AlphaEdit, FineTuning
from .methods.rewriting.stabilisers import BLUE, ENCORE, NAS, PRUNE, RECT
from .names import SAMPLED
from .propagation.attention import AttentionDrift, attention_drift, load_attention_drift
from .propagation.circuit import EditCircuit, load_edit_circuit
from .propagation.circuit_search import edit_circuit
from .propagation.circuits import CircuitShift, circuit_shift, load_circuit_shift, unrelated_circuits
from .propagation.comparison import PropagationComparison, compare_propagation, load_propagation_comparison
from .propagation.contributions import ContributionShift, contribution_shift
from .propagation.flowing import FlowMap, flow_map
from .propagation.footprint import WeightFootprint, load_weight_footprint, weight_footprint
from .propagation.mediation import mediate
from .propagation.predicted import ReachPrediction, load_reach_prediction
from .propagation.prediction import predict_reach
from .propagation.propagation import Propagation, load_propagation
from .propagation.reach import ReachStudy, judge_reach, load_reach_study, reuse_study
from .propagation.report import PropagationReport, load_propagation_report, propagate
from .propagation.residue import OldFactResidue, load_old_fact_residue, old_fact_residue
from .propagation.reuse import mediator_reuse
from .propagation.reused import MediatorReuse, load_mediator_reuse
from .propagation.reversal import Reversal, load_reversal, reversibility
from .propagation.traces import TraceShift, load_trace_shift, trace_shift, unrelated_traces
from .report.demo import Demo, run_demo
from .report.location import LocationReport, location_report
from .requests.answers import with_model_answers
from .requests.conflicts import find_conflicts
from .requests.given import load_probes
from .requests.probes import Probe, probes_for
from .requests.requests import EditRequest, Unrelated
from .sessions.session import EditSession
from .statistics import KeyStatistics, Part, collect_statistics, key_statistics, load_statistics
from .statistics.spectrum import Spectrum, spectrum
from .studies.result import EditStudy, load_edit_study
from .studies.study import study
from .values.contexts import sample_prefixes
from .values.objective import ValueObjective

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
    "AttentionDrift",
    "Baseline",
    "CircuitShift",
    "ColumnReadout",
    "Concentration",
    "ContributionShift",
    "Demo",
    "EditCircuit",
    "EditRequest",
    "EditSession",
    "EditStudy",
    "Evaluation",
    "FineTuning",
    "FlowMap",
    "KeyStatistics",
    "LayerChoice",
    "LayerStudy",
    "LocalisationSimilarity",
    "LocationReport",
    "LowRank",
    "MediatorReuse",
    "OldFactResidue",
    "Part",
    "Probe",
    "ProbedEdit",
    "Propagation",
    "PropagationComparison",
    "PropagationReport",
    "ReachPrediction",
    "ReachStudy",
    "ReferenceTexts",
    "Reversal",
    "Spectrum",
    "TraceShift",
    "Unrelated",
    "ValueObjective",
    "WeightFootprint",
    "WeightUpdate",
    "attention_drift",
    "baseline",
    "choose_layer",
    "circuit_shift",
    "collect_statistics",
    "column_readout",
    "compare_propagation",
    "concentration",
    "contribution_shift",
    "edit_circuit",
    "evaluate",
    "evaluate_each",
    "export",
    "find_conflicts",
    "flow_map",
    "generate_greedily",
    "judge_reach",
    "key_statistics",
    "layer_choice",
    "load_attention_drift",
    "load_circuit_shift",
    "load_column_readout",
    "load_concentration",
    "load_counterfact",
    "load_edit_circuit",
    "load_edit_study",
    "load_layer_study",
    "load_localisation_similarity",
    "load_mediator_reuse",
    "load_old_fact_residue",
    "load_probed_edits",
    "load_probes",
    "load_propagation",
    "load_propagation_comparison",
    "load_propagation_report",
    "load_reach_prediction",
    "load_reach_study",
    "load_reference_texts",
    "load_reversal",
    "load_statistics",
    "load_trace_shift",
    "load_update",
    "load_weight_footprint",
    "load_zsre",
    "localisation_similarity",
    "location_report",
    "mediate",
    "mediator_reuse",
    "old_fact_residue",
    "plot_column_readout",
    "plot_concentration",
    "predict_reach",
    "probes_for",
    "propagate",
    "reuse_study",
    "reversibility",
    "run_demo",
    "sample_prefixes",
    "spectrum",
    "study",
    "trace_shift",
    "unrelated_circuits",
    "unrelated_traces",
    "weight_footprint",
    "with_model_answers",
]
