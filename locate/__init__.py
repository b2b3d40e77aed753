"""Find where a language model keeps a fact."""

from locate.averaging import AverageTrace, average_traces, load_average
from locate.corruption import (
    Corruption,
    GaussianNoise,
    MeanEmbedding,
    MultivariateNoise,
    ResampledEmbedding,
    TokenSwap,
    UniformNoise,
    ZeroEmbedding,
    embedding_std,
)
from locate.errors import (
    DataError,
    FactError,
    LocateError,
    ModelError,
    NumericsError,
    SiteError,
    UpdateError,
)
from locate.facts import Consequence, Fact, OtherRelation, bundled_facts, load_facts
from locate.knockout import Knockout, attention_knockout, attribute_extraction_rate, load_knockout
from locate.loading import load_model
from locate.metrics import Metric, kl_divergence, log_probability, logit_diff, probability, rank
from locate.neurons import NeuronScores, knowledge_neurons, load_neurons
from locate.patches import Patches, load_patches
from locate.patching import patch
from locate.paths import path_patch
from locate.prompts import Prompt, encode_fact
from locate.sites import Site
from locate.trace import Trace, load_trace
from locate.tracing import causal_trace

__all__ = [
    "AverageTrace",
    "Consequence",
    "Corruption",
    "DataError",
    "Fact",
    "FactError",
    "GaussianNoise",
    "Knockout",
    "LocateError",
    "MeanEmbedding",
    "Metric",
    "ModelError",
    "MultivariateNoise",
    "NeuronScores",
    "NumericsError",
    "OtherRelation",
    "Patches",
    "Prompt",
    "ResampledEmbedding",
    "Site",
    "SiteError",
    "TokenSwap",
    "Trace",
    "UniformNoise",
    "UpdateError",
    "ZeroEmbedding",
    "attention_knockout",
    "attribute_extraction_rate",
    "average_traces",
    "bundled_facts",
    "causal_trace",
    "embedding_std",
    "encode_fact",
    "kl_divergence",
    "knowledge_neurons",
    "load_average",
    "load_facts",
    "load_knockout",
    "load_model",
    "load_neurons",
    "load_patches",
    "load_trace",
    "log_probability",
    "logit_diff",
    "patch",
    "path_patch",
    "probability",
    "rank",
]
