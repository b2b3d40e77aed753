"""Whether the edited model answers by the circuit that it answered by before."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.propagation.likeness import mass_moved, spearman
from edit.propagation.sides import Changed, sides_of
from edit.propagation.unrelated import FEW, About, Shift, unrelated_facts, unrelated_pairs
from edit.requests.requests import Case, as_request
from locate.circuits.circuit import Circuit
from locate.circuits.comparing import check_alike
from locate.circuits.finding import DEFAULT_METHOD, find_circuit
from locate.contrast.corruption import Corruption
from locate.contrast.swaps import TokenSwap
from locate.errors import FactError, LocateError
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts
from locate.facts.prompts import encode_fact
from locate.facts.subjects import same_text
from locate.names import DEFAULT_BUDGET
from locate.sites.components import Component
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = ("before", "after")
PARTS = ("edges", "nodes")
_COMPONENTS = ("writers", "readers")
_MEASURES = {"jaccard": True, "spearman": True, "mass_moved": False}
# What stands against a fact: prompts about other subjects, or what makes them.
Against = Corruption | list[Int[Tensor, "position"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitShift(Shift):
    """The circuit of a fact in the base model against that of its new answer in the edited one.

    Attributes:
        data: ``scores`` and ``kept``, the best edges, of both circuits (dims ``side, writer, reader``); with dims
            ``part, measure`` the ``shift`` of edges and of nodes (and ``comparable``, the same), with a dim ``pair``
            the ``null``. All are of scores without their sign, and a node weighs what its edges do. Measures are
            ``jaccard`` of the best edges and of the nodes that they join, ``spearman`` over all, and ``mass_moved``,
            the share of all scores that stands elsewhere.
        writers: the components that write.
        readers: those that read.

    >>> circuits_shift.data["shift"].dims, circuits_shift.circuit("after").n_edges == circuits_shift.info["edges"]
    (('part', 'measure'), True)
    """

    stored_as = "circuit_shift"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.shift_figures:plot_circuit_shift"}
    compared, alike = "part", _MEASURES

    writers: tuple[Component, ...]
    readers: tuple[Component, ...]

    def circuit(self, side: str = "after") -> Circuit:
        """One of the two circuits, with the scores of all edges and the best of them kept.

        Raises:
            LocateError: there is no such side.
        """
        if side not in SIDES:
            raise LocateError(f"side: must be one of {', '.join(SIDES)}, found {side!r}.")
        own = self.data[["scores", "kept"]].sel(side=side, drop=True)
        info = {**self.info["circuit"], "model_print": self.info["prints"][SIDES.index(side)]}
        return Circuit(scores=own["scores"], kept=own["kept"], writers=self.writers, readers=self.readers, info=info)

    def best(self, side: str = "after") -> Site:
        """Where the head or MLP writes whose edges weigh most in one of the circuits.

        Raises:
            LocateError: there is no such side.
        """
        return self.circuit(side).best()

    def plot(self, **options: Any) -> "Figure":
        """Where both circuits weigh, and the measures beside the null; see ``edit.propagation.shift_figures``."""
        return self.draw(**options)

    def _on(self) -> str:
        return f"{self.info['circuit']['prompt']}: {self.info['old']} → {self.info['new']}"

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), **{side: [asdict(one) for one in getattr(self, side)] for side in _COMPONENTS}}


def circuit_shift(
    model: TransformerBridge,
    change: Changed,
    request: Case,
    *,
    null: int | Sequence[Fact] | Sequence[Circuit] = FEW,
    k: int | float = 0.005,
    corruption: Corruption | None = None,
    method: str = DEFAULT_METHOD,
    steps: int = 5,
    confidence: float = 0.95,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> CircuitShift:
    """Compare the circuit of o in the base model with that of o* in the edited one.

    Each is the circuit of the answer that its model gives, against the same prompt about another subject. The metric is
    the logit of that answer over the other of the two: so both are read along one and the same direction of the stream,
    up to its sign, and what differs is how the models work and not what they were asked. As that sign turns with the
    answer, scores are compared without theirs: what still works for o then works against o*. A probability has another
    direction for each answer, and hardly a slope where an edit has brought it near 1.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        request: what was edited.
        null: of how many unrelated facts to find circuits in the base model (of those that ship), of which ones, or
            those circuits, which ``unrelated_circuits`` finds once for many edits; 0 for none.
        k: the best edges, as a count or as a share of the possible ones.
        corruption: by default the first other subject that fits and of which neither o nor o* is true.
        method: of ``find_circuit``.
        steps: of its integration.
        confidence: of the null's interval.
        budget: the most tokens in one pass.
        progress: whether to show bars.

    Raises:
        FactError: no subject can take the place of this one, or no two of the facts of the null are unrelated.
        LocateError: circuits of the null were found otherwise, or in other weights; or as ``find_circuit`` does.
        UpdateError: the update does not fit the model, is not one of its weights, or changes nothing.
        ModelError: as ``find_circuit`` does.

    >>> circuits_shift = edit.circuit_shift(model, update, request, null=2, method="eap", progress=False)
    >>> circuits_shift.to_dataframe()["part"].unique().tolist()
    ['edges', 'nodes']
    """
    sides, request = sides_of(model, change), as_request(request)
    fact = request.fact
    sides.check_tokens(fact.text)
    how: dict[str, Any] = {"method": method, "steps": steps, "budget": budget, "progress": progress}
    own = replace(fact, target_new=request.target_new, consequences=())
    with sides.before.entered():
        against = _against(model, own, corruption)
        before = _found(model, own, against, how)
        if isinstance(null, int):
            null = unrelated_circuits(model, null, apart_from=fact, corruption=corruption, **how)
        elif not all(isinstance(one, Circuit) for one in null):
            facts = [one for one in null if isinstance(one, Fact)]
            null = unrelated_circuits(model, facts, corruption=corruption, **how)
    with sides.after.entered():
        turned = replace(own, target=request.target_new, target_new=fact.target)
        after = _found(model, turned, against, how)
    others = [one for one in null if isinstance(one, Circuit)]
    _check(before, others)
    everything = [one.top(k) for one in (before, *others)]
    pairs = unrelated_pairs([About(*one.info["about"]) for one in everything])
    found = [_measures(everything[a], everything[b]) for a, b in pairs]
    both, dims = (everything[0], after.top(k)), ("part", "measure")
    shift = _measures(*both)
    data = xr.Dataset(
        {
            "scores": xr.concat([one.scores.astype(np.float32) for one in both], "side"),
            "kept": xr.concat([one.kept for one in both], "side"),
            "shift": (dims, shift), "comparable": (dims, shift),
            "null": (("pair", *dims), np.reshape(found, (len(found), *shift.shape))),
        },
        coords={"side": list(SIDES), "part": list(PARTS), "measure": list(_MEASURES)},
    )  # fmt: skip
    shared = ("model", "method", "metric", "prompt")
    info = {
        "model": str(model.cfg.model_name), "method": sides.described["method"], "old": fact.target,
        "new": request.target_new, "k": k, "edges": both[0].n_edges, "confidence": confidence,
        "circuit": {name: before.info[name] for name in shared}, "prints": [one.info["model_print"] for one in both],
        "logit_difference": {
            side: [one.info["clean"], one.info["corrupted"]] for side, one in zip(SIDES, both, strict=True)
        },
        "null": [one.info["prompt"] for one in others],
    }  # fmt: skip
    return CircuitShift(data=data, writers=before.writers, readers=before.readers, info=info)


def unrelated_circuits(
    model: TransformerBridge,
    facts: int | Sequence[Fact] = FEW,
    *,
    apart_from: Fact | None = None,
    corruption: Corruption | None = None,
    progress: bool = True,
    **how: Any,
) -> list[Circuit]:
    """Circuits of facts that have nothing to do with each other, for many a ``circuit_shift`` to be held against.

    Args:
        model: as it is now; it should be the base model.
        facts: which, with ``target_new``; or how many of those that ship.
        apart_from: a fact that they must not be related to.
        corruption: as of ``circuit_shift``.
        progress: whether to show a bar on anything longer than a second.
        how: ``method``, ``steps`` and ``budget`` of ``find_circuit``.

    Raises:
        FactError: no subject can take the place of one of them.
        LocateError: one has no second answer; or as ``find_circuit`` does.

    >>> null = edit.unrelated_circuits(model, 2, apart_from=fact, method="eap", progress=False)
    >>> edit.circuit_shift(model, update, request, null=null, method="eap", progress=False).data.sizes["pair"]
    3
    """
    if isinstance(facts, int):
        swaps: dict[str, Against] = {}
        pool = bundled_facts()
        chosen = unrelated_facts(
            model, apart_from, facts, usable=lambda one: _usable(model, one, corruption, pool, swaps)
        ) if facts else []  # fmt: skip
    else:
        chosen, swaps = list(facts), {one.text: _against(model, one, corruption) for one in facts}
    bar = tqdm(chosen, "circuits of unrelated facts", disable=not progress, delay=1)
    return [_found(model, one, swaps[one.text], {**how, "progress": False}) for one in bar]


def load_circuit_shift(path: str | Path) -> CircuitShift:
    """Read a shift that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_circuit_shift(circuits_shift.save("circuits.nc")).best() == circuits_shift.best()
    True
    """
    return CircuitShift.load(path)


def _found(model: TransformerBridge, fact: Fact, against: Against, how: Mapping[str, Any]) -> Circuit:
    clean = [fact] * len(against) if isinstance(against, list) else [fact]
    found = find_circuit(model, clean, against, metric="logit_diff", **how)
    return replace(found, info={**found.info, "about": list(About.of(fact))})


def _against(
    model: TransformerBridge, fact: Fact, corruption: Corruption | None, pool: Sequence[Fact] | None = None
) -> Against:
    """What stands against a fact, whichever of its two answers is asked for; by default a subject of the pool."""
    if corruption is None:
        facts = bundled_facts() if pool is None else pool
        answers = [one for one in (fact.target, fact.target_new) if one is not None]
        theirs = {one.subject for one in facts if any(same_text(one.target, answer) for answer in answers)}
        corruption = TokenSwap(pool=tuple(one for one in facts if one.subject not in theirs))
    corrupted = corruption.corrupt(model, fact, encode_fact(model, fact))
    return corruption if corrupted.embeddings is not None else list(corrupted.tokens)


def _usable(
    model: TransformerBridge,
    fact: Fact,
    corruption: Corruption | None,
    pool: Sequence[Fact],
    swaps: dict[str, Against],
) -> bool:
    """Whether something can stand against a fact; it is kept."""
    try:
        swaps[fact.text] = _against(model, fact, corruption, pool)
    except FactError:
        return False
    return fact.target_new is not None


def _check(before: Circuit, others: Sequence[Circuit]) -> None:
    for one in others:
        check_alike(before, one)
        if "about" not in one.info:
            raise LocateError(
                "null: these circuits do not say which facts they are of. Find them by unrelated_circuits."
            )
        for name in ("method", "metric", "steps"):
            own, its = before.info.get(name), one.info.get(name)
            if own != its:
                raise LocateError(f"null: a circuit has {name} {its!r} and this one {own!r}; compare like with like.")


def _measures(one: Circuit, other: Circuit) -> Float[np.ndarray, "part measure"]:
    scores = [np.abs(each.scores.values) for each in (one, other)]
    nodes, weights = [set(each.nodes) for each in (one, other)], [np.nansum(each, axis=1) for each in scores]
    return np.array([
        [one.diff(other).jaccard, spearman(*scores), mass_moved(*scores)],
        [len(nodes[0] & nodes[1]) / len(nodes[0] | nodes[1]), spearman(*weights), mass_moved(*weights)],
    ])  # fmt: skip
