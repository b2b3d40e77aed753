"""How an edit travels from the changed weights to the answer."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change, check_in_weights, within, without
from edit.requests.probes import ROLES, Probe, probes_for
from edit.requests.requests import EditRequest
from locate.contrast.contrast import Contrast
from locate.contrast.sweep import kept_hooks, sweep
from locate.engine import DEFAULT_BUDGET, FrozenRun, freeze, refreeze
from locate.errors import FactError, SiteError
from locate.facts.answers import tell_apart
from locate.facts.prompts import Prompt, answer_strings, encode_text, rank_of, token_strings, worded
from locate.facts.questions import Questions
from locate.model.held import HeldWeights
from locate.model.weights import edited_layers
from locate.results import Result, place_of_largest
from locate.sites.site import KINDS, Kind, Site, check_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIRECTIONS = ("lost", "gained")


@dataclass(frozen=True, kw_only=True, eq=False)
class Propagation(Result):
    """What an edit changes per probe, and through which states.

    Attributes:
        totals: one row per probe: ``role, text, old, new`` and how these are spelled in tokens (``old_tokens``,
            ``new_tokens``), the logit difference o* − o of both models (``base``, ``edited``), their difference
            (``total_effect``, in logits), log-probabilities in nats, ranks of o*, and each model's first answer.
        tokens: each probe's tokens as text.
        layers: the edited layers.
        info: how it was made.

    >>> flow.best("mlp").layer >= 4  # the edited layer, or one that passes the change on
    True
    """

    stored_as = "propagation"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.propagation.figures:plot_propagation"}

    totals: pd.DataFrame
    tokens: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...]
    info: dict[str, Any]

    @property
    def mediation(self) -> xr.DataArray:
        """Effect in logits, dims ``probe, direction, kind, position, layer``.

        ``lost`` is what the edited model loses when that state takes its base value, ``gained`` what the base model
        gains when it takes its edited value. NaN beyond a probe's length and for probes without mediation.
        """
        return self.data["mediation"]

    def share(self, probe: int = 0) -> xr.DataArray:
        """A probe's mediated effects as shares of its total effect.

        Raises:
            SiteError: there is no such probe, or its mediation was not measured.
        """
        if not 0 <= probe < len(self.totals):
            raise SiteError(f"There is no probe {probe}: there are {len(self.totals)}, from 0.")
        if bool(self.mediation.sel(probe=probe).isnull().all()):
            role = self.totals.loc[probe, "role"]
            raise SiteError(f"The mediation of probe {probe} ({role}) was not measured; add its role to mediate=….")
        return self.mediation.sel(probe=probe) / self.totals.loc[probe, "total_effect"]

    def best(self, kind: Kind = "mlp", *, probe: int = 0, direction: str = "gained") -> Site:
        """The site of a kind that carries most of a probe's effect."""
        if direction not in DIRECTIONS or kind not in self.mediation.coords["kind"].values:
            raise SiteError(f"Measured were {DIRECTIONS} for {self.info['kinds']}; found {direction!r} for {kind!r}.")
        table = self.share(probe).sel(kind=kind, direction=direction)
        return Site(kind, **place_of_largest(table))

    def plot(self, **options: Any) -> "Figure":
        """The change flowing from the edited site to the last token; see ``plot_propagation`` beside this module."""
        return self.draw(**options)

    def _tables(self) -> list[xr.Dataset]:
        return [xr.Dataset({"effect": self.mediation})]

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """With tokens, and the probe's totals beside each state; without those that were not measured."""
        table = table.dropna(subset="effect")
        tokens = [self.tokens[p][t] for p, t in zip(table["probe"], table["position"], strict=True)]
        totals = self.totals[["role", "text", "old", "new", "total_effect"]]
        return table.assign(token=tokens).merge(totals, left_on="probe", right_index=True)

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), "totals": self.totals.to_dict(orient="records")}

    @classmethod
    def _of(cls, data: xr.Dataset, plain: dict[str, Any]) -> "Propagation":
        return super()._of(data, {**plain, "totals": pd.DataFrame(plain["totals"])})


