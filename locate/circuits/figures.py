"""The figure of a circuit: a layered graph from the embedding up to the logits."""

from collections.abc import Collection
from typing import Unpack

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from locate.circuits.circuit import Circuit
from locate.errors import LocateError
from locate.figures.layered import Box, Link, layered_figure
from locate.figures.options import PlotOptions
from locate.figures.style import HUES

_PALETTE = sns.color_palette("colorblind").as_hex()
# Of a head's inputs: told apart with any colour vision, and from the signs of scores.
_PORTS = {"q": ("query", _PALETTE[1]), "k": ("key", _PALETTE[2]), "v": ("value", _PALETTE[4])}
_FILLS = {"embed": ("resid", 0.22), "head": ("attn", 0.12), "mlp": ("mlp", 0.22), "logits": ("resid", 0.22)}
# An MLP stands above the heads of its layer; no layer, no row.
_ABOVE = 0.5


def plot_circuit(
    circuit: Circuit,
    *,
    marked: Collection[str] = (),
    **options: Unpack[PlotOptions],
) -> Figure:
    """A layered graph of what takes part: the embedding below, the logits above, heads by index, MLPs at the right.

    Edges are as wide as their scores are large, and of two colours by sign. They enter a head by ports for its query,
    key and value; a line joins the heads that share one. Layers and heads that take no part have no room.

    Args:
        circuit: of which the kept edges are drawn: a few hundred can be told apart.
        marked: components whose outline is bold.
        options: what every figure takes, ``PlotOptions``; the title is by default the model, how the circuit was found,
            and its size.

    Raises:
        LocateError: it has no edges.

    >>> figure = circuit.top(30).prune().plot()
    """
    if not circuit.n_edges:
        raise LocateError("plot_circuit: the circuit has no edges. Draw one that has.")
    network = circuit.graph
    inner = {name: one for name, one in network.nodes.items() if one["kind"] in ("head", "mlp")}
    heads = sorted({one["head"] for one in inner.values() if one["kind"] == "head"})
    columns = {head: float(place) for place, head in enumerate(heads)}
    mlp = len(heads) + (0.3 if heads else 0.0)
    row, rows, places = 1.0, {}, {}
    for layer in sorted({one["layer"] for one in inner.values()}):
        kinds = {one["kind"] for one in inner.values() if one["layer"] == layer}
        places[layer, "head"], places[layer, "mlp"] = row, row + _ABOVE * (len(kinds) - 1)
        rows[row, places[layer, "mlp"]] = str(layer)
        row = places[layer, "mlp"] + 1
    boxes = {}
    for name, one in network.nodes.items():
        kind, layer, head = one["kind"], one["layer"], one["head"]
        hue, tint = _FILLS[kind]
        fill = mpl.colormaps[HUES[hue]](tint)
        if kind in ("head", "mlp"):
            label, column = (f"{layer}.{head}", columns[head]) if kind == "head" else (f"m{layer}", mlp)
            boxes[name] = Box(
                label=label, row=places[layer, kind], column=column, fill=fill, bold=name in marked
            )  # fmt: skip
        else:
            boxes[name] = Box(label=name, row=0.0 if kind == "embed" else row, column=None, fill=fill,
                              bold=name in marked)  # fmt: skip
    ends: dict[tuple[str, str], list[str]] = {}
    for writer, end, reader in network.edges(keys=True):
        ends.setdefault((writer, reader), []).append(end)
    input_of = {one.name: one.input for one in circuit.readers}
    links = [
        Link(start=writer, ends=tuple(ends[writer, reader]), port=input_of[reader], value=score)
        for writer, reader, score in circuit.edges
    ]
    names = {place: str(head) for head, place in columns.items()}
    has_mlp = any(one["kind"] == "mlp" for one in inner.values())
    return layered_figure(
        boxes, links, rows=rows, columns=names | ({mlp: "MLP"} if has_mlp else {}), ports=_PORTS,
        names=("head", "layer"), headline=_headline(circuit), unit="score", name="plot_circuit",
        options=options,
    )  # fmt: skip


def _headline(circuit: Circuit) -> str:
    told = [str(circuit.info[name]) for name in ("model", "method") if circuit.info.get(name)]
    share = np.format_float_positional(100 * circuit.n_edges / max(circuit.n_possible, 1), precision=2, trim="-")
    return ", ".join([*told, f"{circuit.n_edges} edges ({share}%)"])
