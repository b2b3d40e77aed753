"""What is left of the old answer after an edit: by layer, in what still writes it, and where it is invited back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.propagation.asking import Asked, asked_of
from edit.propagation.contexts import Context, inviting_contexts, own_contexts
from edit.propagation.sides import Changed, Sides, sides_of
from edit.requests.probes import Probed, as_probed, named_roles
from edit.requests.requests import EditRequest
from locate.errors import FactError, ModelError, SiteError
from locate.facts.answers import tell_apart
from locate.facts.prompts import encode_fact, rank_of
from locate.lens.attribution import logit_attribution
from locate.lens.parts import part_name, part_site
from locate.lens.projecting import logit_lens
from locate.names import DEFAULT_BUDGET
from locate.results import Result
from locate.showing import first_of
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = ("before", "after")
ANSWERS = ("old", "new")
# Of a part, where it is.
_PLACE = ("kind", "layer", "unit")
_READ = ("log_probability", "rank", "logit")
# Probes that ask for the edited fact itself.
_ASKED = ("edit", "paraphrase", "alias")


@dataclass(frozen=True, kw_only=True, eq=False)
class OldFactResidue(Result):
    """What is left of o where an edit has put o*.

    Attributes:
        data: of each probe and side, the logit lens at the last position, ``log_probability``, ``rank`` and ``logit``
            of ``old`` and ``new`` (dims ``side, probe, layer, answer``), and ``written``, what each part of the model
            adds to either's logit (dims ``side, probe, answer, part``; of each part ``part_kind``, ``part_layer`` and
            ``part_unit``).
        probes: what was asked: ``role, text, old, new``.
        contexts: one row for each context of the edit's own question: its ``kind``, whether it ``invites`` the old
            answer, the ``text``, and of both sides the probabilities of o and o* (``old_before`` …), the rank of o
            (``rank_before`` …) and the first answer (``answer_before`` …).
        info: how it was made; ``left_out`` has what could not be measured and why.

    >>> residue.data["log_probability"].dims, residue.contexts["kind"].iloc[0]
    (('side', 'probe', 'layer', 'answer'), 'bare')
    """

    stored_as = "old_fact_residue"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.residue_figures:plot_residue"}

    probes: pd.DataFrame
    contexts: pd.DataFrame
    info: dict[str, Any]

    def said_again(self, side: str = "after") -> float:
        """The share of inviting contexts in which the old answer comes first; NaN without any.

        Raises:
            SiteError: there is no such side.
        """
        if self.contexts.empty:
            return float("nan")
        return float((self.contexts.loc[self.contexts["invites"], f"rank_{_check(side)}"] == 1).mean())

    def overtakes(self, side: str = "after", *, probe: int = 0) -> int | None:
        """The layer from which on the lens has o* before o, up to the last; None where o is before it at the end.

        Raises:
            SiteError: there is no such side or probe.

        >>> residue.overtakes("after") is None or residue.overtakes("after") < model.cfg.n_layers
        True
        """
        if not 0 <= probe < len(self.probes):
            raise SiteError(f"There is no probe {probe}: there are {len(self.probes)}, from 0.")
        own = self.data["logit"].sel(side=_check(side)).isel(probe=probe)
        behind = np.flatnonzero((own.sel(answer="old") >= own.sel(answer="new")).values)
        layers = own["layer"].values
        if not len(behind):
            return int(layers[0])
        return None if behind[-1] == len(layers) - 1 else int(layers[behind[-1] + 1])

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: whether o is said again where it is invited, and from where on o* is before it.

        >>> list(residue.summary())
        ['old said again', 'old said again before', 'overtaken in layer']
        """
        layer = self.overtakes()
        return {
            "old said again": self.said_again(), "old said again before": self.said_again("before"),
            "overtaken in layer": float("nan") if layer is None else float(layer),
        }  # fmt: skip

    def writers(self) -> pd.DataFrame:
        """What each head and MLP adds to the logits of o and o* on both sides, mean over probes.

        Rows come by ``over_after``, what is added to o over o* after the edit, the largest first. That difference and
        ``over_before`` are what to compare: all logits may rise alike, and no answer gains by it.

        Raises:
            SiteError: this model's logits could not be told apart; the message says why.

        >>> residue.writers().columns[-2:].tolist()
        ['over_before', 'over_after']
        """
        if "written" not in self.data:
            raise SiteError(f"What writes the answers was not measured: {self.info['left_out']['writers']}")
        own = self.data["written"].mean("probe")
        parts = [own[f"part_{name}"].values.tolist() for name in _PLACE]
        table = pd.DataFrame({
            "name": list(map(part_name, *parts)), **dict(zip(_PLACE, parts, strict=True)),
            **{f"{answer}_{side}": own.sel(side=side, answer=answer).values for answer in ANSWERS for side in SIDES},
        })  # fmt: skip
        for side in SIDES:
            table[f"over_{side}"] = table[f"old_{side}"] - table[f"new_{side}"]
        sites = [part_site(*one) is not None for one in zip(*parts, strict=True)]
        return pd.DataFrame(table[sites]).sort_values("over_after", ascending=False, ignore_index=True)

    def best(self) -> Site:
        """The head or MLP that writes most of o over o* after the edit.

        Raises:
            SiteError: as ``writers``.
        """
        first = self.writers().iloc[0]
        site = part_site(str(first["kind"]), int(first["layer"]), int(first["unit"]))
        assert site is not None
        return site

    def _on(self) -> str:
        first: Any = self.probes.iloc[0]
        return f"{first_of(self.probes['text'].tolist())}: {first['old']} → {first['new']}"

    def _rows(self) -> pd.DataFrame:
        """The contexts of the question; without any, what writes the answers."""
        columns = ["kind", "text", "rank_before", "rank_after", "answer_before", "answer_after"]
        return self.writers() if self.contexts.empty else pd.DataFrame(self.contexts[columns])

    def plot(self, **options: Any) -> "Figure":
        """Trajectories, writers and contexts; see ``edit.propagation.residue_figures``."""
        return self.draw(**options)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each side, probe, layer and answer: the lens. ``contexts`` and ``writers()`` are the others."""
        table = self.data[list(_READ)].to_dataframe().reset_index()
        return table.merge(self.probes, left_on="probe", right_index=True)

    def _plain(self) -> dict[str, Any]:
        tables = {name: getattr(self, name).to_dict(orient="records") for name in ("probes", "contexts")}
        return {**super()._plain(), **tables}

    @classmethod
    def _of(cls, data: xr.Dataset, plain: dict[str, Any]) -> "OldFactResidue":
        return super()._of(data, {**plain, **{name: pd.DataFrame(plain[name]) for name in ("probes", "contexts")}})


def old_fact_residue(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    roles: Sequence[str] | str = _ASKED,
    contexts: Mapping[str, str] | None = None,
    most: int = 3,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> OldFactResidue:
    """Look for the old answer in the edited model: by layer, in what heads and MLPs write, and where it is invited.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build.
        probes: what to ask; contexts are only of a request, whose fact they are made of.
        roles: of the probes that are read.
        contexts: texts to stand before the question, by what they are called; by default ``inviting_contexts``.
        most: how many of each kind of those.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probes of these roles, or one whose answers no token tells apart.
        UpdateError: the update does not fit the model, is not one of its weights, or changes nothing.

    >>> residue = edit.old_fact_residue(model, update, request, contexts={"denied": "Not in Rome. "}, progress=False)
    >>> residue.contexts["kind"].tolist()
    ['bare', 'denied']
    """
    sides = sides_of(model, change)
    roles = named_roles(roles)
    probes = as_probed(probes)
    every = asked_of(sides, probes)
    asked = [one for one in every if one.probe.role in roles]
    if not asked:
        there = ", ".join(dict.fromkeys(one.probe.role for one in every))
        raise FactError(f"roles: no probe is {' or '.join(roles)}; these are {there}. Name one of their roles.")
    left_out: dict[str, str] = {}
    if isinstance(probes, EditRequest):
        found = inviting_contexts(probes, most) if contexts is None else own_contexts(contexts)
        rows = [_answered(sides, probes, one, budget) for one in tqdm(found, "contexts", disable=not progress, delay=1)]
    else:
        rows, left_out["contexts"] = [], "They are made of a request's fact. Give the request, not its probes."
    data = _followed(sides, asked, budget, progress)
    try:
        data = data.assign(written=_written(sides, asked, budget, progress))
    except ModelError as error:
        left_out["writers"] = str(error)
    table = [{name: getattr(one.probe, name) for name in ("role", "text", "old", "new")} for one in asked]
    info = {"model": str(model.cfg.model_name), "method": sides.described["method"], "left_out": left_out}
    return OldFactResidue(
        data=data.assign_coords(side=list(SIDES), answer=list(ANSWERS), probe=np.arange(len(asked))),
        probes=pd.DataFrame(table), contexts=pd.DataFrame(rows), info=info,
    )  # fmt: skip


def load_old_fact_residue(path: str | Path) -> OldFactResidue:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_old_fact_residue(residue.save("residue.nc")).said_again() == residue.said_again()
    True
    """
    return OldFactResidue.load(path)