def load_propagation(path: str | Path) -> Propagation:
    """Read a propagation that was saved.

    Raises:
        DataError: the file is missing or is not a saved propagation.

    >>> load_propagation(flow.save("flow.nc")).layers
    (4,)
    """
    return Propagation.load(path)


def propagate(
    model: TransformerBridge,
    update: Change,
    probes: Sequence[Probe] | EditRequest,
    *,
    mediate: Sequence[str] | str = ("edit", "paraphrase", "consequence"),
    kinds: Sequence[Kind] = KINDS,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Propagation:
    """Measure how an edit changes each probe's answer, and which states carry the change.

    Base and edited model read the same tokens, so each state has a base and an edited value. Every state
    from the edited layer on is exchanged in turn, exactly: its base value put into the edited model
    (effect lost), and its edited value into the base model (effect gained).

    Args:
        model: a raw-mode bridge, with the update applied or not; it is left as it came.
        update: the edit.
        probes: what to ask (see ``probes_for``), or a request whose fact provides the probes.
        mediate: roles of the probes whose mediation is measured; totals are measured for all.
        kinds: which states to exchange: ``resid``, ``mlp``, ``attn``.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probes, or one whose answers no token tells apart.
        UpdateError: the update does not fit the model, or is not one of its weights.

    >>> flow = edit.propagate(model, update, request, mediate=("edit",), kinds=["mlp"])
    >>> bool(flow.totals.loc[0, "total_effect"] > 0)
    True
    """
    asked = _asked(model, probes)
    if not asked:
        raise FactError("There are no probes; give some, or a request whose fact provides them.")
    kinds = tuple(dict.fromkeys(check_kind(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)))
    mediate = (mediate,) if isinstance(mediate, str) else tuple(mediate)
    if unknown := sorted(set(mediate) - set(ROLES)):
        raise FactError(f"mediate: there are no probes of role {unknown[0]!r}; roles are {', '.join(ROLES)}.")
    check_in_weights(update, "Propagation")
    keep = kept_hooks(model, kinds)
    layers = edited_layers(model, update.parameters)
    reached = range(min(layers, default=0), model.cfg.n_layers)
    longest = max(len(one.tokens) for one in asked)
    shape = (len(asked), len(DIRECTIONS), len(kinds), longest, model.cfg.n_layers)
    effects = torch.full(shape, float("nan"), dtype=torch.float32)
    rows = []
    with without(model, update):
        before = HeldWeights.of(model)
    with within(model, update):
        after = HeldWeights.of(model)
    for index, (probe, tokens, new, old) in enumerate(tqdm(asked, "propagation", disable=not progress, delay=1)):

        def difference(
            logits: Float[Tensor, "row vocab"], rows: Tensor | None = None, new: int = new, old: int = old
        ) -> Float[Tensor, "row"]:
            return (logits[:, new] - logits[:, old]).float()

        wanted = keep if probe.role in mediate else ()
        with before.entered():
            base = freeze(model, tokens[None], keep=wanted, budget=budget)
        with after.entered():
            edited = refreeze(base)
        rows.append(_totals(model, probe, base, edited, new, old))
        if probe.role not in mediate:
            continue
        positions = range(len(tokens))
        own = effects[index, ..., : len(tokens), :]
        own[..., : reached.start] = 0.0
        lost = Contrast.between(edited, base, _questions(model, probe, tokens, new, base))
        left = sweep(lost, kinds, difference, positions=positions, layers=reached)
        own[0, ..., reached.start :] = (difference(edited.logits) - left[..., 0]).cpu()
        right = sweep(lost.reversed(), kinds, difference, positions=positions, layers=reached)
        own[1, ..., reached.start :] = (right[..., 0] - difference(base.logits)).cpu()
    coords = {
        "probe": np.arange(len(asked)), "direction": list(DIRECTIONS), "kind": list(kinds),
        "position": np.arange(longest), "layer": np.arange(model.cfg.n_layers),
    }  # fmt: skip
    return Propagation(
        totals=pd.DataFrame(rows),
        data=xr.Dataset({"mediation": (tuple(coords), effects.numpy())}, coords=coords),
        tokens=tuple(tuple(token_strings(model, one.tokens)) for one in asked),
        layers=tuple(layers),
        info={
            "model": str(model.cfg.model_name),
            "method": update.method,
            "kinds": list(kinds),
            "mediate": list(mediate),
        },
    )


class _Asked(NamedTuple):
    """A probe, the tokens to ask it with, and the first tokens that tell its answers apart."""

    probe: Probe
    tokens: Int[Tensor, "position"]
    new: int
    old: int


def _asked(model: TransformerBridge, probes: Sequence[Probe] | EditRequest) -> list[_Asked]:
    """How to ask the probes. Of a request, those that cannot be told apart are left out with a warning."""
    if not isinstance(probes, EditRequest):
        return [_ask(model, probe) for probe in probes]
    asked: list[_Asked] = []
    for probe in probes_for(probes):
        try:
            asked.append(_ask(model, probe))
        except FactError as error:
            if probe.role == "edit":
                raise
            warnings.warn(f"Left out of the propagation: {error}", stacklevel=3)
    return asked


def _ask(model: TransformerBridge, probe: Probe) -> _Asked:
    """Tokens that both answers begin with (such as "New" of New York and New Jersey) join the prompt."""
    text = worded(model, probe.text, chat=probe.chat)
    apart = tell_apart(model, text, probe.new, probe.old, joined=probe.joined)
    tokens = torch.cat([encode_text(model, text), apart.shared])
    return _Asked(probe=probe, tokens=tokens, new=apart.one, old=apart.other)


def _prompt(model: TransformerBridge, probe: Probe, tokens: Tensor) -> Prompt:
    text = worded(model, probe.text, chat=probe.chat)
    return Prompt(text=text, tokens=tokens, subject_span=(0, 0), joined=probe.joined)


def _questions(model: TransformerBridge, probe: Probe, tokens: Tensor, new: int, base: FrozenRun) -> Questions:
    prompt = _prompt(model, probe, tokens)
    return Questions(
        model=model, prompts=(prompt,), answers=torch.tensor([new]), targets_new=(probe.old,), clean=base.logits
    )


def tellable_probes(model: TransformerBridge, request: EditRequest) -> list[Probe]:
    """A request's probes whose answers a token tells apart; a warning names the others.

    Raises:
        FactError: no token tells the answers of the edit itself apart.

    >>> [probe.role for probe in tellable_probes(model, request)][:1]
    ['edit']
    """
    return [one.probe for one in _asked(model, request)]


def _totals(
    model: TransformerBridge, probe: Probe, base: FrozenRun, edited: FrozenRun, new: int, old: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"role": probe.role, "text": probe.text, "old": probe.old, "new": probe.new}
    asked = _prompt(model, probe, base.tokens[0])
    row |= {f"{name}_tokens": "|".join(answer_strings(model, asked, row[name]) or ()) for name in ("old", "new")}
    for name, run in (("base", base), ("edited", edited)):
        logits = run.logits[0].float()
        logprobs = logits.log_softmax(-1)
        row[name] = float(logits[new] - logits[old])
        row[f"{name}_logprob_new"] = float(logprobs[new])
        row[f"{name}_logprob_old"] = float(logprobs[old])
        row[f"{name}_rank_new"] = rank_of(logits, new)
        row[f"{name}_answer"] = model.tokenizer.decode([int(logits.argmax())])
    return {**row, "total_effect": row["edited"] - row["base"]}
