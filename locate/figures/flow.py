"""A flow: which places of a model carry an effect on from where it begins to the answer, and where each of them stands.

Figures of it: ``flow_map`` beside this module for print, ``flow_html`` for a page that answers to mouse and keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize

from locate.errors import LocateError, suggest

# What a node can be: its title, and where in its cell it stands (from the middle, down).
KINDS: dict[str, tuple[str, float]] = {
    "resid": ("residual state", 0.0), "attn": ("attention", -0.2), "head": ("attention head", -0.2),
    "mlp": ("MLP", 0.2),
}  # fmt: skip
# Where arrows end that reach the answer.
LOGITS = "logits"
NODE_COLUMNS, ARROW_COLUMNS = ("kind", "head", "layer", "position", "effect", "label"), ("start", "end", "weight")
# How far heads that share a cell stand aside, how far below the last token what has no position, in cells.
_ASIDE, _FOOT = 0.28, 0.85
# Which part of the colours states have; how soon colours leave white.
_PALE, _WHITE = (0.26, 0.74), 6
# How far arrows within a row bend, in rows: at least, by layer, at most.
_BOW = (0.4, 0.06, 1.1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """Nodes on a grid of layers and token positions, and arrows between them, as plain data.

    Attributes:
        tokens: of the prompt, as text.
        n_layers: of the model.
        nodes: a row for each, under its name: ``kind`` (``resid``, ``attn``, ``head`` or ``mlp``), ``head`` (empty for
            what is not one), ``layer``, ``position``, ``effect`` (in the unit of the total) and ``label``.
        arrows: ``start``, ``end`` and ``weight``, in the unit of the total. They start at a node or an edited site and
            end at a node or at ``"logits"``.
        edited: by name, layer and position of each edited site; without a position where all are edited.
        answers: the old one and the new.
        total: the effect that nodes carry a share of.

    Raises:
        LocateError: a column, a place or an end of an arrow that there is not; a total of 0.

    >>> import pandas as pd
    >>> node = {"kind": "mlp", "head": None, "layer": 2, "position": 1, "effect": 3.0, "label": "m2"}
    >>> carried = Flow(
    ...     tokens=["The", " Louvre"], n_layers=4, nodes=pd.DataFrame([node], index=["m2"]), total=6.0,
    ...     arrows=pd.DataFrame([("site", "m2", 3.0), ("m2", "logits", 3.0)], columns=["start", "end", "weight"]),
    ...     edited={"site": (1, 1)}, answers=("Paris", "Rome"),
    ... )
    >>> float(carried.places.loc["m2", "share"])
    0.5
    """

    tokens: Sequence[str]
    n_layers: int
    nodes: pd.DataFrame
    arrows: pd.DataFrame
    edited: Mapping[str, tuple[int, int | None]]
    answers: tuple[str, str]
    total: float

    def __post_init__(self) -> None:
        for name, table, needed in (("nodes", self.nodes, NODE_COLUMNS), ("arrows", self.arrows, ARROW_COLUMNS)):
            if lacking := [column for column in needed if column not in table]:
                raise LocateError(
                    f"Flow: {name} need the columns {', '.join(needed)}; {', '.join(lacking)} is missing."
                )
        if not np.isfinite(self.total) or self.total == 0:
            raise LocateError(f"Flow: shares need a total effect other than 0, found {self.total}.")
        if unknown := sorted(set(self.nodes["kind"]) - set(KINDS)):
            raise LocateError(f"Flow: there is no kind of node {unknown[0]!r}. {suggest(unknown[0], KINDS)}")
        if not self.nodes.index.is_unique:
            twice = self.nodes.index[self.nodes.index.duplicated()][0]
            raise LocateError(f"Flow: two nodes are called {twice!r}. Give each a name of its own.")
        self._check_places()
        ends = {"start": {*self.nodes.index, *self.edited}, "end": {*self.nodes.index, LOGITS}}
        for column, known in ends.items():
            if strangers := sorted(set(self.arrows[column]) - known):
                raise LocateError(f"Flow: an arrow's {column} is {strangers[0]!r}. {suggest(strangers[0], known)}")
        if not np.isfinite(self.nodes["effect"].to_numpy(float)).all() or not np.isfinite(self._weights).all():
            raise LocateError("Flow: an effect or a weight is not finite. Leave out what was not measured.")

    def _check_places(self) -> None:
        places = [(name, *place) for name, place in self.edited.items()]
        places += list(self.nodes[["layer", "position"]].itertuples(name=None))
        for name, layer, position in places:
            if not 0 <= layer < self.n_layers or not (position is None or 0 <= position < len(self.tokens)):
                raise LocateError(
                    f"Flow: {name!r} stands in layer {layer} at position {position}; "
                    f"there are {self.n_layers} layers and {len(self.tokens)} tokens, both counted from 0."
                )

    @property
    def _weights(self) -> np.ndarray:
        return self.arrows["weight"].to_numpy(float)

    @cached_property
    def places(self) -> pd.DataFrame:
        """The nodes with their ``share`` of the total, and where they stand: ``x`` in layers, ``y`` in tokens, down.

        ``part`` is what a share's size is to the largest of states, or of components. A cell has attention above and
        the MLP below; heads that share one stand side by side.
        """
        nodes: Any = self.nodes.assign(share=self.nodes["effect"].astype(float) / self.total)
        largest = nodes["share"].abs().groupby(nodes["kind"] == "resid").transform("max")
        nodes["part"] = nodes["share"].abs() / largest.where(largest > 0, 1.0)
        heads = nodes[nodes["kind"] == "head"].sort_values("head").groupby(["layer", "position"])["head"]
        rank, many = heads.cumcount(), heads.transform("size")
        aside = _ASIDE * (2 * rank - (many - 1)) / (many - 1).clip(lower=1)
        down = nodes["kind"].map({kind: offset for kind, (_, offset) in KINDS.items()})
        x = nodes["layer"] + aside.reindex(nodes.index, fill_value=0.0).astype(float)
        return nodes.assign(x=x.astype(float), y=(nodes["position"] + down).astype(float))

    @property
    def logits(self) -> tuple[float, float]:
        """Where arrows to the answer end: beyond the last layer, at the last token."""
        return self.n_layers - 0.2, len(self.tokens) - 1.0

    @cached_property
    def sites(self) -> dict[str, tuple[float, float]]:
        """Where the edited sites stand: at the MLP, or below all tokens."""
        foot, down = len(self.tokens) - 1 + _FOOT, KINDS["mlp"][1]
        return {
            name: (float(layer), foot if position is None else position + down)
            for name, (layer, position) in self.edited.items()
        }

    def reach(self, *, states: bool) -> float:
        """The largest share either way, of residual states or of components; 0 where there are none."""
        own = self.places.loc[(self.places["kind"] == "resid") == states, "share"].abs()
        return float(own.max()) if len(own) else 0.0

    def scale(self, *, states: bool) -> ScalarMappable:
        """Colours of shares, white at 0 and even about it; those of states are paler, so that marks on them show."""
        tones = np.linspace(*(_PALE if states else (0.0, 1.0)), 257)
        white = np.clip(1 - _WHITE * abs(2 * tones[:, None] - 1), 0, 1)
        reach = self.reach(states=states) or 1.0
        colours = ListedColormap((1 - white) * mpl.colormaps["RdBu_r"](tones) + white)
        return ScalarMappable(Normalize(-reach, reach), colours)

    def marks(self, least: float) -> pd.DataFrame:
        """Places of the nodes that carry at least such a share, either way; the largest of them last."""
        places: Any = self.places
        return places[places["share"].abs() >= least].sort_values("share", key=abs, kind="stable")

    def curves(self, least: float) -> pd.DataFrame:
        """Arrows of at least such a share, with their ``points``, x and y of a cubic curve; the largest last."""
        table: Any = self.arrows.assign(share=self._weights / self.total)
        table = table[table["share"].abs() >= least].sort_values("share", key=abs, kind="stable")
        at = dict(zip(self.places.index, self.places[["x", "y"]].itertuples(index=False, name=None), strict=True))
        starts, ends = {**at, **self.sites}, {**at, LOGITS: self.logits}
        points = [_curve(starts[one], ends[other]) for one, other in zip(table["start"], table["end"], strict=True)]
        return table.assign(points=pd.Series(points, index=table.index, dtype=object))


def _curve(start: tuple[float, float], end: tuple[float, float]) -> Float[np.ndarray, "4 2"]:
    """From left to right; within a row in a bow over what stands there."""
    begin, last = np.array(start), np.array(end)
    across, down = last - begin
    least, rise, most = _BOW
    bow = min(least + rise * abs(across), most) if abs(down) < 1 else 0.0
    handle = np.array([max(0.35 * across, 0.3), 0])
    return np.stack([begin, begin + handle - [0, bow], last - handle - [0, bow], last])
