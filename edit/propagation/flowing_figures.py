"""The figure of a flow map."""

from matplotlib.figure import Figure

from edit.propagation.flowing import FlowMap
from locate.figures.flow_map import flow_figure


def plot_flow_map(
    found: FlowMap, *, probe: int = 0, direction: str = "gained", figsize: tuple[float, float] | None = None
) -> Figure:
    """Layers and tokens, the states and components that carry the edit, and arrows from its site to the answer.

    Args:
        found: from ``edit.flow_map``.
        probe: which of its probes.
        direction: ``gained`` (edited states put into the base model) or ``lost`` (the reverse).
        figsize: in inches.

    Raises:
        LocateError: there is no such probe or direction.

    >>> figure = mapped.plot()
    """
    old, new = found.answers[probe] if 0 <= probe < len(found.answers) else ("", "")
    headline = f"{found.info['model']}, {found.info['method']}: “{old} → {new}”, effect {direction}"
    return flow_figure(found.flow(probe, direction), headline=headline, figsize=figsize)
