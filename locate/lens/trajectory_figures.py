"""Figures of lens trajectories: lines over layers, and maps of what each state would answer."""

from itertools import cycle
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from locate.errors import SiteError
from locate.figures.lines import STYLES, draw_lines
from locate.figures.options import PlotOptions
from locate.figures.sheet import sheet
from locate.figures.style import (
    drawable,
    even_lightness,
    label_rows,
    shown_text,
    token_label,
)
from locate.lens.trajectory import LensTrajectory
from locate.sites.table import site_title

_LABELS = {"log_probability": "log-probability [nat]", "probability": "probability", "logit": "logit", "rank": "rank"}
_PLACES = {"subject_last": "the subject's last token", "subject": "the subject"}
# Of a cell, in inches; of its letters, in points, and how wide one is for its height.
_CELL, _LETTER, _NARROW = (0.52, 0.19), 7.0, 0.6
# At most so many layers in a map, unless they are named.
_LAYERS = 16


def plot_trajectory(
    trajectory: LensTrajectory,
    *,
    value: str = "log_probability",
    position: int | str | None = None,
    confidence: float = 0.95,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Lines over layers, one for each token that is followed, with their intervals over prompts shaded.

    Args:
        trajectory: what ``logit_lens`` gave.
        value: ``log_probability``, ``probability``, ``logit`` or ``rank``, which is drawn on a logarithmic axis.
        position: one of those read; by default the last.
        confidence: of the intervals.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        LocateError: there is no such value.
        SiteError: the position was not read.

    >>> figure = locate.logit_lens(model, fact, progress=False).plot()
    """
    place = _place(trajectory, position)
    table = trajectory.summary(value, confidence=confidence).isel(position=place).to_dataframe().reset_index()
    names = _token_names(trajectory)
    table["token"] = [names[str(token)] for token in table["token"]]
    with sheet(options, "plot_trajectory", width=3.8, height=2.6) as drawn:
        (axes,) = drawn.panels()
        draw_lines(axes, table, "mean", "token", dict(zip(names.values(), cycle(STYLES), strict=False)))
        if value == "rank":
            axes.lines[-1].remove()  # a rank is never 0
            axes.set_yscale("log")
            axes.invert_yaxis()
        axes.set_ylabel(_LABELS[value] + (", logarithmic" if value == "rank" else ""))
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
        drawn.headline(f"{_lens(trajectory)}, {_at(trajectory, place)}")
    return drawn.figure


def plot_lens(
    trajectory: LensTrajectory,
    *,
    fact: int = 0,
    layers: list[int] | None = None,
    token: str | None = None,
    cmap: str | Colormap | None = None,
    **options: Unpack[PlotOptions],
) -> Figure:
    """Tokens across, layers up, and in each cell the first token of the readout there.

    Args:
        trajectory: what ``logit_lens`` gave.
        fact: of which prompt, counted from 0.
        layers: which to show; by default at most 16, evenly spaced, with the last.
        token: whose probability the colours say, such as ``"answer"``; by default that of each cell's own.
        cmap: a colour map.
        options: what every figure takes, ``PlotOptions``.

    Raises:
        SiteError: there is no such prompt, layer or token.

    >>> figure = locate.logit_lens(model, fact, progress=False).plot_map(token="answer")
    """
    if not 0 <= fact < trajectory.data.sizes["fact"]:
        raise SiteError(f"There is no prompt {fact}: this trajectory is of {trajectory.data.sizes['fact']}.")
    shown = _shown_layers([int(layer) for layer in trajectory.data["layer"].values], layers)
    own = trajectory.data.isel(fact=fact).sel(layer=shown)
    known = [str(one) for one in own["token"].values]
    if token is not None and token not in known:
        raise SiteError(f"This trajectory follows {', '.join(known)}; found {token!r}.")
    words = own["top"].values
    values = own["top_probability"].values if token is None else np.exp(own["log_probability"].sel(token=token).values)
    wide, high = words.shape[1] * _CELL[0] + 0.7, len(words) * _CELL[1] + 1.5
    with sheet(options, "plot_lens", width=max(3.5, wide), height=high) as drawn:
        (axes,) = drawn.panels()
        edges = [np.arange(n + 1) - 0.5 for n in reversed(words.shape)]
        hue = even_lightness("Blues") if cmap is None else cmap
        mesh = axes.pcolormesh(*edges, values, cmap=hue, vmin=0, vmax=1, edgecolors="face", linewidth=0.2)
        _write(axes, words, values, (drawn.width - 0.6) / words.shape[1])
        axes.set_xticks(range(words.shape[1]), _ticks(trajectory, fact), rotation=90, parse_math=False)
        label_rows(axes, [str(layer) for layer in shown], "layer")
        axes.tick_params(length=0)
        followed = "what stands there" if token is None else shown_text(_spelled(trajectory, token, fact))
        drawn.colorbar(mesh, axes, drawable(f"probability of {followed}"))
        drawn.headline(_lens(trajectory))
    return drawn.figure


def _write(axes: Axes, words: np.ndarray, values: np.ndarray, width: float) -> None:
    """Each cell's token, as much of it as fits the cell's width in inches."""
    most = max(2, int(72 * width / (_NARROW * _LETTER)))
    for (row, column), word in np.ndenumerate(words):
        text = drawable(shown_text(str(word)))
        axes.text(
            column, row, text if len(text) <= most else f"{text[: most - 1]}…", ha="center", va="center_baseline",
            fontsize=_LETTER, color="white" if values[row, column] > 0.55 else "0.15", parse_math=False, clip_on=True,
        )  # fmt: skip


def _shown_layers(present: list[int], layers: list[int] | None) -> list[int]:
    if layers is None:
        every = -(-len(present) // _LAYERS)
        return present[::-1][::every][::-1]
    if not layers or not set(layers) <= set(present):
        raise SiteError(f"This trajectory has layers {present[0]} to {present[-1]}, found {layers}.")
    return sorted(set(layers))


def _place(trajectory: LensTrajectory, position: int | str | None) -> int:
    """Where a position stands among those read."""
    read = trajectory.data["position"].values.tolist()
    if position is None:
        return len(read) - 1
    if position not in read:
        raise SiteError(f"position: this trajectory read {', '.join(map(str, read))}; found {position!r}.")
    return read.index(position)


def _ticks(trajectory: LensTrajectory, fact: int) -> list[str]:
    return [drawable(token_label(word, False)) for word in trajectory.info["read"][fact]]


def _spelled(trajectory: LensTrajectory, token: str, fact: int) -> str:
    at = [str(one) for one in trajectory.data["token"].values].index(token)
    return str(trajectory.info["tokens"][fact][at])


def _token_names(trajectory: LensTrajectory) -> dict[str, str]:
    """What each followed token is called: itself, where it is the same in all prompts."""
    names: dict[str, str] = {}
    for at, token in enumerate(trajectory.data["token"].values):
        spelled = {own[at] for own in trajectory.info["tokens"]}
        word = spelled.pop() if len(spelled) == 1 else None
        names[str(token)] = str(token) if word is None else drawable(shown_text(word))
    return names


def _lens(trajectory: LensTrajectory) -> str:
    translated = trajectory.info["translator"]
    return f"{'logit lens' if translated is None else translated} on the {site_title(trajectory.sites)}"


def _at(trajectory: LensTrajectory, place: int) -> str:
    n, name = trajectory.data.sizes["fact"], trajectory.data["position"].values[place]
    if n == 1:
        return f"at “{token_label(trajectory.info['read'][0][place], False)}”"
    where = f"position {name}" if isinstance(name, int | np.integer) else _PLACES.get(str(name), f"the {name} token")
    return f"at {where}, mean of {n} prompts"