def _check(side: str) -> str:
    if side not in SIDES:
        raise SiteError(f"side: must be one of {', '.join(SIDES)}, found {side!r}.")
    return side


def _followed(sides: Sides, asked: Sequence[Asked], budget: int, progress: bool) -> xr.Dataset:
    """What each layer would answer, on both sides."""
    both = []
    for weights in (sides.before, sides.after):
        own = []
        with weights.entered():
            for one in tqdm(asked, "trajectories", disable=not progress, delay=1):
                lens = logit_lens(
                    sides.model, one.prompt.tokens, [one.old, one.new], positions="last", budget=budget, progress=False
                )
                own.append(lens.data[list(_READ)].isel(fact=0, position=0, drop=True).drop_vars("token"))
        both.append(xr.concat(own, "probe"))
    return xr.concat(both, "side").rename(token="answer")


def _written(sides: Sides, asked: Sequence[Asked], budget: int, progress: bool) -> xr.DataArray:
    """What each part adds to either's logit, on both sides.

    Raises:
        ModelError: the model's logits cannot be told apart.
    """
    prompts = [one.prompt.tokens.tolist() for one in asked]
    both = []
    for weights in (sides.before, sides.after):
        with weights.entered():
            own = [
                logit_attribution(sides.model, prompts, tokens, by="head", budget=budget, progress=progress)
                for tokens in ([one.old for one in asked], [one.new for one in asked])
            ]
        both.append(xr.concat([one.contributions.drop_vars("fact") for one in own], "answer"))
    names = {"fact": "probe", **{name: f"part_{name}" for name in _PLACE}}
    return xr.concat(both, "side").rename(names).transpose("side", "probe", "answer", "part")


def _answered(sides: Sides, request: EditRequest, context: Context, budget: int) -> dict[str, Any]:
    """What both models answer to the edit's question after a context."""
    model, fact = sides.model, request.fact
    prompt = encode_fact(model, fact, prefix=context.prefix)
    sides.check_tokens(prompt.text)
    apart = tell_apart(model, prompt, fact.target, request.target_new)
    runs = sides.runs(prompt.after(apart.shared).tokens[None], budget=budget)
    row: dict[str, Any] = {"kind": context.kind, "invites": context.invites, "text": prompt.text}
    for side, run in zip(SIDES, runs, strict=True):
        logits = run.logits[0].float()
        chances = logits.softmax(-1)
        row |= {
            f"old_{side}": float(chances[apart.one]), f"new_{side}": float(chances[apart.other]),
            f"rank_{side}": rank_of(logits, apart.one),
            f"answer_{side}": model.tokenizer.decode([int(logits.argmax())]),
        }  # fmt: skip
    return row
