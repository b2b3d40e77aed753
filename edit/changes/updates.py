"""Weight updates: low-rank changes of named parameters that can be applied, reverted and saved."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change
from edit.changes.lowrank import LowRank, deltas_in, factors_of
from locate.errors import DataError, UpdateError, counted, suggest
from locate.model.copies import copied
from locate.model.held import exchange
from locate.model.weights import fingerprint, hf_parameters
from locate.showing import Shown, first_of, shown
from locate.store.tensors import Kind, read_tensors, write_tensors

UPDATE = Kind(name="update", noun="a weight update", version=1, remedy="save the update again")


class _Kept(NamedTuple):
    """What is remembered of a parameter while an update is applied to it: the values it had, and a hash of the new."""

    original: Tensor
    edited: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WeightUpdate(Shown, Change):
    """A change of some of a model's parameters, as low-rank factors in the orientation they are stored in.

    ``before`` holds the fingerprint of each parameter that the update was made for; ``info`` what a
    reader of the file wants to know (hyperparameters, requests, losses), as plain JSON values.

    Raises:
        UpdateError: no deltas, fingerprints of other parameters, or an ``info`` that JSON cannot hold.

    >>> delta = LowRank(left=torch.ones(model.cfg.d_model, 1), right=torch.zeros(1, model.cfg.d_mlp))
    >>> update = WeightUpdate.make(model, {"model.layers.5.mlp.down_proj.weight": delta}, method="none")
    >>> update.rank, update.parameters
    (1, ['model.layers.5.mlp.down_proj.weight'])
    >>> with update.applied(model):
    ...     update.is_applied(model)
    True
    """

    deltas: Mapping[str, LowRank]
    before: Mapping[str, str]
    method: str
    info: Mapping[str, Any]
    _kept: WeakKeyDictionary[TransformerBridge, dict[str, _Kept]] = field(init=False, default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        if not self.deltas:
            raise UpdateError("A weight update needs at least one delta, found none.")
        if set(self.deltas) != set(self.before):
            odd = ", ".join(sorted(set(self.deltas) ^ set(self.before)))
            raise UpdateError(f"Deltas and fingerprints must name the same parameters; they differ in {odd}.")
        try:
            info = json.loads(json.dumps(self.info, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UpdateError(f"The info of an update must be plain JSON values: {error}.") from error
        object.__setattr__(self, "info", info)
        object.__setattr__(self, "deltas", dict(self.deltas))
        object.__setattr__(self, "before", dict(self.before))

    @classmethod
    def make(
        cls,
        model: TransformerBridge,
        deltas: Mapping[str, LowRank],
        *,
        method: str,
        info: Mapping[str, Any] | None = None,
    ) -> "WeightUpdate":
        """An update for the model as it is now.

        Raises:
            UpdateError: the model has no such parameter, or one of another shape.
        """
        parameters = _find(model, deltas)
        before = {name: fingerprint(parameter) for name, parameter in parameters.items()}
        return cls(deltas=deltas, before=before, method=method, info=info or {})

    @property
    def parameters(self) -> list[str]:
        """The original Hugging Face names of the parameters that change."""
        return list(self.deltas)

    @property
    def rank(self) -> int:
        """The largest rank among the deltas."""
        return max(delta.rank for delta in self.deltas.values())

    def delta(self, name: str) -> Float[Tensor, "out in"]:
        """What is added to a parameter, as a full matrix.

        Raises:
            UpdateError: the update does not change a parameter of that name.
        """
        if name not in self.deltas:
            raise UpdateError(f"This update does not change {name!r}. {suggest(name, self.deltas)}")
        return self.deltas[name].dense()

    def factors(self, name: str) -> LowRank | None:
        """See ``Change.factors``."""
        return self.deltas.get(name)

    def norm(self, name: str) -> float:
        """The Frobenius norm of what is added to a parameter.

        Raises:
            UpdateError: the update does not change a parameter of that name.
        """
        return self.delta(name).norm().item()

    def merge(self, *others: "WeightUpdate") -> "WeightUpdate":
        """The sum of updates that were each made for the same weights, as one update.

        Edits that were found independently interfere where their keys are alike; a session, which makes each batch
        with the earlier ones in place, does not have that.

        Raises:
            UpdateError: two were made for different values of a parameter, as an edit made after another one is.

        >>> update.merge(update).rank == 2 * update.rank
        True
        """
        deltas, before = dict(self.deltas), dict(self.before)
        for other in others:
            for name, delta in other.deltas.items():
                if before.setdefault(name, other.before[name]) != other.before[name]:
                    raise UpdateError(
                        f"{other._called} was made for other values of {name} than {self._called}, so their changes "
                        "do not add up. Fit all of them on the same model, or edit one after the other in an "
                        "EditSession."
                    )
                deltas[name] = deltas[name].joined(delta) if name in deltas else delta
        everything = (self, *others)
        return WeightUpdate(
            deltas=deltas, before=before, method=" + ".join(dict.fromkeys(one.method for one in everything)),
            info={"merged": [{"method": one.method, **one.info} for one in everything]},
        )  # fmt: skip

    def is_applied(self, model: TransformerBridge) -> bool:
        """Whether this update is in the model's weights."""
        return model in self._kept

    @torch.inference_mode(False)  # values made in inference mode could not be held by runs
    @torch.no_grad()
    def apply(self, model: TransformerBridge) -> None:
        """Add the deltas to the model's parameters: all of them, or none.

        Each parameter object stays and points to new values from then on, so that runs frozen before still have theirs.

        Raises:
            UpdateError: already applied, made for other weights than the model has now, or not finite.
        """
        if self.is_applied(model):
            raise UpdateError(f"{self._called} is already applied to this model. Revert it first.")
        parameters = _find(model, self.deltas)
        for name, parameter in parameters.items():
            if fingerprint(parameter) != self.before[name]:
                raise UpdateError(
                    f"{name} is not what {self._called} was made for: its values or dtype ({parameter.dtype}) "
                    "differ. Either this is another model, or another edit came in between: load the model "
                    "that the update was fitted on, with the same dtype, or revert the other edit first."
                )
        _check_finite(self.deltas)
        edited = {name: _added(parameter, self.deltas[name], name) for name, parameter in parameters.items()}
        kept = {name: _Kept(parameters[name].data, fingerprint(edited[name])) for name in edited}
        try:
            exchange(model, [(parameters[name], edited[name]) for name in edited])
            self._kept[model] = kept
        except BaseException:
            self._kept.pop(model, None)
            exchange(model, [(parameters[name], kept[name].original) for name in kept])
            raise

    @torch.inference_mode(False)
    @torch.no_grad()
    def revert(self, model: TransformerBridge) -> None:
        """Put back the parameters as they were before, bit for bit.

        Raises:
            UpdateError: not applied to this model, or the parameters were changed again since.
        """
        if not self.is_applied(model):
            raise UpdateError(f"{self._called} is not applied to this model: there is nothing to revert.")
        kept = self._kept[model]
        parameters = _find(model, self.deltas)
        for name, parameter in parameters.items():
            # The first state is also fine: an interrupted revert can be taken up again.
            if fingerprint(parameter) not in (kept[name].edited, self.before[name]):
                raise UpdateError(
                    f"{name} was changed after {self._called} was applied. Revert the later update first "
                    "(the last one applied is the first to be reverted)."
                )
        exchange(model, [(parameter, kept[name].original) for name, parameter in parameters.items()])
        del self._kept[model]

    def save(self, path: str | Path) -> Path:
        """Write the update to one safetensors file, whole or not at all.

        Raises:
            UpdateError: the file cannot be written.
        """
        described = {"method": self.method, "info": self.info, "before": self.before}
        try:
            return write_tensors(path, UPDATE, factors_of(self.deltas), described)
        except (OSError, SafetensorError) as error:
            raise UpdateError(f"The update could not be written to {path}: {error}.") from error

    @property
    def _called(self) -> str:
        """In a sentence."""
        names = self.parameters if len(self.deltas) <= 2 else f"[{len(self.deltas)} of them]"
        return f"WeightUpdate(method={self.method!r}, rank={self.rank}, parameters={names})"

    def _named(self) -> str:
        return f"{super()._named()}, {self.method}"

    def _headline(self) -> Mapping[str, str]:
        edits = edits_in(self.info)
        found = [float(one["probability"]) for one in edits if "probability" in one]
        missed = sum(bool(one.get("missed")) for one in edits)
        told = [f"P(o*) when fitted {'=' if len(found) == 1 else '≥'} {shown(min(found))}"] if found else []
        size = [counted(len(edits), "edit"), f"rank {self.rank}", counted(len(self.deltas), "parameter")]
        return {
            "on": first_of([one["request"] for one in edits if "request" in one]),
            "sizes": ", ".join([*size, f"first {self.parameters[0]}"]),
            "found": ", ".join([*told, *([f"{missed} missed"] if missed else [])]),
        }

    def _rows(self) -> pd.DataFrame:
        """The edits; without a record of any, the parameters."""
        columns = ("request", "probability", "missed", "stopped")
        if edits := [{name: one[name] for name in columns if name in one} for one in edits_in(self.info)]:
            return pd.DataFrame(edits)
        return pd.DataFrame({"parameter": self.parameters, "rank": [one.rank for one in self.deltas.values()]})

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, also one sent to another process, is a new update that is applied to no model.
        arguments = {"deltas": self.deltas, "before": self.before, "method": self.method, "info": self.info}
        return partial(WeightUpdate, **arguments), ()


