"""Causal tracing: which states carry the fact from the subject to the answer."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.corruption import EMBEDDING_HOOK, GaussianNoise
from locate.engine import DEFAULT_BUDGET, freeze
from locate.errors import DataError, LocateError, SiteError
from locate.facts import Fact
from locate.prompts import encode_fact, encode_target, rank_of, token_strings
from locate.sites import KINDS, Kind, Site, check_kind
from locate.sweep import kept_hooks, sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMAT = 1
_WINDOW = 10
# Below this, restoring a state can show nothing: there was hardly any effect to undo.
_SMALL_EFFECT = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The result of a causal trace.

    Attributes:
        scores: restored probability of the answer, averaged over noise samples after the softmax;
            dims ``kind, position, layer``.
        standard_error: of each score over the noise samples.
        clean: probability of the answer in the clean run.
        corrupted: the same with the subject corrupted, averaged over noise samples.
        answer: text of the answer token.
        answer_rank: its rank in the clean run (1 is the model's first answer).
        tokens: text of the prompt's tokens.
        subject_span: half-open range of the subject's token positions.
        info: how the trace was made.

    >>> trace = locate.causal_trace(model, fact)                                     # doctest: +SKIP
    >>> trace.answer, trace.answer_rank
    (' Paris', 1)
    """

    scores: xr.DataArray
    standard_error: xr.DataArray
    clean: float
    corrupted: float
    answer: str
    answer_rank: int
    tokens: tuple[str, ...]
    subject_span: tuple[int, int]
    info: dict[str, Any]

    @property
    def total_effect(self) -> float:
        """How much probability the corruption took away: TE = P − P*."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> xr.DataArray:
        """How much of it each restored state brings back: IE = P*_restored − P*."""
        return self.scores - self.corrupted

    def best(self, kind: Kind = "mlp", *, within: str = "subject") -> Site:
        """The site of the highest score.

        Args:
            kind: ``resid``, ``mlp`` or ``attn``.
            within: ``"subject"`` for the subject's tokens (where facts are recalled, and where an
                edit goes), ``"last"`` for the last token, or ``"all"``. The last token's late states
                restore the answer trivially.

        >>> trace.best("mlp").kind
        'mlp'
        """
        check_kind(kind)
        if kind not in self.scores.coords["kind"].values:
            raise SiteError(f"This trace has no {kind!r} scores; it was made with kinds={self.info['kinds']}.")
        spans = {
            "subject": slice(*self.subject_span),
            "last": slice(len(self.tokens) - 1, None),
            "all": slice(None),
        }
        if within not in spans:
            raise SiteError(f"within must be one of {sorted(spans)}, found {within!r}.")
        table = self.scores.sel(kind=kind).isel(position=spans[within])
        where = table.argmax(dim=("position", "layer"))
        cell = table.isel(where)  # type: ignore[arg-type]
        return Site(kind, layer=int(cell["layer"]), position=int(cell["position"]))

    def to_dataframe(self) -> Any:
        """One row per site, with its kind, position, token, layer, score and indirect effect."""
        table = xr.Dataset({"score": self.scores, "standard_error": self.standard_error}).to_dataframe().reset_index()
        table["token"] = [self.tokens[position] for position in table["position"]]
        table["indirect_effect"] = table["score"] - self.corrupted
        return table

    def plot(self, **options: Any) -> "Figure":
        """Heat maps in the familiar layout; see ``locate.plots.plot_trace``."""
        from locate.plots import plot_trace

        return plot_trace(self, **options)

    def save(self, path: str | Path) -> Path:
        """Write the trace to one netCDF file, which ``load_trace`` reads back.

        >>> trace.save("t.nc").name
        't.nc'
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {
            "format": _FORMAT, "clean": self.clean, "corrupted": self.corrupted, "answer": self.answer,
            "answer_rank": self.answer_rank, "tokens": self.tokens, "subject_span": self.subject_span,
            "info": self.info,
        }  # fmt: skip
        data = xr.Dataset({"scores": self.scores, "standard_error": self.standard_error})
        data.attrs["trace"] = json.dumps(plain)
        data.to_netcdf(path, engine="netcdf4")
        return path


