"""The figure of contributions before and after: from the base to the edited logit difference, part by part."""

from typing import Any, Unpack

from matplotlib.figure import Figure

from edit.propagation.contributions import ContributionShift
from locate.figures.options import PlotOptions
from locate.figures.waterfall import waterfall_figure


def plot_waterfall(found: ContributionShift, *, probe: int = 0, n: int = 12, **options: Unpack[PlotOptions]) -> Figure:
    """Bars of the parts whose contribution changed most, in order of the layers, the others gathered as one.

    Args:
        found: from ``edit.contribution_shift``.
        probe: which of its probes.
        n: how many parts are shown by themselves.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: there is no such probe.

    >>> figure = edit.contribution_shift(model, update, request).plot()
    """
    table: Any = found.table(probe).sort_values("layer", kind="stable").rename(columns={"shift": "value"})
    own = found.data["contribution"].sel(probe=probe).sum("part")
    old, new = found.answers[probe]
    return waterfall_figure(
        table[["name", "value"]], start=float(own.sel(side="base")), end=float(own.sel(side="edited")), n=n,
        unit=f"logit({new}) − logit({old})", headline=f"{found.info['model']}, {found.info['method']}", **options,
    )  # fmt: skip
