"""What every component adds to the residual stream in some rows of a run, and where that differs in another run."""

from collections.abc import Iterator

import torch
from einops import pack, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast
from locate.engine import FrozenRun
from locate.engine.rows import rows_of
from locate.errors import ModelError
from locate.model.weights import hf_parameters
from locate.sites.contributions import contribution_hooks, contributions
from locate.sites.graph import Graph, summed_graph
from locate.sites.inputs import check_inputs

# Of the largest state, in units of its precision: what the sum of all that is written may be off by.
_ROUNDING = 1000
# Floats of what is written in rows that are computed together, in units of what a token takes in passing.
_FLOATS = 8


def written_hooks(model: TransformerBridge) -> list[str]:
    """The hook points that both runs must keep.

    >>> len(written_hooks(model)) == 3 * model.cfg.n_layers
    True
    """
    return contribution_hooks(model, range(model.cfg.n_layers))


def tellable(model: TransformerBridge) -> Graph:
    """The graph of a model whose stream is the sum of what heads and MLPs write, and who reads it through a norm.

    Raises:
        ModelError: something else writes there as well, or is read otherwise.

    >>> tellable(model).writers[0].name
    'embed'
    """
    found = summed_graph(model, "Patch or attribute to sites instead.")
    check_inputs(model)
    return found


@torch.no_grad()
def written(run: FrozenRun, rows: Int[Tensor, "row"], first: int) -> Float[Tensor, "row position writer d_model"]:
    """What each writer of the graph adds, in its order, from a position on."""
    model = run.model
    parts = [rearrange(rows_of(run.residuals[0], rows)[:, first:], "row position d_model -> row position 1 d_model")]
    with run.weights.entered():
        for layer in range(run.n_layers):
            names = contribution_hooks(model, [layer])
            own = contributions(model, layer, {name: rows_of(run.kept[name], rows)[:, first:] for name in names})
            parts.append(own.heads)
            if own.mlp is not None:
                parts.append(rearrange(own.mlp, "row position d_model -> row position 1 d_model"))
    device = parts[-1].device
    return pack([part.to(device) for part in parts], "row position * d_model")[0]


def differences(contrast: Contrast, rows: Int[Tensor, "row"]) -> Float[Tensor, "row position writer d_model"]:
    """What each writer adds in the source, less what it adds in the target, for some of a contrast's rows."""
    own, first = contrast.rows, contrast.first
    theirs = written(contrast.source, own.source[rows], first)
    return theirs - written(contrast.target, own.target[rows], first).to(theirs)


def check_weights(contrast: Contrast, graph: Graph) -> None:
    """Whether two runs with other weights differ by what heads and MLPs write, and by nothing else.

    Both must have kept ``written_hooks``. Then the source's answer is what the target's weights make of what is written
    in the source, so that with every edge cut it is the source's.

    Raises:
        ModelError: the final norm or the unembedding has other weights, or what is added beside heads and MLPs differs.
    """
    target, source, first = contrast.target, contrast.source, contrast.first
    changed = {id(one) for one in target.weights.differing(source.weights)}
    if not changed:
        return
    model = target.model
    read = {id(one) for part in (model.ln_final, model.unembed) for one in part.parameters()}
    if odd := [name for name, one in hf_parameters(model).items() if id(one) in changed & read]:
        raise ModelError(
            f"{odd[0]} differs between the two runs, and the logits are read with it: what it changes is carried by no "
            "edge. Take runs that differ below the final norm alone."
        )
    for group in groups(contrast, graph):
        rows = torch.cat(group)
        moved, own = differences(contrast, rows), contrast.rows
        for layer in range(target.n_layers):
            written = moved[:, :, [i for i, one in enumerate(graph.writers) if one.layer <= layer]].sum(2)
            have = rows_of(target.residuals[layer + 1], own.target[rows])[:, first:]
            expected = rows_of(source.residuals[layer + 1], own.source[rows])[:, first:].to(have) - have
            error = float((written.to(have) - expected).abs().max())
            if not error <= _ROUNDING * torch.finfo(have.dtype).eps * float(have.abs().max()):
                raise ModelError(
                    f"What layer {layer} adds to the residual stream differs between the two runs by more than what "
                    "its heads and MLP write, as where the bias of attention's output was changed: no edge carries "
                    "that. Take runs that differ in other weights."
                )


def groups(contrast: Contrast, graph: Graph) -> Iterator[list[Int[Tensor, "row"]]]:
    """Rows that are computed together, by question, or one by one of a single question.

    What all components write in them takes no more memory than a pass of the budget.
    """
    asked = contrast.rows.question
    every = [(asked == one).nonzero()[:, 0] for one in asked.unique()]
    if len(every) == 1:
        every = list(every[0].split(1))
    positions = contrast.target.tokens.shape[1] - contrast.first
    most = _FLOATS * contrast.target.budget // (positions * len(graph.writers))
    group: list[Tensor] = []
    for one in every:
        if group and sum(map(len, group)) + len(one) > most:
            yield group
            group = []
        group.append(one)
    yield group
