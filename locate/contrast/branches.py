"""Branches that give one run the states of another, at one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from locate.contrast.contrast import Contrast
from locate.contrast.rows import Rows
from locate.engine import Branch, FrozenRun, Intervention, PatternPin, Pin
from locate.engine.calls import Beside
from locate.engine.rows import rows_of
from locate.errors import SiteError
from locate.model.found import once
from locate.sites.places import hooks_of
from locate.sites.site import Kind, hook_name


@dataclass(frozen=True, eq=False)
class Graft:
    """Makes branches of a contrast's target that take states of its source, from one position on.

    Attributes:
        contrast: the two runs; they must have kept the states that are asked for.
        position: where the target is resumed.
        everywhere: change all positions from there on, and not that one alone.
    """

    contrast: Contrast
    position: int
    everywhere: bool = False

    @property
    def target(self) -> FrozenRun:
        """The run that is changed."""
        return self.contrast.target

    @property
    def source(self) -> FrozenRun:
        """The run that the states come from."""
        return self.contrast.source

    @property
    def rows(self) -> Rows:
        """Which rows of the two belong together."""
        return self.contrast.rows

    @property
    def columns(self) -> tuple[int, ...]:
        """The patched positions, counted from the resume's."""
        return tuple(range(self.target.tokens.shape[1] - self.position)) if self.everywhere else (0,)

    def residual(self, layer: int, severed: str | None = None, *, everything: bool = False) -> Branch:
        """The residual stream that enters a block (``n_layers`` for the final norm).

        Args:
            layer: the block.
            severed: hold this module's outputs at their values in ``target`` from there on.
            everything: with it, whatever else the tokens there bring to this block and later ones.
        """
        states = self._entering(layer).clone()
        states[:, list(self.columns)] = self._own(self.source.residuals[layer]).to(states)
        held: dict[str, Intervention] = {}
        if severed is not None:
            names = hooks_of(self.target.model, severed, range(layer, self.target.n_layers))
            held = {name: self._pin(self.target, self.rows.target, name) for name in names}
        beside = self._beside() if everything and layer < self.target.n_layers else None
        return Branch(layer=layer, rows=self.rows.target, states=states, interventions=held, beside=beside)

    def state(self, layers: range, names: Sequence[str]) -> Branch:
        """Whole states at hook points of some layers."""
        pins = {name: self._pin(self.source, self.rows.source, name) for name in names}
        return Branch(
            layer=layers.start, rows=self.rows.target, states=self._entering(layers.start), interventions=pins
        )

    def several(self, places: Mapping[str, Sequence[int] | None]) -> Branch:
        """States at hook points of several blocks at once, whole (None) or of some heads or neurons each."""
        pins: dict[str, Intervention] = {}
        for name, units in places.items():
            pin = self._pin(self.source, self.rows.source, name)
            if units is not None:
                pin = replace(pin, values=pin.values[:, :, list(units)], only=tuple(units))
            pins[name] = pin
        layer = min(int(name.split(".")[1]) for name in places)
        return Branch(layer=layer, rows=self.rows.target, states=self._entering(layer), interventions=pins)

    def windows(self, kind: Kind, spans: Sequence[range]) -> list[Branch]:
        """A module's outputs in windows of layers."""
        # Windows cut off at the first layer begin alike: they share one run up to where each of them ends.
        shared = sorted({span.stop for span in spans if span.start == 0})
        trunk: dict[int, Tensor] = {}
        if self.target.resumable and not self.target.carries and len(shared) > 1:
            trunk = self.target.advance(self.position, self._window(kind, range(shared[-1])), shared)
        return [
            Branch(layer=span.stop, rows=self.rows.target, states=trunk[span.stop])
            if span.start == 0 and span.stop in trunk
            else self._window(kind, span)
            for span in spans
        ]

    def units(self, layer: int, name: str, units: Sequence[int] | None = None) -> Branch:
        """Single heads or neurons (the axis after the position), one after the other, each in all rows."""
        values = self._own(self.source.kept[name])
        chosen = torch.arange(values.shape[2]) if units is None else torch.tensor(units, dtype=torch.long)
        values = rearrange(values[:, :, chosen.to(values.device)], "row column unit ... -> (unit row) column ...")
        pin = Pin(values=values, columns=self.columns, units=self._each(chosen))
        return self._repeated(layer, len(chosen), {name: pin})

    def patterns(self, layer: int, name: str, heads: Sequence[int] | None = None) -> Branch:
        """Single heads' attention patterns, one head after the other, each in all rows."""
        values = self._patterns(name)
        chosen = torch.arange(values.shape[1]) if heads is None else torch.tensor(heads, dtype=torch.long)
        values = rearrange(values[:, chosen.to(values.device)], "row head query key -> (head row) query key")
        pin = PatternPin(values=values, queries=self.columns, heads=self._each(chosen))
        return self._repeated(layer, len(chosen), {name: pin})

    def attending(self, heads: Mapping[int, Sequence[int]]) -> Branch:
        """Attention patterns of several heads at once, by layer."""
        pins: dict[str, Intervention] = {}
        for layer, own in heads.items():
            name, chosen = hook_name("attn_head_pattern", layer), list(own)
            pins[name] = PatternPin(
                values=self._patterns(name)[:, chosen], queries=self.columns, only=tuple(chosen)
            )  # fmt: skip
        first = min(heads)
        return Branch(layer=first, rows=self.rows.target, states=self._entering(first), interventions=pins)

    def middle(self, layer: int) -> Branch:
        """The residual stream between a block's attention and its MLP.

        A block hands that state to two readers, the norm before its MLP and the sum after it. What it is made of
        is patched: the attention's output, by as much as brings the sum to the wanted state.
        """
        name = hook_name("attn", layer)
        wanted = self._own(self.source.residuals[layer]) + self._own(self.source.kept[name])
        entering = self._entering(layer)
        pin = Pin(values=wanted.to(entering) - entering[:, list(self.columns)], columns=self.columns)
        return Branch(layer=layer, rows=self.rows.target, states=entering, interventions={name: pin})

    def _window(self, kind: Kind, layers: range) -> Branch:
        names = hooks_of(self.target.model, kind, layers)
        if kind != "mlp" or len(names) < len(layers) or not self._mlp_is_added_last:
            return self.state(layers, names)
        # Nothing in the window's first block depends on the patch but its last sum, so the block need not run.
        states = self._entering(layers.start + 1).clone()
        columns = list(self.columns)
        old = rows_of(self.target.kept[names[0]], self.rows.target)[:, self.position :][:, columns]
        states[:, columns] += self._own(self.source.kept[names[0]]).to(states) - old
        pins = {name: self._pin(self.source, self.rows.source, name) for name in names[1:]}
        return Branch(layer=layers.start + 1, rows=self.rows.target, states=states, interventions=pins)

    @property
    def _mlp_is_added_last(self) -> bool:
        """Whether a block ends by adding its MLP's output, tried on the first block once per model."""
        run, name = self.target, hook_name("mlp", 0)
        if not run.resumable or name not in run.kept:
            return False
        return once(run.model, "the MLP is added last", lambda: _adds_last(run, name))

    def _pin(self, run: FrozenRun, rows: Tensor, name: str) -> Pin:
        if name not in run.kept:
            raise SiteError(f"The run that {name!r} is taken from did not keep it.")
        values = rows_of(run.kept[name], rows)[:, self.position :][:, list(self.columns)]
        return Pin(values=values, columns=self.columns)

    def _patterns(self, name: str) -> Float[Tensor, "row head query key"]:
        return rows_of(self.source.kept[name], self.rows.source)[:, :, self.position :][:, :, list(self.columns)]

    def _own(self, values: Tensor) -> Tensor:
        """The source's values for each row, at the patched positions."""
        return rows_of(values, self.rows.source)[:, self.position :][:, list(self.columns)]

    def _beside(self) -> Beside | None:
        """What the source's tokens bring beside the stream, where any model's tokens do."""
        if not self.source.token_places and not self.source.carries:
            return None
        positions = tuple(self.position + column for column in self.columns)
        return Beside(
            calls=self.source.calls, places=self.source.token_places, rows=self.rows.source, positions=positions
        )

    def _entering(self, layer: int) -> Tensor:
        return rows_of(self.target.residuals[layer], self.rows.target)[:, self.position :]

    def _repeated(self, layer: int, times: int, interventions: dict[str, Intervention]) -> Branch:
        # Expanded, and not copied, for a single row: thousands of neurons share the same states.
        states = repeat(self._entering(layer), "row ... -> (unit row) ...", unit=times)
        rows = repeat(self.rows.target, "row -> (unit row)", unit=times)
        return Branch(layer=layer, rows=rows, states=states, interventions=interventions)

    def _each(self, units: Int[Tensor, "unit"]) -> Int[Tensor, "unit_row"]:
        return repeat(units, "unit -> (unit row)", row=len(self.rows))


def _adds_last(run: FrozenRun, name: str) -> bool:
    last = run.tokens.shape[1] - 1
    states, after = (run.residuals[layer][:1, last:] for layer in (0, 1))
    # As large as the stream itself, so that the few digits of half precision tell as well.
    size = float(after.abs().max()) + 1
    pin = Pin(values=run.kept[name][:1, last:] + size)
    branch = Branch(layer=0, rows=torch.zeros(1, dtype=torch.long), states=states, interventions={name: pin})
    moved = run.advance(last, branch, [1])[1] - after
    return bool(torch.allclose(moved, torch.full_like(moved, size), rtol=0, atol=0.03 * size))
