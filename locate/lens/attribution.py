"""Direct logit attribution: what each part of a model adds to an answer's logit, or to that of one over another's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.bootstrap import mean_interval
from locate.engine import DEFAULT_BUDGET, FrozenRun, freeze
from locate.engine.freezing import LOGIT_TOLERANCE
from locate.errors import ModelError, SiteError
from locate.lens.asking import Answers, Asked, Prompts, asked_of
from locate.lens.parts import KINDS, By, check_by, joined, part_name, part_site, parts, read_at
from locate.model.running import running
from locate.results import Result
from locate.showing import spread
from locate.sites.final import Readout
from locate.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitAttribution(Result):
    """What each part of a model adds to logit(answer) − logit(other), or to logit(answer), prompt by prompt.

    Attributes:
        data: ``contribution`` (dims ``fact, part``), which sums over parts to ``logit`` (dim ``fact``), the model's own
            logit or difference; ``factor`` (dim ``fact``), by which a scale or cap of logits has multiplied all
            contributions; of each part its ``kind``, ``layer`` (−1 for what is in none) and ``unit``, its head or
            neuron (−1 for what is none).
        by: what is told apart: ``component``, ``head``, ``neuron`` or ``layer``.
        info: how it was made.

    >>> found = locate.logit_attribution(model, fact, by="head", progress=False)
    >>> bool(abs(found.sum - found.logit).max() < 1e-4)
    True
    """

    stored_as = "logit_attribution"
    figures: ClassVar[Mapping[str, str]] = {
        "plot": "locate.lens.attribution_figures:plot_attribution",
        "plot_top": "locate.lens.attribution_figures:plot_attribution_top",
    }

    by: str
    info: dict[str, Any]

    @property
    def contributions(self) -> xr.DataArray:
        """What each part adds; dims ``fact, part``."""
        return self.data["contribution"]

    @property
    def logit(self) -> xr.DataArray:
        """The model's own logit of the answer, or difference of the two; dim ``fact``."""
        return self.data["logit"]

    @property
    def sum(self) -> xr.DataArray:
        """What all parts add up to; dim ``fact``."""
        return self.contributions.sum("part")

    def of(self, kind: str) -> xr.DataArray:
        """The mean over facts of one kind of part; dim ``layer``, and ``head`` or ``neuron`` where there are several.

        Raises:
            SiteError: this attribution has no such parts.

        >>> locate.logit_attribution(model, fact, by="head", progress=False).of("head").dims
        ('layer', 'head')
        """
        table = self._parts().assign(contribution=self.contributions.mean("fact").values)
        own = table[table["kind"] == kind]
        if own.empty:
            raise SiteError(f"An attribution by {self.by} has {', '.join(dict.fromkeys(table['kind']))}, not {kind!r}.")
        unit = KINDS[kind].unit
        found = own.set_index(["layer", "unit"] if unit else "layer")["contribution"].to_xarray()
        return found.rename({"unit": unit} if unit else {})

    def summary(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """The mean contribution of each part over facts, with a bootstrap interval (missing for a single one).

        >>> list(locate.logit_attribution(model, fact, by="layer", progress=False).summary()["name"][:3])
        ['embed', 'l0', 'l1']
        """
        mean, low, high = mean_interval(self.contributions.values, confidence=confidence, seed=seed)
        return self._parts().assign(contribution=mean, low=low, high=high)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The ``n`` parts of the largest mean contributions, either way.

        >>> len(locate.logit_attribution(model, fact, by="neuron", progress=False).top(5))
        5
        """
        return self.summary().sort_values("contribution", ascending=False, key=abs, ignore_index=True).head(n)

    def best(self) -> Site:
        """The site that writes most of the answer: of the largest mean contribution, embedding and biases left out.

        >>> locate.logit_attribution(model, fact, by="head", progress=False).best().layer < model.cfg.n_layers
        True
        """
        mean = self.contributions.mean("fact").values
        for index in np.argsort(-mean, kind="stable"):
            kind, layer, unit = (self.data[name].values[index] for name in ("kind", "layer", "unit"))
            if (site := part_site(str(kind), int(layer), int(unit))) is not None:
                return site
        raise SiteError("This attribution has no part that is a site.")

    def _found(self) -> str:
        other = f" − logit({self.info['others'][0].strip()})" if self.info["others"][0] else ""
        mean, low, high = (float(one) for one in mean_interval(self.logit.values))
        return f"logit({self.info['answers'][0].strip()}){other} {spread(mean, low, high)}, by {self.by}"

    def plot(self, **options: Any) -> "Figure":
        """A map of heads and MLPs, or lines over layers; see ``locate.plots.plot_attribution``."""
        return self.draw(**options)

    def plot_top(self, **options: Any) -> "Figure":
        """Bars of the parts that add most; see ``locate.plots.plot_attribution_top``."""
        return self.draw("plot_top", **options)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each fact and part.

        >>> table = locate.logit_attribution(model, fact, progress=False).to_dataframe()
        >>> list(table.columns)
        ['name', 'kind', 'layer', 'unit', 'contribution', 'fact']
        """
        own, values = self._parts(), self.contributions.values
        each = [
            own.assign(contribution=one).assign(fact=str(fact))
            for fact, one in zip(self.data["fact"].values, values, strict=True)
        ]
        return pd.concat(each, ignore_index=True)

    def _parts(self) -> pd.DataFrame:
        own = {name: self.data[name].values.tolist() for name in ("kind", "layer", "unit")}
        return pd.DataFrame({"name": list(map(part_name, *own.values())), **own})


def load_attribution(path: str | Path) -> LogitAttribution:
    """Read an attribution that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> found = locate.logit_attribution(model, fact, progress=False)
    >>> locate.load_attribution(found.save("attribution.nc")).by
    'component'
    """
    return LogitAttribution.load(path)


def logit_attribution(
    model: TransformerBridge,
    prompts: Prompts,
    answers: Answers | Sequence[Answers] | None = None,
    *,
    by: By | str = "component",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> LogitAttribution:
    """Tell apart what each part of a model adds to an answer's logit at a prompt's last position.

    The final stream is a sum, and with the final norm's scale held at what it is in that run it reaches the logits by
    a linear map, so that all contributions together are the model's own logit difference. Heads and neurons pass a norm
    that stands between them and the stream with the scale that it has there, and the multiplier that a block may put on
    what it adds. Where logits are scaled or capped, all contributions of a prompt are multiplied by one ``factor``:
    the difference over what it was before. Divided by it they are those before the cap.

    Args:
        model: a raw-mode bridge.
        prompts: a fact, a text or token ids, or several; or paired prompts (``locate.tasks``), whose clean ones are
            asked.
        answers: a text (its first token counts) or a token's id for logit(answer), a pair ``(answer, other)`` for
            logit(answer) − logit(other); or a list with one of these for each prompt. By default a fact's ``target``
            and, where it has one, ``target_new``, of pairs both targets, and of a text the model's own first answer.
            What two answers begin with joins the prompt.
        by: ``"component"`` tells apart the embedding, each layer's attention and each layer's MLP (of a mixture of
            experts their sum, as one part); ``"head"`` each head, attention's biases, and MLPs; ``"neuron"`` attention,
            each neuron, and the MLP's biases; ``"layer"`` all that a layer changes as one.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no prompts, answers that do not fit them, or that no token tells apart.
        LocateError: there is no such way to tell parts apart.
        ModelError: the model's stream cannot be told apart so, or its parts do not sum to its logits.

    >>> found = locate.logit_attribution(model, fact, ("Paris", "Rome"))
    >>> found.contributions.dims
    ('fact', 'part')
    """
    check_by(model, by)
    asked, names = asked_of(model, prompts, answers), read_at(model, by)
    rows, spelled = [], []
    for one in tqdm(asked, "logit attribution", disable=not progress, delay=1):
        run = freeze(model, one.prompt.tokens[None], keep=names, budget=budget)
        with running(model), run.weights.entered():
            rows.append(_attributed(run, one, by, rows[0].readout if rows else None))
        spelled.append(rows[-1].asked.spelled(model))
    first = rows[0]
    data = xr.Dataset(
        {
            "contribution": (("fact", "part"), np.stack([one.values for one in rows])),
            "logit": ("fact", [one.logit for one in rows]), "factor": ("fact", [one.factor for one in rows]),
        },
        coords={
            "fact": [one.prompt.text for one in asked], "kind": ("part", first.kinds), "layer": ("part", first.layers),
            "unit": ("part", first.units),
        },
    )  # fmt: skip
    info = {
        "model": str(model.cfg.model_name),
        "answers": [one for one, _ in spelled],
        "others": [b for _, b in spelled],
    }
    return LogitAttribution(data=data, by=by, info=info)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """One prompt's contributions."""

    asked: Asked
    readout: Readout
    kinds: np.ndarray
    layers: np.ndarray
    units: np.ndarray
    values: np.ndarray
    logit: float
    factor: float


def _attributed(run: FrozenRun, asked: Asked, by: str, like: Readout | None) -> _Row:
    logits = run.logits[0].double()
    answer = int(logits.argmax()) if asked.answer is None else asked.answer
    logit = float(logits[answer] - (0 if asked.other is None else logits[asked.other]))
    final = run.residuals[-1][0, -1]
    readout = Readout.of(run.model, final, run.logits[0], like)
    read = readout.towards(final, answer, asked.other)
    kinds, layers, units, values = joined(list(parts(run, 0, by, read.direction)))
    values = np.append(values * read.factor, read.bias)
    _check(run, float(values.sum()), logit)
    return _Row(
        asked=Asked(prompt=asked.prompt, answer=answer, other=asked.other), readout=readout,
        kinds=np.append(kinds, "bias"), layers=np.append(layers, -1), units=np.append(units, -1), values=values,
        logit=logit, factor=read.factor,
    )  # fmt: skip


def _check(run: FrozenRun, total: float, logit: float) -> None:
    """Whether the parts are all that there is."""
    tolerance = LOGIT_TOLERANCE.get(run.logits.dtype, 1e-3) * float(run.logits[0].float().std())
    if not abs(total - logit) <= tolerance:  # also for NaN
        raise ModelError(
            f"The parts of {type(run.model.original_model).__name__} sum to {total:.6g}, and its own logits give "
            f"{logit:.6g}: something else reaches them than the final norm makes of what layers add. Nothing is "
            "attributed. Use another model, or patch sites instead (locate.patch)."
        )
