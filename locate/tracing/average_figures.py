"""Figures of average indirect effects."""

import re
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import SiteError
from locate.figures.lines import STYLES, draw_lines
from locate.figures.maps import head_figure
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import HUES, even_lightness, fitted, heat_map, label_rows, shown_number
from locate.tracing.average import ROLES, AverageTrace, check_role
from locate.tracing.figures import MODULES

# A role has the same look in every figure, whichever others stand beside it.
_ROLE_STYLES: dict[str, tuple[str, str]] = dict(zip(ROLES, [STYLES[at] for at in (4, 5, 1, 2, 6, 0)], strict=True))


def plot_average(
    average: AverageTrace,
    *,
    kinds: Sequence[str] | None = None,
    cmap: str | Colormap | None = None,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Heat maps of the average indirect effect, one per kind: roles of the token down, layers across.

    Args:
        average: what ``average_traces`` gave.
        kinds: the panels, in order; by default all.
        cmap: one colour map for all panels, instead of one hue per kind.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: a kind that was not averaged.

    >>> figure = average.plot()
    """
    wanted = _wanted(average, kinds)
    roles = average.roles
    effect = average.effect.sel(kind=wanted, role=roles)
    low, high = min(0.0, float(effect.min())), max(0.0, float(effect.max()))
    falling = average.total_effect[0] < 0
    n = len(wanted)
    with sheet(options, "plot_average", width=max(3.5, 1.3 + 2.0 * n), height=2.3, panels=n) as drawn:
        panels = drawn.panels(1, n, sharex=True, sharey=True)
        meshes = []
        for kind, axes in zip(wanted, panels, strict=True):
            hue = even_lightness(HUES[kind], reverse=falling) if cmap is None else cmap
            meshes.append((heat_map(axes, effect.sel(kind=kind).values, hue, low, high), axes))
            axes.set_title(fitted(_title(average, kind), 0.65 * drawn.width / n))
        drawn.colorbars(meshes, _unit(average))
        label_rows(panels[0], roles)
        drawn.headline(_headline(average))
    return drawn.figure


def plot_average_lines(
    average: AverageTrace,
    *,
    kinds: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    **options: Unpack[PlotOptions],
) -> Figure:
    """The average indirect effect over layers, a line per role of the token, with its interval shaded.

    Args:
        average: what ``average_traces`` gave.
        kinds: the panels, in order; by default all.
        roles: the lines; by default all that any fact has a token of.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: a kind that was not averaged, or an unknown role.

    >>> figure = average.plot_lines(roles=["last subject token", "last token"])
    """
    wanted = _wanted(average, kinds)
    roles = average.roles if roles is None else roles
    for role in roles:
        check_role(role)
    n, width = len(wanted), max(4.0, 2.4 * len(wanted))

    def beside(width: float) -> bool:
        return width >= 1.6 * n

    def height(width: float) -> float:
        return 2.9 if beside(width) else 1.2 + 1.5 * n

    with sheet(options, "plot_average_lines", width=width, height=height, panels=n) as drawn:
        shape = (1, n) if beside(drawn.width) else (n, 1)
        panels = drawn.panels(*shape, sharex=True, sharey=True)
        styles = {role: _ROLE_STYLES[role] for role in roles}
        for kind, axes in zip(wanted, panels, strict=True):
            own = average.data[["effect", "low", "high"]].sel(kind=kind, role=list(roles))
            draw_lines(axes, own.to_dataframe().reset_index(), "effect", "role", styles, legend=axes is panels[0])
            axes.set_title(_title(average, kind))
            if axes is panels[0] or shape[0] > 1:
                axes.set_ylabel(fitted(_unit(average), 1.6), parse_math=False)
            if axes is not panels[-1] and shape[0] > 1:
                axes.set_xlabel("")
        handles, labels = panels[0].get_legend_handles_labels()
        if legend := panels[0].get_legend():
            legend.remove()
        drawn.legend(handles, labels)
        drawn.headline(_headline(average))
    return drawn.figure


def plot_average_heads(
    average: AverageTrace,
    *,
    role: str = "last token",
    cmap: str | Colormap = "RdBu_r",
    **options: Unpack[PlotOptions],
) -> Figure:
    """A heat map of the average indirect effect of single heads at the tokens of one role: heads down, layers across.

    Args:
        average: of traces with ``attn_head`` among their kinds.
        role: of the tokens.
        cmap: a diverging colour map.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: the traces had no heads, an unknown role, or one that no fact has a token of.

    >>> figure = average.plot_heads(role="last subject token")                         # doctest: +SKIP
    """
    values = average.head_effect.sel(role=average.visited(role)).transpose("head", "layer").values
    return head_figure(
        values, reach=float(np.abs(values).max()), title=f"head output at the {role}", headline=_headline(average),
        unit=_unit(average), cmap=cmap, name="plot_average_heads", options=options,
    )  # fmt: skip


def _wanted(average: AverageTrace, kinds: Sequence[str] | None) -> list[str]:
    present = [str(kind) for kind in average.effect["kind"].values]
    wanted = present if kinds is None else list(kinds)
    if not wanted or not set(wanted) <= set(present):
        raise SiteError(f"These averages can be plotted for the kinds {present}, found {wanted}.")
    return wanted


def _title(average: AverageTrace, kind: str) -> str:
    if kind == "resid":
        return "state"
    window = average.info["window"]
    return f"{MODULES[kind]}, window of {window}" if window > 1 else MODULES[kind]


def _unit(average: AverageTrace) -> str:
    return "AIE on " + average.info["label"].replace("{answer}", "answer").replace("{new}", "new answer")


def _headline(average: AverageTrace) -> str:
    mean, low, high = average.total_effect
    done = "restoring" if average.info["direction"] == "restore" else "breaking"
    # As words: GaussianNoise is Gaussian noise.
    corruption = re.sub(r"(?<=[a-z])([A-Z])", lambda found: " " + found[1].lower(), average.info["corruption"])
    return (
        f"{corruption}, {average.n_facts} facts: average indirect effect of {done} one site; "
        f"total effect {shown_number(mean)} [{shown_number(low)}, {shown_number(high)}]"
    )
