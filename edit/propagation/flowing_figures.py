"""The figure of a flow map."""

from typing import Unpack

from matplotlib.figure import Figure

from edit.propagation.flowing import FlowMap
from locate.figures.flow_map import flow_figure
from locate.figures.options import PlotOptions


def plot_flow_map(
    found: FlowMap, *, probe: int = 0, direction: str = "gained", **options: Unpack[PlotOptions]
) -> Figure:
    """Layers and tokens, the states and components that carry the edit, and arrows from its site to the answer.

    Args:
        found: from ``edit.flow_map``.
        probe: which of its probes.
        direction: ``gained`` (edited states put into the base model) or ``lost`` (the reverse).
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: there is no such probe or direction.

    >>> figure = mapped.plot()
    """
    old, new = found.answers[probe] if 0 <= probe < len(found.answers) else ("", "")
    headline = f"{found.info['model']}, {found.info['method']}: “{old} → {new}”, effect {direction}"
    return flow_figure(found.flow(probe, direction), headline=headline, **options)
