"""Figures of average indirect effects."""

import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import SiteError
from locate.figures.lines import STYLES, draw_lines
from locate.figures.style import HUES, STYLE, add_headline, add_units, even_lightness, fitted, head_figure, heat_map
from locate.tracing.average import ROLES, AverageTrace, check_role
from locate.tracing.figures import MODULES

# A role has the same look in every figure, whichever others stand beside it.
_ROLE_STYLES: dict[str, tuple[str, str]] = dict(zip(ROLES, [STYLES[at] for at in (4, 5, 1, 2, 6, 0)], strict=True))
# Of an entry, in inches.
_LEGEND_WIDTH = 1.9


def plot_average(
    average: AverageTrace, *, kinds: Sequence[str] | None = None, figsize: tuple[float, float] | None = None
) -> Figure:
    """Heat maps of the average indirect effect, one per kind: roles of the token down, layers across.

    Args:
        average: what ``average_traces`` gave.
        kinds: the panels, in order; by default all.
        figsize: width and height in inches.

    Raises:
        SiteError: a kind that was not averaged.

    >>> figure = average.plot()
    """
    wanted = _wanted(average, kinds)
    roles = average.roles
    effect = average.effect.sel(kind=wanted, role=roles)
    low, high = min(0.0, float(effect.min())), max(0.0, float(effect.max()))
    falling = average.total_effect[0] < 0
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (max(3.5, 1.3 + 2.0 * len(wanted)), 2.2), layout="constrained")
        panels = figure.subplots(1, len(wanted), sharex=True, sharey=True, squeeze=False)[0]
        meshes = []
        for kind, axes in zip(wanted, panels, strict=True):
            hue = even_lightness(HUES[kind], reverse=falling)
            meshes.append((heat_map(axes, effect.sel(kind=kind).values, hue, low, high), axes))
            axes.set_title(_title(average, kind))
        add_units(figure, meshes, _unit(average))
        panels[0].set_yticks(range(len(roles)), roles)
        panels[0].invert_yaxis()
        add_headline(figure, _headline(average))
    plt.close(figure)
    return figure


def plot_average_lines(
    average: AverageTrace,
    *,
    kinds: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The average indirect effect over layers, a line per role of the token, with its interval shaded.

    Args:
        average: what ``average_traces`` gave.
        kinds: the panels, in order; by default all.
        roles: the lines; by default all that any fact has a token of.
        figsize: width and height in inches.

    Raises:
        SiteError: a kind that was not averaged, or an unknown role.

    >>> figure = average.plot_lines(roles=["last subject token", "last token"])
    """
    wanted = _wanted(average, kinds)
    roles = average.roles if roles is None else roles
    for role in roles:
        check_role(role)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=figsize or (max(4.0, 2.4 * len(wanted)), 2.9), layout="constrained")
        panels = figure.subplots(1, len(wanted), sharex=True, sharey=True, squeeze=False)[0]
        styles = {role: _ROLE_STYLES[role] for role in roles}
        for kind, axes in zip(wanted, panels, strict=True):
            own = average.data[["effect", "low", "high"]].sel(kind=kind, role=list(roles))
            draw_lines(axes, own.to_dataframe().reset_index(), "effect", "role", styles, legend=axes is panels[0])
            axes.set_title(_title(average, kind))
        panels[0].set_ylabel(fitted(_unit(average), 1.6), parse_math=False)
        handles, labels = panels[0].get_legend_handles_labels()
        columns = max(1, int(figure.get_figwidth() / _LEGEND_WIDTH))
        panels[0].get_legend().remove()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        add_headline(figure, _headline(average))
    plt.close(figure)
    return figure


def plot_average_heads(
    average: AverageTrace,
    *,
    role: str = "last token",
    cmap: str | Colormap = "RdBu_r",
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """A heat map of the average indirect effect of single heads at the tokens of one role: heads down, layers across.

    Args:
        average: of traces with ``attn_head`` among their kinds.
        role: of the tokens.
        cmap: a diverging colour map.
        figsize: width and height in inches.

    Raises:
        SiteError: the traces had no heads, an unknown role, or one that no fact has a token of.

    >>> figure = average.plot_heads(role="last subject token")                         # doctest: +SKIP
    """
    values = average.head_effect.sel(role=average.visited(role)).transpose("head", "layer").values
    return head_figure(
        values, reach=float(np.abs(values).max()), title=f"head output at the {role}", headline=_headline(average),
        unit=_unit(average), cmap=cmap, figsize=figsize,
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
        f"total effect {mean:.2f} [{low:.2f}, {high:.2f}]"
    )
