"""Figures of what was located, ready for a paper.

>>> png, pdf = locate.plots.save_figure(trace.plot(), "figures", "eiffel")
>>> png.name
'eiffel.png'
"""

from locate.circuits.faithfulness_figures import plot_faithfulness
from locate.circuits.figures import plot_circuit
from locate.circuits.patching_figures import plot_edge_effects
from locate.figures.style import save_figure
from locate.lens.attribution_figures import plot_attribution, plot_attribution_top
from locate.lens.trajectory_figures import plot_lens, plot_trajectory
from locate.neurons.effect_figures import plot_neuron_effects
from locate.neurons.figures import plot_neurons
from locate.neurons.head_figures import plot_value_heads
from locate.neurons.overlap_figures import plot_neuron_overlap
from locate.patching.figures import plot_average_patches, plot_knockout, plot_patches
from locate.relations.figures import plot_linearity
from locate.tracing.average_figures import plot_average, plot_average_heads, plot_average_lines
from locate.tracing.figures import plot_trace, plot_trace_heads

__all__ = [
    "plot_attribution",
    "plot_attribution_top",
    "plot_average",
    "plot_average_heads",
    "plot_average_lines",
    "plot_average_patches",
    "plot_circuit",
    "plot_edge_effects",
    "plot_faithfulness",
    "plot_knockout",
    "plot_lens",
    "plot_linearity",
    "plot_neuron_effects",
    "plot_neuron_overlap",
    "plot_neurons",
    "plot_patches",
    "plot_trace",
    "plot_trace_heads",
    "plot_trajectory",
    "plot_value_heads",
    "save_figure",
]
