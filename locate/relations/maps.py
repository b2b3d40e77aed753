"""What a few examples say of the way from a subject's state to its object's: an affine map, and simpler ones beside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import freeze
from locate.engine.jacobians import jacobians
from locate.errors import LocateError, NumericsError, SiteError
from locate.facts.facts import Fact
from locate.names import DEFAULT_BUDGET
from locate.relations.asking import Asked


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """Of the way from one layer's subject states to object states: the first-order terms, and the states themselves.

    Attributes:
        jacobian: J, the mean over examples of ∂o/∂s.
        bias: b, their mean of o − (∂o/∂s) s.
        subjects: each example's s.
        objects: each example's o.
    """

    jacobian: Float[Tensor, "output d_model"]
    bias: Float[Tensor, "output"]
    subjects: Float[Tensor, "example d_model"]
    objects: Float[Tensor, "example output"]

    def inverse(self, rank: int) -> Float[Tensor, "d_model output"]:
        """J⁺ of a rank: the pseudo-inverse of the part of J that its largest singular values make up.

        >>> one = torch.diag(torch.tensor([4.0, 2.0, 0.0]))
        >>> Estimate(jacobian=one, bias=one[0], subjects=one, objects=one).inverse(2).diag().tolist()
        [0.25, 0.5, 0.0]
        """
        left, values, right = torch.linalg.svd(self.jacobian, full_matrices=False)
        smallest = values[0] * max(self.jacobian.shape) * torch.finfo(values.dtype).eps
        kept = int((values[:rank] > smallest).sum())
        return (right[:kept].T / values[:kept]) @ left[:, :kept].T


Map = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row output"]]


def linear(estimate: Estimate, beta: float) -> Map:
    """β J s + b."""
    return lambda states: beta * states @ estimate.jacobian.T + estimate.bias


def least_squares(estimate: Estimate, _: float) -> Map:
    """The affine map of the least error on the examples; where several have none, that of the smallest norm."""
    subject, output = estimate.subjects.mean(0), estimate.objects.mean(0)
    spread = torch.linalg.pinv(estimate.subjects - subject)
    return lambda states: (states - subject) @ spread @ (estimate.objects - output) + output


def translation(estimate: Estimate, _: float) -> Map:
    """The mean of o − s added."""
    return lambda states: states + (estimate.objects - estimate.subjects).mean(0)


def identity(_: Estimate, __: float) -> Map:
    """Nothing added: what a logit lens reads there."""
    return lambda states: states


MAPS: Mapping[str, Callable[[Estimate, float], Map]] = {
    "linear relation": linear, "least squares": least_squares, "translation": translation, "identity": identity,
}  # fmt: skip


def estimate(
    model: TransformerBridge, examples: Sequence[Fact], layers: Sequence[int], to_layer: int, *,
    budget: int = DEFAULT_BUDGET, progress: bool = True,
) -> dict[int, Estimate]:  # fmt: skip
    """Of several layers from the same passes, with every example asked after the others.

    Raises:
        ModelError: the architecture cannot be resumed.
        NumericsError: a Jacobian is not finite.

    >>> found = estimate(model, facts[:2], [2, 3], 5, progress=False)
    >>> found[3].jacobian.shape == (model.cfg.d_model, model.cfg.d_model)
    True
    """
    asked, width = Asked.of(model, examples, examples), int(model.cfg.d_model)
    slopes = torch.zeros(len(layers), width, width, dtype=torch.float32)
    biases, subjects, objects = [], [], []
    with tqdm(total=len(examples) * width, desc="Jacobians", disable=not progress, delay=1) as bar:
        for prompt in asked.prompts:
            run, place = freeze(model, prompt.tokens[None], budget=budget), prompt.last_subject_position
            entered = [layer + 1 for layer in layers]
            slope = jacobians(run, place, entered, to_layer=to_layer + 1, done=bar.update)
            if not bool(slope.isfinite().all()):
                raise NumericsError(
                    f"The Jacobian at {prompt.text[-60:]!r} is not finite. Use a model in float32, or higher layers."
                )
            states = torch.stack([run.residuals[layer][0, place].to(slope) for layer in entered])
            output = run.residuals[to_layer + 1][0, -1].to(slope)
            slopes = slopes.to(slope).add_(slope, alpha=1 / len(examples))
            biases.append(output - torch.einsum("lod, ld -> lo", slope, states))
            subjects.append(states)
            objects.append(output)
    means, own, outputs = torch.stack(biases).mean(0), torch.stack(subjects, dim=1), torch.stack(objects)
    return {
        layer: Estimate(jacobian=slopes[place], bias=means[place], subjects=own[place], objects=outputs)
        for place, layer in enumerate(layers)
    }


def check_layers(model: TransformerBridge, layers: Sequence[int], to_layer: int | None) -> int:
    """The layer that the maps lead to.

    Raises:
        SiteError: a layer that the model does not have, or one that is not above those that it is reached from.

    >>> check_layers(model, [2, 3], None) == model.cfg.n_layers - 1
    True
    """
    last = int(model.cfg.n_layers) - 1
    wanted = last if to_layer is None else to_layer
    if not 0 <= wanted <= last:
        raise SiteError(f"to_layer: the model has layers 0 to {last}, found {to_layer}.")
    if not layers or not all(0 <= layer < wanted for layer in layers) or len(set(layers)) < len(layers):
        raise SiteError(
            f"A linear relation leads from the state after a layer to that after a later one, here layer {wanted}: "
            f"give layers from 0 to {wanted - 1}, each once; found {list(layers)}."
        )
    return wanted


def check_form(model: TransformerBridge, beta: float, rank: int | None) -> int:
    """The rank of the inverse: the published 100 where the model is as wide, unless another is given.

    Raises:
        LocateError: a rank that the model's states do not have, or a scale that is not positive.

    >>> check_form(model, 2.25, None) == min(100, model.cfg.d_model)
    True
    """
    width = int(model.cfg.d_model)
    if rank is not None and not 1 <= rank <= width:
        raise LocateError(f"rank: from 1 to the width of the model's states, {width}; found {rank}.")
    if not beta > 0:
        raise LocateError(f"beta: must be positive, found {beta}; it scales what the Jacobian says.")
    return min(100, width) if rank is None else rank
