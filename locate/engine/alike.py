"""Freezing rows that begin as rows of another run do: what they have in common is run once and kept once."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.caches import Recorder
from locate.engine.calls import Carried
from locate.engine.embedding import entering_blocks
from locate.engine.freezing import freeze
from locate.engine.hooking import Hook, hook_points, hooked, keep_in, listen
from locate.engine.joined import Beginning, JoinedLayers, JoinedStates
from locate.engine.readout import read_logits
from locate.engine.rows import rows_of
from locate.engine.run import FrozenRun, Readouts
from locate.model.running import running
from locate.names import DEFAULT_BUDGET


def freeze_alike(
    run: FrozenRun,
    rows: Int[Tensor, "row"],
    tokens: Int[Tensor, "row position"],
    *,
    hooks: Sequence[Hook] = (),
    keep: Sequence[str] = (),
    at: Readouts | None = None,
) -> FrozenRun:
    """Freeze other tokens, each row of which may begin as a row of a run does.

    All is as ``freeze`` would make it under the weights of that run. Blocks run from the first position on where
    anything that enters them differs, and what lies before it is the other run's. Where a model cannot go on from
    there (tokens bring it more than the stream, blocks hand on more, or keep more than keys and values), all rows run
    whole.

    Args:
        run: what the rows may have in common, and what they may have in common with it.
        rows: for each row, the one of that run.
        tokens: token ids, as many in each row as there.
        hooks: as of ``freeze``, on what comes before the first block.
        keep: as of ``freeze``; what ``run`` did not keep lets all rows run whole.
        at: as of ``freeze``.

    Raises:
        SiteError, ModelError, FactError: as ``freeze`` does.

    >>> clean = freeze(model, torch.tensor([[1, 2, 3, 4]]))
    >>> others = freeze_alike(clean, torch.tensor([0, 0]), torch.tensor([[1, 2, 5, 4], [1, 2, 6, 4]]))
    >>> bool((others.residuals[5][:, :2] == clean.residuals[5][:, :2]).all())
    True
    """
    with run.weights.entered():
        found = _sharing(run, rows, tokens, hooks, keep, at) if _goes_on(run, tokens, hooks, keep) else None
        return found or freeze(run.model, tokens, hooks=hooks, keep=keep, at=at, budget=run.budget)


def freeze_together(
    model: TransformerBridge,
    tokens: Int[Tensor, "row position"],
    *,
    keep: Sequence[str] = (),
    at: Readouts | None = None,
    budget: int = DEFAULT_BUDGET,
) -> FrozenRun:
    """``freeze``, which runs what all rows begin with once where that spares half of the work, as in prompts with the
    same examples before the question.

    Raises:
        SiteError, ModelError, FactError: as ``freeze`` does.

    >>> len(freeze_together(model, torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6]])).tokens)
    3
    """
    n_rows, length = tokens.shape
    alike = int((tokens == tokens[:1]).all(0).cumprod(0).sum())
    # The first row runs whole, and with the others again from where they part.
    if 2 * (length + n_rows * (length - alike)) > n_rows * length:
        return freeze(model, tokens, keep=keep, at=at, budget=budget)
    first = freeze(model, tokens[:1], keep=keep, budget=budget)
    return freeze_alike(first, torch.zeros(n_rows, dtype=torch.long), tokens, keep=keep, at=at)


def _goes_on(run: FrozenRun, tokens: Tensor, hooks: Sequence[Hook], keep: Sequence[str]) -> bool:
    """Whether rows of such tokens can go on from a run at all."""
    return (
        run.resumable
        and not run.entire
        and run.attention_mask is None
        and not run.carries
        and not run.token_places
        and tokens.shape[1] == run.tokens.shape[1]
        and run.kept.keys() >= set(keep)
        # Hooks on blocks may change what the rows would have in common.
        and not any(name.startswith("blocks.") for name, _ in (*hooks, *run.hooks))
    )


def _alike(one: Float[Tensor, "row position d_model"], other: Float[Tensor, "row position d_model"]) -> int:
    """At how many positions from the first one on both are the same in all rows; of the last one never."""
    same = (one == other).all(-1).all(0)[:-1]
    return int(same.cumprod(0).sum())


def _sharing(
    run: FrozenRun, rows: Tensor, tokens: Tensor, hooks: Sequence[Hook], keep: Sequence[str], at: Readouts | None
) -> FrozenRun | None:
    """The rows from where any of them differs on; none where nothing is shared, or something to keep is not found."""
    model, states, recorder, carried = run.model, list[Tensor](), Recorder(), Carried()
    kept: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(running(model))
        stack.enter_context(hooked(model, hooks))
        for name, point in hook_points(model, keep).items():
            stack.callback(listen(point, keep_in(kept, name)).remove)
        entering = entering_blocks(model, tokens)
        rows = rows.to(entering.device)
        beginning = Beginning(rows=rows, length=_alike(entering, rows_of(run.residuals[0], rows)))
        if not beginning.length:
            return None
        # Copied, so that the beginning is not held with them.
        kept.update({name: value[:, beginning.length :].clone() for name, value in kept.items()})
        states.append(entering[:, beginning.length :].clone())
        for layer in range(run.n_layers):
            hidden = states[-1].to(run.devices[layer])
            states.append(run.follow(layer, hidden, rows, beginning.length, carried, recorder))
        model.ln_final(states[-1])  # for what is kept there
        own = dict(kept)  # as it is now: the readout passes the final norm too
        if any(name not in own or beginning.axis(run.kept[name], own[name]) is None for name in keep):
            return None
        residuals = JoinedLayers(beginning, run.residuals, states)
        if at is None:
            at = (torch.arange(len(rows)), torch.full((len(rows),), tokens.shape[1] - 1))
        final = residuals[-1]
        logits = read_logits(model, final[tuple(index.to(final.device) for index in at)]).to(run.logits)
    return replace(
        run, tokens=tokens.to(run.tokens.device), residuals=residuals, kept=JoinedStates(beginning, run.kept, own),
        at=at, logits=logits, hooks=tuple(hooks), calls=tuple(call.of_rows(rows) for call in run.calls),
        _keys=JoinedStates(beginning, run._keys, recorder.keys),
        _values=JoinedStates(beginning, run._values, recorder.values),
    )  # fmt: skip
