"""The flow map for a page: a fragment of HTML that needs nothing else, and answers to mouse, touch and keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from locate.errors import LocateError
from locate.figures.flow import KINDS, Flow
from locate.figures.layered import SIGNS
from locate.figures.style import shown_text

# In pixels: a row; a column, at least and at most, and what all of them are to take; a letter; above, below, beside.
_ROW, _COLUMN, _ACROSS, _LETTER, _ABOVE, _BELOW, _BESIDE = 36.0, (15, 44), 740, 7.2, 12.0, 40.0, 14.0
# The largest mark, the smallest; the widest arrow, the thinnest.
_MARK, _ARROW = (14.0, 4.0), (6.0, 0.8)
# Arrows that are told apart at a glance.
_LEGIBLE = 60
_HINT = "Tab reaches the map, arrow keys go from node to node, Home and End to the first and the last."


def flow_html(
    flows: Mapping[tuple[str, str], Flow],
    *,
    title: str,
    unit: str = "logits",
    least: float = 0.005,
    most: int = 300,
    arrows_from: float | None = None,
) -> str:
    """A fragment for a page: the flow maps of one or more probes and directions, of which one is shown at a time.

    It refers to nothing outside. What a node is and carries stands in a tip where the mouse is or the focus; a slider
    leaves out thin arrows. The map scrolls in a box of its own where the page is narrow. Any number of fragments can
    stand on a page.

    Args:
        flows: by probe and direction, such as ``("The Eiffel Tower is in", "gained")``; the first is shown first.
        title: over the map.
        unit: of the effects.
        least: shares below it are left out.
        most: of components (not states) that a map shows, at most, the largest; the note below it says of how many.
        arrows_from: the share from which arrows are shown at first; by default that of the sixtieth of the first map.

    Raises:
        LocateError: no flow, or no direction of a probe that another one has.

    >>> fragment = flow_html({("edit", "gained"): flow}, title="Paris becomes Rome")   # doctest: +SKIP
    """
    if not flows:
        raise LocateError("flow_html: there is no flow. Give at least one, by probe and direction.")
    names = {part: list(dict.fromkeys(key[at] for key in flows)) for at, part in enumerate(("probe", "direction"))}
    if missing := [(one, other) for one in names["probe"] for other in names["direction"] if (one, other) not in flows]:
        raise LocateError(f"flow_html: each probe needs the same directions; {missing[0]} is missing.")
    figure = Element("figure", {"class": "flow"})
    SubElement(figure, "figcaption").text = title
    tools = SubElement(figure, "div", {"class": "flow-tools"})
    for part, options in names.items():
        if len(options) > 1:
            label = SubElement(tools, "label")
            label.text = {"probe": "Probe ", "direction": "Effect "}[part]
            choice = SubElement(label, "select", name=part)
            for option in options:
                SubElement(choice, "option", value=option).text = option
    shares = [sorted(flow.curves(least)["share"].abs(), reverse=True) for flow in flows.values()]
    if any(shares):
        legible = shares[0][_LEGIBLE - 1] if len(shares[0]) >= _LEGIBLE else 0.0
        start = legible if arrows_from is None else arrows_from
        _slider(tools, 100 * max(own[0] for own in shares if own), 100 * start)
    box = SubElement(figure, "div", {"class": "flow-box"})
    for key, flow in flows.items():
        data = {f"data-{part}": name for part, name in zip(names, key, strict=True)}
        view = SubElement(box, "div", {"class": "flow-view", **data})
        if key != next(iter(flows)):
            view.set("hidden", "hidden")
        _View(flow=flow, unit=unit, least=least, most=most, probe=key[0], direction=key[1]).draw(view)
    SubElement(figure, "p", {"class": "flow-note"}).text = _note(flows, least, most)
    SubElement(figure, "div", {"class": "flow-tip", "role": "status", "hidden": "hidden"}).text = " "
    SubElement(figure, "script").text = "//…"  # stands for the file, which is not to be escaped
    markup = tostring(figure, encoding="unicode")
    return f"<style>\n{_read('flow.css')}</style>\n" + markup.replace("//…", f"//<![CDATA[\n{_read('flow.js')}//]]>\n")


def _read(name: str) -> str:
    return files("locate.figures").joinpath(name).read_text(encoding="utf-8")


def _slider(tools: Element, largest: float, start: float) -> None:
    label = SubElement(tools, "label")
    label.text = "Arrows "
    ends = {"min": "0", "max": f"{largest:.1f}", "step": "0.1", "value": f"{min(start, largest):.1f}"}
    SubElement(label, "input", {"type": "range", "aria-label": "smallest share of an arrow, in percent", **ends})
    SubElement(label, "output").text = f"≥ {min(start, largest):.1f}%"


def _note(flows: Mapping[tuple[str, str], Flow], least: float, most: int) -> str:
    kinds = {kind for flow in flows.values() for kind in flow.nodes["kind"]}
    signs = ["★ edited site"]
    signs += ["tiles: residual states"] * ("resid" in kinds) + ["■ MLP"] * ("mlp" in kinds)
    signs += ["● attention"] * bool(kinds & {"attn", "head"})
    told = f"{', '.join(signs)}; red adds to the effect, blue takes from it. Shares below {100 * least:g}% are left out"
    cut = any(np.count_nonzero(flow.marks(least)["kind"] != "resid") > most for flow in flows.values())
    return f"{told}{f', and of components all but the {most} largest' if cut else ''}. {_HINT}"


@dataclass(frozen=True, kw_only=True)
class _View:
    """A flow as two drawings: the words beside it, which stay where it scrolls, and the map."""

    flow: Flow
    unit: str
    least: float
    most: int
    probe: str
    direction: str

    @property
    def column(self) -> float:
        """How wide one is, in pixels."""
        return float(np.clip(_ACROSS / self.flow.n_layers, *_COLUMN))

    def at(self, x: float | int, y: float | int) -> tuple[float, float]:
        """Where a place of the flow stands, in pixels."""
        return round((x + 0.5) * self.column, 1), round(_ABOVE + (y + 0.5) * _ROW, 1)

    def draw(self, view: Element) -> None:
        """Tiles, arrows over them, marks, and stars on top."""
        words = [shown_text(token) for token in self.flow.tokens]
        answer = [shown_text(self.flow.answers[0]), f"→ {shown_text(self.flow.answers[1])}", self._effect(1.0)]
        high = _ABOVE + _ROW * len(words) + _BELOW
        wide = _LETTER * max(map(len, words)) + _BESIDE
        beside = _svg(view, wide, high, "flow-words")
        beside.set("aria-hidden", "true")
        for place, word in enumerate(words):
            _text(beside, wide - 6, self.at(0, place)[1] + 4, word, "end")
        _text(beside, wide - 6, high - 14, "layer", "end")
        right = self.at(self.flow.n_layers - 0.5, 0)[0]
        svg = _svg(view, right + _LETTER * max(map(len, answer)) + 2 * _BESIDE, high, "flow-map")
        svg.set("role", "group")
        svg.set("aria-label", f"{self.probe}, effect {self.direction}: {answer[0]} {' '.join(answer[1:])}. {_HINT}")
        top, bottom = self.at(0, -0.5)[1], self.at(0, len(words) - 0.5)[1]
        for layer in range(0, self.flow.n_layers, max(1, int(np.ceil(24 / self.column)))):
            _text(svg, self.at(layer, 0)[0], high - 14, str(layer), "middle")
        marks = self._shown()
        for name, node in marks[marks["kind"] == "resid"].iterrows():
            self._tile(svg, str(name), node)
        frame = {"x": "0", "y": f"{top}", "width": f"{right:g}", "height": f"{bottom - top:g}"}
        SubElement(svg, "rect", {**frame, "fill": "none", "stroke": "#ccc", "pointer-events": "none"})
        self._arrows(svg, marks.loc[marks["kind"] != "resid", "part"])
        for name, node in marks[marks["kind"] != "resid"].iterrows():
            self._mark(svg, str(name), node)
        for place in self.flow.sites.values():
            x, y = self.at(*place)
            SubElement(svg, "path", {"d": _star(x, y), "fill": "#ffd23f", "stroke": "#000", "pointer-events": "none"})
        for line, word in enumerate(answer):
            _text(svg, right + _BESIDE, self.at(0, len(words) - 1)[1] + 16 * (line - 1) + 4, word, "start")
        if nodes := svg.findall("*[@class='flow-node']"):
            nodes[-1].set("tabindex", "0")  # the largest

    def _shown(self) -> pd.DataFrame:
        """States, then the largest components, with their colours."""
        marks: Any = self.flow.marks(self.least)
        states = marks["kind"] == "resid"
        parts = [marks[states], marks[~states].tail(self.most)]
        scales = [self.flow.scale(states=own) for own in (True, False)]
        fills = [
            [to_hex(colour) for colour in scale.to_rgba(part["share"].to_numpy())]
            for scale, part in zip(scales, parts, strict=True)
        ]
        return pd.concat([part.assign(fill=fill) for part, fill in zip(parts, fills, strict=True)])

    def _effect(self, share: float) -> str:
        return f"{_signed(share * self.flow.total, 2)} {self.unit}"

    def _node(self, svg: Element, name: str, node: Any, form: str, **places: float) -> None:
        """A shape that can be asked what it is."""
        place = int(node["position"])
        words = (
            f"{node['label']}: {KINDS[node['kind']][0]}"
            f"{'' if pd.isna(node['head']) else ' ' + str(int(node['head']))}, layer {int(node['layer'])}; "
            f"at “{shown_text(self.flow.tokens[place])}” (token {place}); "
            f"{self.direction}: {_signed(100 * node['share'], 1)}% of the effect, {self._effect(node['share'])}"
        )
        told = {"aria-label": words, "data-name": name, "data-x": f"{node['x']:.3f}", "data-y": f"{node['y']:.3f}"}
        SubElement(svg, form, {
            "class": "flow-node", "role": "img", "tabindex": "-1", "fill": node["fill"], **told,
            **{of: f"{one:g}" for of, one in places.items()},
        })  # fmt: skip

    def _tile(self, svg: Element, name: str, node: Any) -> None:
        x, y = self.at(node["x"] - 0.5, node["y"] - 0.5)
        self._node(svg, name, node, "rect", x=x, y=y, width=round(self.column, 1), height=_ROW)

    def _mark(self, svg: Element, name: str, node: Any) -> None:
        x, y = self.at(node["x"], node["y"])
        size = self._size(node["part"])
        if node["kind"] == "mlp":
            self._node(svg, name, node, "rect", x=x - size / 2, y=y - size / 2, width=size, height=size)
        else:
            self._node(svg, name, node, "circle", cx=x, cy=y, r=size / 2)
        svg[-1].set("stroke", "#333")

    def _size(self, part: float) -> float:
        """Of a mark, whose area says its share."""
        return round(max(min(_MARK[0], self.column) * part**0.5, _MARK[1]), 1)

    def _arrows(self, svg: Element, marks: Any) -> None:
        """Each a group of its curve, up to the edge of the mark that it ends at, and its head."""
        curves = self.flow.curves(self.least)
        largest = curves["share"].abs().max()
        for start, end, share, points in curves[["start", "end", "share", "points"]].itertuples(index=False, name=None):
            width = round(_ARROW[1] + (_ARROW[0] - _ARROW[1]) * abs(share) / largest, 2)
            colour, places = SIGNS[int(share < 0)], [self.at(*point) for point in points]
            if end in marks.index:
                places[3] = (places[3][0] - self._size(marks[end]) / 2, places[3][1])
            told = {
                "class": "flow-arrow",
                "data-share": f"{100 * abs(share):.2f}",
                "data-start": start,
                "data-end": end,
            }
            group = SubElement(svg, "g", {**told, "aria-hidden": "true", "opacity": "0.6", "pointer-events": "none"})
            one, two, three, four = (f"{x:g} {y:g}" for x, y in places)
            curve = {"d": f"M{one} C{two}, {three}, {four}", "fill": "none", "stroke": colour}
            SubElement(group, "path", {**curve, "stroke-width": f"{width:g}"})
            SubElement(group, "path", {"d": _head(np.array(places), width), "fill": colour})


def _svg(parent: Element, wide: float, high: float, name: str) -> Element:
    size = {"width": f"{wide:g}", "height": f"{high:g}", "viewBox": f"0 0 {wide:g} {high:g}"}
    return SubElement(parent, "svg", {"class": name, **size})


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _text(svg: Element, x: float | int, y: float | int, word: str, anchor: str) -> None:
    SubElement(svg, "text", {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor}).text = word


def _head(points: np.ndarray, width: float) -> str:
    """A triangle at the end of a curve, along it."""
    along = points[3] - points[2]
    along = along / max(float(np.hypot(*along)), 1e-9) * (5 + width)
    across = 0.45 * np.array([-along[1], along[0]])
    corners = (points[3], points[3] - along + across, points[3] - along - across)
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + " Z"


def _star(x: float, y: float, size: float = 8.0) -> str:
    turns = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = size * np.where(np.arange(10) % 2, 0.4, 1)
    corners = zip(x + reach * np.cos(turns), y + reach * np.sin(turns), strict=True)
    return "M" + " L".join(f"{one:.1f} {other:.1f}" for one, other in corners) + " Z"
