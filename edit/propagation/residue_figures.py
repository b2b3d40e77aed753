"""The figure of what is left of an old answer: by layer, by what writes it, and by context."""

from textwrap import shorten
from typing import Any, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from edit.propagation.residue import SIDES, OldFactResidue
from locate.figures.options import PlotOptions
from locate.figures.sheet import Sheet, sheet
from locate.figures.style import WIDE, Whole, drawable, fitted, label_rows

# Of o and of o*, told apart with any colour vision and by their markers.
_STYLES = {"old": ("#0072B2", "o"), "new": ("#D55E00", "s")}
_ROW, _WRITERS = 0.17, 8
# Of a letter with 7 points, in inches.
_LETTER = 0.055


def plot_residue(
    residue: OldFactResidue, *, probe: int = 0, n: int = _WRITERS, **options: Unpack[PlotOptions]
) -> Figure:
    """Both answers over layers, the parts that still write the old one, and both answers in each context.

    Open marks and broken lines are before the edit, filled ones and whole lines after it.

    Args:
        residue: from ``edit.old_fact_residue``.
        probe: whose trajectories are drawn.
        n: how many parts are shown.
        options: what every figure takes, ``PlotOptions``.

    >>> figure = residue.plot()
    """
    writes, asks = "written" in residue.data, not residue.contexts.empty

    def beside(width: float) -> bool:
        return width >= WIDE or not writes

    def heights(width: float) -> list[float]:
        return [2.3 if beside(width) else 4.0, *([_ROW * len(residue.contexts) + 1.1] if asks else [])]

    count = 1 + writes + asks
    with sheet(
        options, "plot_residue", width=5.6, height=lambda width: sum(heights(width)) + 0.3, panels=count
    ) as drawn:
        parts = drawn.parts(heights(drawn.width))
        ratios: dict[str, Any] = {"width_ratios": [1.25, 1]} if writes and beside(drawn.width) else {}
        shape = (1, 1 + writes) if beside(drawn.width) else (2, 1)
        panels = parts[0].panels(*shape, **ratios)
        _draw_layers(panels[0], residue, probe)
        if writes:
            _draw_writers(panels[1], residue, n, drawn.small)
        if asks:
            _draw_contexts(parts[1], residue)
        own = residue.probes.iloc[probe]
        drawn.headline(f"What is left of {drawable(own['old'])} after the edit to {drawable(own['new'])}")
    return drawn.figure


def _draw_layers(axes: Axes, residue: OldFactResidue, probe: int) -> None:
    own = residue.data["log_probability"].isel(probe=probe)
    for answer, (colour, marker) in _STYLES.items():
        for side, dashes in zip(SIDES, ("--", "-"), strict=True):
            line = own.sel(side=side, answer=answer)
            axes.plot(
                line["layer"], line, dashes, color=colour, marker=marker, markersize=3, linewidth=1,
                markevery=max(1, len(line) // 10), markerfacecolor="white" if side == "before" else colour,
                label=f"{drawable(residue.probes.iloc[probe][answer])}, {side}",
            )  # fmt: skip
    axes.set_xlabel("layer")
    axes.set_ylabel("log-probability [nat],\nlogit lens")
    axes.xaxis.set_major_locator(Whole())
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_writers(axes: Axes, residue: OldFactResidue, n: int, size: float) -> None:
    """What adds most to the old answer over the new one after the edit, with what it was before."""
    table = residue.writers().head(n)
    rows, colour = np.arange(len(table)), _STYLES["old"][0]
    axes.barh(rows, table["over_after"], height=0.6, color=colour)
    axes.plot(table["over_before"], rows, "o", color=colour, markerfacecolor="white", markersize=4)
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_yticks(rows, table["name"])
    axes.invert_yaxis()
    axes.set_xlabel("added to\nlogit(old) − logit(new)")
    axes.set_title("what still writes the old one", fontsize=size)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_contexts(part: Sheet, residue: OldFactResidue) -> None:
    (axes,), table = part.panels(), residue.contexts.to_dict(orient="records")
    for row, one in enumerate(table):
        for lift, (answer, (colour, marker)) in zip((-0.16, 0.16), _STYLES.items(), strict=True):
            ends = [one[f"{answer}_{side}"] for side in SIDES]
            axes.plot(ends, [row + lift] * 2, color=colour, linewidth=1)
            for value, filled in zip(ends, (False, True), strict=True):
                axes.plot(value, row + lift, marker, color=colour, markersize=4,
                          markerfacecolor=colour if filled else "white")  # fmt: skip
    room = int(0.5 * part.width / _LETTER)
    labels = [
        f"{one['kind']}: {_first(one['text'], room - len(one['kind']))}" if one["invites"] else one["kind"]
        for one in table
    ]
    label_rows(axes, labels)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("probability")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D(
            [], [], linestyle="", marker=marker, color=colour, markersize=4, label=f"{answer}, {side}",
            markerfacecolor="white" if side == "before" else colour,
        )
        for answer, (colour, marker) in _STYLES.items() for side in SIDES
    ]  # fmt: skip
    share = [f"{residue.said_again(side):.0%} {side}" for side in SIDES]
    headline = f"the old answer comes first in {share[0]}, {share[1]} of inviting contexts"
    axes.set_title(fitted(headline, 0.45 * part.width if part.width < WIDE else 0.6 * part.width), fontsize=part.small)
    part.legend(handles)


def _first(text: str, room: int) -> str:
    """The context's own line, in so many letters."""
    return drawable(shorten(text.partition("\n")[0], max(10, room), placeholder=" …"))