def load_trace(path: str | Path) -> Trace:
    """Read a trace that was saved.

    Raises:
        DataError: the file is missing or is not a saved trace.

    >>> locate.load_trace("t.nc").answer
    ' Paris'
    """
    try:
        with xr.open_dataset(path, engine="netcdf4") as data:
            data.load()
        plain = json.loads(data.attrs["trace"])
        if plain["format"] != _FORMAT:
            raise ValueError(f"it has format {plain['format']}, and this version reads format {_FORMAT}.")
        return Trace(
            scores=data["scores"], standard_error=data["standard_error"], clean=plain["clean"],
            corrupted=plain["corrupted"], answer=plain["answer"], answer_rank=plain["answer_rank"],
            tokens=tuple(plain["tokens"]), subject_span=tuple(plain["subject_span"]), info=plain["info"],
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(f"There is no trace file {str(path)!r}.") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a saved trace: {error}") from error


def causal_trace(
    model: TransformerBridge,
    fact: Fact,
    *,
    kinds: Sequence[Kind] = KINDS,
    window: int | None = None,
    corruption: GaussianNoise | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Trace:
    """Corrupt the subject, restore one state at a time, and see how much of the answer comes back.

    The method of Meng et al. 2022 (arXiv:2202.05262), section 2, exactly: every site of every kind, all
    noise samples, probabilities averaged after the softmax.

    Args:
        model: a raw-mode bridge.
        fact: what to ask; the first token of its target is the answer.
        kinds: ``resid`` (one state), ``mlp`` and ``attn`` (a window of that module's outputs).
        window: layers in a window, centred: [l − 5, l + 5) for 10, the default (or all layers of a smaller model).
        corruption: by default ``GaussianNoise(scale=3.0, samples=10, seed=1)``.
        budget: the most tokens (rows × positions) in one pass; less needs less memory.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: the subject is not in the prompt, or the target has no token.
        SiteError: an unknown kind, or a window that the model has no room for.

    >>> fact = locate.Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    >>> trace = locate.causal_trace(model, fact)
    >>> trace.scores.dims
    ('kind', 'position', 'layer')
    """
    kinds = tuple(check_kind(kind) for kind in kinds)
    if not kinds or len(set(kinds)) < len(kinds):
        raise SiteError(f"Give at least one kind of {KINDS}, each once; found {kinds}.")
    corruption = corruption or GaussianNoise()
    prompt = encode_fact(model, fact)
    answer = int(encode_target(model, prompt.text, fact.target)[0])
    n_layers, length = model.cfg.n_layers, len(prompt.tokens)
    window = min(_WINDOW, n_layers) if window is None else window
    start, end = prompt.subject_span

    clean = freeze(model, prompt.tokens[None], keep=[*kept_hooks(kinds, n_layers), EMBEDDING_HOOK], budget=budget)
    rank = rank_of(clean.logits[0], answer)
    if rank > 1:
        warnings.warn(
            f"The model does not answer {fact.text!r} with {fact.target!r}: it ranks {rank} of {model.cfg.d_vocab}. "
            "The trace shows how that token's probability comes back, not how a known fact is recalled.",
            stacklevel=2,
        )
    if not model.tokenizer.decode([answer]).strip():
        warnings.warn(
            f"The target {fact.target!r} begins with a token of white space alone, whose probability says little about "
            "the answer. Choose a fact whose target begins with a word.",
            stacklevel=2,
        )
    embeddings = clean.kept[EMBEDDING_HOOK][0, start:end]
    corrupted = freeze(
        model, prompt.tokens[None].expand(corruption.samples, -1), hooks=corruption.hooks(prompt, embeddings),
        budget=budget, checked=clean,
    )  # fmt: skip

    def probability(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row"]:
        return logits.float().softmax(-1)[:, answer]

    low = probability(corrupted.logits)
    total = float(probability(clean.logits)[0] - low.mean())
    if not np.isfinite(total):
        raise LocateError("The model's logits are not finite on this prompt; check its dtype and weights.")
    if abs(total) < _SMALL_EFFECT:
        warnings.warn(
            f"Corrupting {fact.subject!r} changes the answer's probability by only {total:.3g}, so there is hardly "
            "anything to restore and the scores mean little. Try a stronger corruption or another prompt.",
            stacklevel=2,
        )
    # Before the subject nothing is corrupted, so restoring a state there changes nothing.
    scores = low.expand(len(kinds), length, n_layers, -1).clone()
    with tqdm(total=length - start, desc="causal trace", disable=not progress, delay=1) as bar:
        scores[:, start:] = sweep(
            corrupted, clean, kinds, probability, positions=range(start, length), window=window, progress=bar
        )
    return Trace(
        scores=_labelled(scores.mean(-1), kinds),
        standard_error=_labelled(_standard_error(scores), kinds),
        clean=float(probability(clean.logits)[0]), corrupted=float(low.mean()),
        answer=model.tokenizer.decode([answer]), answer_rank=rank,
        tokens=tuple(token_strings(model, prompt.tokens)), subject_span=prompt.subject_span,
        info={
            "model": str(model.cfg.model_name), "prompt": prompt.text, "subject": fact.subject, "target": fact.target,
            "kinds": list(kinds), "window": window, "corruption": type(corruption).__name__, **vars(corruption),
        },
    )  # fmt: skip


def _standard_error(scores: Float[Tensor, "kind position layer sample"]) -> Float[Tensor, "kind position layer"]:
    samples = scores.shape[-1]
    if samples == 1:
        return torch.full_like(scores[..., 0], float("nan"))
    return scores.std(-1) / samples**0.5


def _labelled(values: Float[Tensor, "kind position layer"], kinds: Sequence[str]) -> xr.DataArray:
    _, length, n_layers = values.shape
    coords = {"kind": list(kinds), "position": np.arange(length), "layer": np.arange(n_layers)}
    return xr.DataArray(values.cpu().numpy(), coords=coords, dims=("kind", "position", "layer"))
