"""Figures of what was located, ready for a paper."""

from locate.plots.averages import plot_average, plot_average_heads, plot_average_lines
from locate.plots.patches import plot_knockout, plot_patches
from locate.plots.style import save_figure
from locate.plots.traces import plot_trace, plot_trace_heads

__all__ = [
    "plot_average",
    "plot_average_heads",
    "plot_average_lines",
    "plot_knockout",
    "plot_patches",
    "plot_trace",
    "plot_trace_heads",
    "save_figure",
]