def edits_in(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of single edits in that of an update, of one that was merged of several or made in batches as well.

    >>> len(edits_in(update.info))
    1
    """
    return [edit for part in info.get("merged", info.get("batches", [info])) for edit in part.get("edits", ())]


def load_update(path: str | Path) -> WeightUpdate:
    """Read an update that ``WeightUpdate.save`` wrote.

    Raises:
        UpdateError: no such file, not an update, damaged, of another format version, or not finite.

    >>> load_update(update.save(folder / "update.safetensors")).method
    'ROME'
    """
    path = Path(path)
    if not path.is_file():
        raise UpdateError(f"There is no update file {path}.")
    try:
        tensors, described = read_tensors(path, UPDATE)
        deltas = deltas_in(tensors, described["before"])
        _check_finite(deltas)
        return WeightUpdate(deltas=deltas, **{name: described[name] for name in ("before", "method", "info")})
    except DataError as error:
        raise UpdateError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise UpdateError(
            f"{path} is a safetensors file but not {UPDATE.noun}: its description lacks {error}. {UPDATE.remedy}."
        ) from error


def _find(model: TransformerBridge, deltas: Mapping[str, LowRank]) -> dict[str, nn.Parameter]:
    """The live parameters that the deltas name, which must have the deltas' shapes."""
    known = hf_parameters(model)
    unread = {one.name for one in copied(model)}
    for name, delta in deltas.items():
        if name in unread:
            raise UpdateError(
                f"The model does not compute with {name}, but with copies of its query, key and value, so a change of "
                "it would do nothing. Change model.blocks[layer].attn.q, .k or .v in place; an export writes it back."
            )
        if name not in known:
            raise UpdateError(f"The model has no parameter {name!r}. {suggest(name, known)}")
        if tuple(known[name].shape) != delta.shape:
            raise UpdateError(
                f"The change of {name} has shape {delta.shape}, but this model's parameter has shape "
                f"{tuple(known[name].shape)}. Use the model that the update was fitted on."
            )
    return {name: known[name] for name in deltas}


def _check_finite(deltas: Mapping[str, LowRank]) -> None:
    for name, delta in deltas.items():
        if not delta.is_finite():
            raise UpdateError(f"The change of {name} holds NaN or infinite values. Fit the update again.")


def _added(parameter: nn.Parameter, delta: LowRank, name: str) -> Tensor:
    # A float32 delta added to a half-precision parameter is summed in float32 and rounded once.
    edited = parameter.detach().clone().add_(delta.dense(parameter.device))
    if not edited.isfinite().all():
        raise UpdateError(
            f"With this update {name} would not be finite in {parameter.dtype}. "
            "The update is too large: fit it again with a stronger penalty, or use a wider dtype."
        )
    return edited
