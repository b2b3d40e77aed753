"""The two models that a change lies between, as weights of one model, and their runs of the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change, check_in_weights, within, without
from edit.changes.directions import Directions
from locate.contrast.contrast import Contrast
from locate.engine import FrozenRun, freeze, refreeze
from locate.errors import FactError, UpdateError
from locate.facts.prompts import Prompt, encode_text
from locate.facts.questions import Questions
from locate.model.held import HeldWeights
from locate.model.weights import edited_layers, hf_parameters
from locate.names import DEFAULT_BUDGET


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """Base and edited model, as weights that one model computes with in turn. Nothing is copied.

    Attributes:
        model: who computes.
        before: the weights of the base model.
        after: those of the edited one.
        changed: by original Hugging Face name, what parameters that differ are in the two.
        layers: the blocks that hold any of those.
        described: what the change is, for records.
        other: the edited model, where it is one of its own.
        change: where it is that.

    >>> sides = Sides.of(model, update)
    >>> sides.layers, list(sides.changed)
    ((4,), ['model.layers.4.mlp.down_proj.weight'])
    """

    model: TransformerBridge
    before: HeldWeights
    after: HeldWeights
    changed: dict[str, tuple[Tensor, Tensor]]
    layers: tuple[int, ...]
    described: dict[str, Any]
    other: TransformerBridge | None = field(default=None, repr=False)
    change: Change | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: TransformerBridge, change: Change | TransformerBridge) -> "Sides":
        """The sides of a change of the model, applied or not; or the model and another one of its build.

        Raises:
            UpdateError: the change does not fit the model, changes no weights, or leaves all as they are.
            ModelError: the other model is of another build.
        """
        if isinstance(change, Change):
            check_in_weights(change, "Propagation")
            with without(model, change):
                before = HeldWeights.of(model)
            with within(model, change):
                after = HeldWeights.of(model)
            described, other = {"method": change.method, "info": dict(change.info)}, None
        else:
            before, after = HeldWeights.of(model), HeldWeights.of_other(model, change)
            described, other = {"method": "another model", "info": {"edited": str(change.cfg.model_name)}}, change
        with before.entered():
            ours = {name: one.data for name, one in hf_parameters(model).items()}
        with after.entered():
            theirs = {name: one.data for name, one in hf_parameters(model).items()}
        changed = {name: (one, theirs[name]) for name, one in ours.items() if not _same(one, theirs[name])}
        if not changed:
            raise UpdateError(
                f"The change by {described['method']} leaves all weights as they are, so nothing of it can travel. "
                "Give a change that changes the model, or another model than this one."
            )
        layers = tuple(edited_layers(model, list(changed)))
        return cls(
            model=model, before=before, after=after, changed=changed, layers=layers, described=described, other=other,
            change=change if isinstance(change, Change) else None,
        )  # fmt: skip

    def directions(self, name: str) -> Directions:
        """The singular directions of what a parameter is changed by.

        >>> len(Sides.of(model, update).directions("model.layers.4.mlp.down_proj.weight"))
        1
        """
        factors = None if self.change is None else self.change.factors(name)
        return Directions.between(*self.changed[name], factors=factors)

    def check_tokens(self, text: str) -> None:
        """Whether both models' tokenizers spell a text in the same tokens.

        Raises:
            FactError: they do not.
        """
        if self.other is None:
            return
        ours, theirs = (encode_text(one, text).tolist() for one in (self.model, self.other))
        if ours != theirs:
            raise FactError(
                f"The two models spell {text!r} in other tokens ({len(ours)} and {len(theirs)}, or others of them), so "
                "states of one have no place in the other. Give models that share a tokenizer."
            )

    def runs(
        self, tokens: Int[Tensor, "row position"], *, keep: Sequence[str] = (), budget: int = DEFAULT_BUDGET
    ) -> tuple[FrozenRun, FrozenRun]:
        """The base model's run and the edited one's, which share what comes before the first difference.

        >>> base, edited = Sides.of(model, update).runs(locate.encode_fact(model, fact).tokens[None])
        >>> edited.residuals[4] is base.residuals[4]
        True
        """
        with self.before.entered():
            base = freeze(self.model, tokens, keep=keep, budget=budget)
        with self.after.entered():
            return base, refreeze(base)

    def contrast(
        self, prompt: Prompt, new: int, old: str, *, keep: Sequence[str] = (), budget: int = DEFAULT_BUDGET
    ) -> Contrast:
        """Edited (the target) against base (the source) on a prompt; usually asked for the logit of o* over o.

        Args:
            prompt: with what both answers begin with behind it.
            new: the first token of o* that tells it from o.
            old: the answer o.
            keep: hook points whose states both keep.
            budget: the most tokens in one pass.

        >>> from locate.facts.prompts import encode_target
        >>> prompt = locate.encode_fact(model, fact)
        >>> rome = int(encode_target(model, prompt, "Rome")[0])
        >>> edited, base = Sides.of(model, update).contrast(prompt, rome, "Paris").ends()
        >>> bool(edited != base)
        True
        """
        base, edited = self.runs(prompt.tokens[None], keep=keep, budget=budget)
        questions = Questions(
            model=self.model, prompts=(prompt,), answers=torch.tensor([new]), targets_new=(old,),
            clean=edited.logits,
        )  # fmt: skip
        info = {"corruption": "the model before the edit", "method": self.described["method"]}
        return replace(Contrast.between(edited, base, questions), info=info)


Changed = Change | TransformerBridge | Sides


def sides_of(model: TransformerBridge, change: Changed) -> Sides:
    """The sides of what users give: a change, another model of this one's build, or sides that were made before.

    Raises:
        UpdateError: as ``Sides.of``; or the sides are of another model.
        ModelError: likewise.

    >>> sides_of(model, update).layers
    (4,)
    """
    if not isinstance(change, Sides):
        return Sides.of(model, change)
    if change.model is not model:
        raise UpdateError("These sides are of another model than the one given; make them of this one by Sides.of.")
    return change


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or bool((one == other).all())
