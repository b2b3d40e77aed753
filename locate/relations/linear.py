"""Linear relational embeddings: a relation as an affine map from the subject's state to the object's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import LocateError
from locate.facts.facts import Fact
from locate.facts.relations import Relation, facts_of
from locate.names import DEFAULT_BUDGET
from locate.relations.asking import Asked
from locate.relations.linearity import RelationLinearity
from locate.relations.maps import Estimate, linear
from locate.relations.sweeping import describe, fit_maps, linearity_of
from locate.results import Result
from locate.showing import shown
from locate.sites.site import Site


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRelation(Result):
    """A relation as o ≈ β J s + b (Hernandez et al. 2024, arXiv:2308.09124).

    s is the state after ``layer`` at the subject's last token; o is the state after ``to_layer`` at the prompt's last
    token, which after the last layer is what enters the final norm. J is the mean over examples of ∂o/∂s, and b that
    of o − (∂o/∂s) s, with every example asked after the others.

    Attributes:
        data: ``jacobian`` (dims ``output, input``), ``bias``, and the examples' states ``subjects`` and ``objects``.
        layer: of s.
        to_layer: of o.
        beta: the scale of J in the map.
        rank: of the inverse.
        info: how it was made: the facts that are examples, those that are held out, how many the model knew.

    >>> linear(torch.zeros(1, model.cfg.d_model)).shape == (1, model.cfg.d_model)
    True
    """

    stored_as = "linear_relation"

    layer: int
    to_layer: int
    beta: float
    rank: int
    info: dict[str, Any]

    @classmethod
    def fit(
        cls,
        model: TransformerBridge,
        facts: Relation | Sequence[Fact],
        *,
        layer: int,
        to_layer: int | None = None,
        n: int = 8,
        beta: float = 2.25,
        rank: int | None = None,
        knows: bool = True,
        seed: int = 0,
        budget: int = DEFAULT_BUDGET,
        progress: bool = True,
    ) -> "LinearRelation":
        """Fit the map to ``n`` examples, chosen by chance and of as many objects as there are.

        Args:
            model: a raw-mode bridge.
            facts: of one relation; those that are no examples are held out, and tried by ``test``.
            layer: after which the subject's state is taken.
            to_layer: after which the object's state is; by default the last.
            n: how many examples.
            beta: the scale of the Jacobian in the map; the published one is that of GPT-J.
            rank: of the inverse; by default 100, or the width of the model's states if less.
            knows: leave out subjects of which the model does not say the object's first token after ``n`` examples.
            seed: of the choice.
            budget: the most tokens that one pass of the model holds at a time.
            progress: whether to show a bar on anything longer than a second.

        Raises:
            FactError: the facts are of several relations, or too few are usable.
            SiteError: a layer that the model does not have, or that is not below ``to_layer``.
            ModelError: the architecture cannot be resumed.
            LocateError: a rank above the width of the model's states, or a scale that is not positive.

        >>> found = locate.LinearRelation.fit(model, capitals, layer=5, n=3, knows=False, progress=False)
        >>> found.info["given"], len(found.info["examples"]), len(found.info["held_out"])
        (11, 3, 8)
        """
        fitted = fit_maps(
            model, facts, [layer], to_layer, n=n, beta=beta, rank=rank, knows=knows, seed=seed, budget=budget,
            progress=progress,
        )  # fmt: skip
        found = fitted.estimates[layer]
        data = xr.Dataset({
            "jacobian": (("output", "input"), found.jacobian.numpy()), "bias": ("output", found.bias.numpy()),
            "subjects": (("example", "input"), found.subjects.numpy()),
            "objects": (("example", "output"), found.objects.numpy()),
        })  # fmt: skip
        return cls(
            data=data, layer=layer, to_layer=fitted.to_layer, beta=float(beta), rank=fitted.rank,
            info=describe(model, fitted.parted),
        )  # fmt: skip

    def __call__(self, subjects: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The objects' states that subjects' states lead to."""
        return linear(self.estimate, self.beta)(subjects.to(self.estimate.bias))

    def shift(
        self, objects: Float[Tensor, "row d_model"], wanted: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """What to add to subjects' states so that their objects' states become others: J⁺ (o′ − o).

        J⁺ is the pseudo-inverse of the part of J that its ``rank`` largest singular values make up.

        >>> state = torch.zeros(1, model.cfg.d_model)
        >>> float(linear.shift(state, state).norm())
        0.0
        """
        return (wanted - objects).to(self.estimate.bias) @ self.estimate.inverse(self.rank).T

    def test(
        self,
        model: TransformerBridge,
        facts: Relation | Sequence[Fact] | None = None,
        *,
        seed: int = 0,
        budget: int = DEFAULT_BUDGET,
        progress: bool = True,
    ) -> RelationLinearity:
        """Faithfulness and causality on subjects that the map was not fitted to, with simpler maps and edits beside.

        Args:
            model: that it was fitted on.
            facts: to try it on; by default those that were held out.
            seed: of which other subject each is edited to.
            budget: the most tokens that one pass of the model holds at a time.
            progress: whether to show a bar on anything longer than a second.

        Raises:
            LocateError: the model's states have another width, or it has not that many layers.

        >>> tried = linear.test(model, progress=False)
        >>> tried.faithfulness.dims
        ('layer', 'map')
        """
        width = self.data.sizes["input"]
        if width != model.cfg.d_model or self.to_layer >= model.cfg.n_layers:
            raise LocateError(
                f"This relation leads to layer {self.to_layer}, from states of width {width}; the model has "
                f"{model.cfg.n_layers} layers with states of width {model.cfg.d_model}. Fit it to this model."
            )
        examples = [Fact(**one) for one in self.info["examples"]]
        tried = facts_of([Fact(**one) for one in self.info["held_out"]] if facts is None else facts)
        return linearity_of(
            model, Asked.of(model, tried, examples), {self.layer: self.estimate}, self.to_layer, beta=self.beta,
            rank=self.rank, seed=seed, budget=budget, progress=progress, about=self.info,
        )  # fmt: skip

    def best(self) -> Site:
        """The state that it reads, at the subject's last token.

        >>> linear.best().layer == linear.layer
        True
        """
        return Site("resid", layer=self.layer)

    def _on(self) -> str:
        return f"{self.info['relation']}, {len(self.info['examples'])} examples, {len(self.info['held_out'])} held out"

    def _found(self) -> str:
        return f"layer {self.layer} → {self.to_layer}, β {shown(self.beta)}, rank {self.rank}"

    def _rows(self) -> pd.DataFrame:
        """The examples."""
        return pd.DataFrame(self.info["examples"], columns=["subject", "target"])

    @property
    def estimate(self) -> Estimate:
        """J, b and the examples' states as tensors."""
        names = ("jacobian", "bias", "subjects", "objects")
        return Estimate(**{name: torch.from_numpy(self.data[name].values) for name in names})


def load_linear_relation(path: str | Path) -> LinearRelation:
    """Read a relation that was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> locate.load_linear_relation(linear.save("capitals.nc")).layer == linear.layer
    True
    """
    return LinearRelation.load(path)
