from . import plots as plots
from . import tasks as tasks
from .circuits.circuit import Circuit, load_circuit
from .circuits.faithfulness import Faithfulness, load_faithfulness
from .circuits.finding import find_circuit
from .circuits.patching import EdgeEffects, load_edge_effects, patch_edges
from .circuits.pruning import prune_edges
from .contrast.contrast import Contrast
from .contrast.corruption import Corruption
from .contrast.measures import (
    kl_divergence,
    log_probability,
    logit_diff,
    probability,
    rank,
    sequence_log_probability,
    sequence_probability,
)
from .contrast.metrics import Metric
from .contrast.noise import (
    GaussianNoise,
    MeanEmbedding,
    MultivariateNoise,
    ResampledEmbedding,
    UniformNoise,
    ZeroEmbedding,
    embedding_std,
)
from .contrast.sides import prob_diff, prob_greater
from .contrast.swaps import TokenSwap
from .errors import DataError, FactError, LocateError, ModelError, NumericsError, SiteError, UpdateError
from .facts.facts import Consequence, Fact, OtherRelation
from .facts.files import bundled_facts, load_facts
from .facts.prompts import Prompt, encode_fact
from .facts.relations import Relation, load_relation
from .lens.attribution import LogitAttribution, load_attribution, logit_attribution
from .lens.projecting import logit_lens
from .lens.trajectory import LensTrajectory, load_trajectory
from .lens.tuned import TunedLens
from .lens.vocabulary import neuron_vocabulary
from .model.loading import load_model
from .neurons.attribution import neuron_attribution
from .neurons.effects import NeuronEffects, load_neuron_effects
from .neurons.extraction import attribute_extraction_rate
from .neurons.gain import neuron_logprob_gain
from .neurons.gained import LogprobGain, load_logprob_gain
from .neurons.knowledge import knowledge_neurons
from .neurons.overlap import NeuronOverlap, load_neuron_overlap, neuron_overlap
from .neurons.queries import QueryNeurons, load_query_neurons, query_neurons
from .neurons.scores import NeuronScores, load_neurons
from .neurons.verification import verify_neurons
from .patching.attribute import attribute
from .patching.average import AveragePatches, average_patches
from .patching.knockout import Knockout, attention_knockout, load_knockout
from .patching.patch import patch
from .patching.patches import Patches, load_patches
from .patching.paths import path_patch
from .relations.linear import LinearRelation, load_linear_relation
from .relations.linearity import RelationLinearity, load_relation_linearity
from .relations.sweeping import relation_linearity
from .sites.site import Site
from .tracing.average import AverageTrace, average_traces, load_average
from .tracing.causal import causal_trace
from .tracing.trace import Trace, load_trace

__all__ = [
    "AveragePatches",
    "AverageTrace",
    "Circuit",
    "Consequence",
    "Contrast",
    "Corruption",
    "DataError",
    "EdgeEffects",
    "Fact",
    "FactError",
    "Faithfulness",
    "GaussianNoise",
    "Knockout",
    "LensTrajectory",
    "LinearRelation",
    "LocateError",
    "LogitAttribution",
    "LogprobGain",
    "MeanEmbedding",
    "Metric",
    "ModelError",
    "MultivariateNoise",
    "NeuronEffects",
    "NeuronOverlap",
    "NeuronScores",
    "NumericsError",
    "OtherRelation",
    "Patches",
    "Prompt",
    "QueryNeurons",
    "Relation",
    "RelationLinearity",
    "ResampledEmbedding",
    "Site",
    "SiteError",
    "TokenSwap",
    "Trace",
    "TunedLens",
    "UniformNoise",
    "UpdateError",
    "ZeroEmbedding",
    "attention_knockout",
    "attribute",
    "attribute_extraction_rate",
    "average_patches",
    "average_traces",
    "bundled_facts",
    "causal_trace",
    "embedding_std",
    "encode_fact",
    "find_circuit",
    "kl_divergence",
    "knowledge_neurons",
    "load_attribution",
    "load_average",
    "load_circuit",
    "load_edge_effects",
    "load_facts",
    "load_faithfulness",
    "load_knockout",
    "load_linear_relation",
    "load_logprob_gain",
    "load_model",
    "load_neuron_effects",
    "load_neuron_overlap",
    "load_neurons",
    "load_patches",
    "load_query_neurons",
    "load_relation",
    "load_relation_linearity",
    "load_trace",
    "load_trajectory",
    "log_probability",
    "logit_attribution",
    "logit_diff",
    "logit_lens",
    "neuron_attribution",
    "neuron_logprob_gain",
    "neuron_overlap",
    "neuron_vocabulary",
    "patch",
    "patch_edges",
    "path_patch",
    "plots",
    "prob_diff",
    "prob_greater",
    "probability",
    "prune_edges",
    "query_neurons",
    "rank",
    "relation_linearity",
    "sequence_log_probability",
    "sequence_probability",
    "tasks",
    "verify_neurons",
]
