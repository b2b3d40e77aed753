"""The logit lens: the model's own final readout of states in its middle, as they are or translated."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET, FrozenRun, freeze
from locate.engine.readout import read_logits
from locate.engine.rows import Budget
from locate.errors import FactError, ModelError, SiteError, suggest
from locate.facts.prompts import Positions, Prompt, resolve_positions, token_strings
from locate.lens.asking import Answer, Asked, Prompts, asked_of, token_after
from locate.lens.trajectory import LensTrajectory
from locate.lens.tuned import TunedLens
from locate.model.running import running
from locate.sites.places import layers_with
from locate.sites.table import hook_name, site_row

# From the stream that enters a layer to one that the final readout understands.
Translator = Callable[[int, Tensor], Tensor]
# States of the stream, and what is added to it.
_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
# Streams as they enter a layer, which translators know; how many layers later than the site's own.
_BETWEEN = {"resid_pre": 0, "resid_post": 1}


def logit_lens(
    model: TransformerBridge,
    prompts: Prompts,
    tokens: Sequence[Answer] | None = None,
    *,
    sites: str = "resid_post",
    positions: Positions | None = None,
    translator: Translator | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> LensTrajectory:
    """Read the states of every layer as the model reads its last one: final norm, unembedding, scale or cap.

    After the last layer that is the model's own output.

    Args:
        model: a raw-mode bridge.
        prompts: a fact, a text or token ids, or several; or paired prompts (``locate.tasks``), whose clean ones are
            read.
        tokens: which to follow, as texts (the first token counts) or ids. By default ``answer`` and ``other``: a fact's
            ``target`` and, where it has one, ``target_new``, and of a text the model's own first answer. What two
            answers begin with joins the prompt.
        sites: ``resid_pre``, ``resid_mid`` or ``resid_post``; or what is added to the stream, ``attn_out`` or
            ``mlp_out``, each read by itself with the final norm's scale of its own.
        positions: by default all of a single prompt, and the last of several; of several others that are one in each,
            such as ``["subject_last", "last"]``.
        translator: what to make of the stream before it is read, ``(layer, stream) -> stream`` for the stream that
            enters a layer, such as a ``TunedLens``. The stream after the last layer is read as it is.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no prompts, or tokens that there are not.
        SiteError: there are no such states, or no translator for them; a position that a prompt does not have.
        ModelError: the translator is of another model, or does not give a stream.

    >>> lens = locate.logit_lens(model, fact)
    >>> lens.data.sizes["layer"] == model.cfg.n_layers
    True
    """
    layers = _layers(model, sites, translator)
    if isinstance(translator, TunedLens):
        translator.check(model)
    asked = asked_of(model, prompts, None)
    labels, places = _places([one.prompt for one in asked], positions)
    names = [hook_name(sites, layer) for layer in layers] if sites not in _BETWEEN else []
    read, followed = [], []
    for one, own in zip(tqdm(asked, "logit lens", disable=not progress, delay=1), places, strict=True):
        at = (torch.zeros(len(own), dtype=torch.long), torch.tensor(own))
        run = freeze(model, one.prompt.tokens[None], keep=names, at=at, budget=budget)
        followed.append(_followed(model, one, tokens, run))
        with running(model), run.weights.entered():
            read.append(_read(run, sites, layers, own, followed[-1], translator))
    chosen = ["answer", "other"] if tokens is None else [str(token) for token in tokens]
    kept = [at for at, _ in enumerate(chosen) if any(own[at] is not None for own in followed)]
    dims = ("fact", "layer", "position", "token")
    data = xr.Dataset(
        {name: (dims[: one.ndim + 1], np.stack([own[name] for own in read])) for name, one in read[0].items()},
        coords={
            "fact": [one.prompt.text for one in asked], "layer": list(layers), "position": labels, "token": chosen,
        },
    ).isel(token=kept)  # fmt: skip
    info: dict[str, Any] = {
        "model": str(model.cfg.model_name),
        "translator": None if translator is None else getattr(translator, "__name__", type(translator).__name__),
        "tokens": [[_spelled(model, own[at]) for at in kept] for own in followed],
        "read": [_words(model, one.prompt, own) for one, own in zip(asked, places, strict=True)],
    }
    return LensTrajectory(data=data, sites=site_row(sites).name, info=info)


def _layers(model: TransformerBridge, sites: str, translator: Translator | None) -> tuple[int, ...]:
    if sites not in _SITES:
        raise SiteError(f"sites: the lens reads {', '.join(_SITES)}; found {sites!r}. {suggest(sites, _SITES)}")
    if translator is not None and sites not in _BETWEEN:
        raise SiteError(
            f"sites: a translator is of the stream as it enters layers, so it reads {' or '.join(_BETWEEN)}; found "
            f"{sites!r}."
        )
    return tuple(range(model.cfg.n_layers)) if sites in _BETWEEN else layers_with(model, sites)


def _places(prompts: Sequence[Prompt], positions: Positions | None) -> tuple[list[Any], list[list[int]]]:
    """What each position is called, and where it stands in each prompt."""
    if positions is None:
        positions = "all" if len(prompts) == 1 else "last"
    wanted = [positions] if isinstance(positions, str) else list(positions)
    each = [[resolve_positions(prompt, [one]) for one in wanted] for prompt in prompts]
    whole = [sorted({place for places in own for place in places}) for own in each]
    if len(prompts) == 1:
        return list(whole[0]), whole
    if all(len(places) == 1 for own in each for places in own):
        return [str(one) for one in wanted], [[places[0] for places in own] for own in each]
    if all(own == whole[0] for own in whole):
        return list(whole[0]), whole
    raise SiteError(
        f"positions: {positions!r} are not the same in all prompts, which differ in length; ask for single ones, such "
        "as ['subject_last', 'last']."
    )


def _followed(
    model: TransformerBridge, asked: Asked, tokens: Sequence[Answer] | None, run: FrozenRun
) -> list[int | None]:
    """The tokens that are followed in a prompt; none where it has no such answer."""
    if tokens is None:
        answer = asked.answer
        if answer is None:  # the model's own, which the last position of the prompt has
            answer = int(read_logits(model, run.residuals[-1][:, -1])[0].argmax())
        return [answer, asked.other]
    if isinstance(tokens, str) or not tokens:
        raise FactError(f"tokens: give one or more, such as ['Paris', 'Rome']; found {tokens!r}.")
    return [token_after(model, asked.prompt, one) for one in tokens]


def _spelled(model: TransformerBridge, token: int | None) -> str | None:
    return None if token is None else str(model.tokenizer.decode([token]))


def _words(model: TransformerBridge, prompt: Prompt, places: Sequence[int]) -> list[str]:
    words = token_strings(model, prompt.tokens)
    return [words[place] for place in places]


def _read(
    run: FrozenRun,
    sites: str,
    layers: Sequence[int],
    places: Sequence[int],
    followed: Sequence[int | None],
    translator: Translator | None,
) -> dict[str, np.ndarray]:
    """Each value of one prompt, layers first."""
    states = [_states(run, sites, layer, places, translator) for layer in layers]
    # The stream after the last layer has been read by the model itself.
    n_read = len(states) - (sites == "resid_post")
    model, found = run.model, list[dict[str, np.ndarray]]()
    if n_read:
        for part in torch.cat(states[:n_read]).split(Budget.of(model).distributions):
            found.append(_values(model, read_logits(model, part), followed))
    if n_read < len(states):
        found.append(_values(model, run.logits, followed))
    whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    return {name: one.reshape(len(layers), len(places), *one.shape[1:]) for name, one in whole.items()}


def _states(
    run: FrozenRun, sites: str, layer: int, places: Sequence[int], translator: Translator | None
) -> Float[Tensor, "position d_model"]:
    if sites not in _BETWEEN:
        return run.kept[hook_name(sites, layer)][0, places].to(run.residuals[-1].device)
    entering = layer + _BETWEEN[sites]
    states = run.residuals[entering][0, places].to(run.residuals[-1].device)
    if translator is None or entering == run.n_layers:
        return states
    made = translator(entering, states)
    if not isinstance(made, Tensor) or made.shape != states.shape:
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ModelError(f"The translator gave {found} for a stream of shape {tuple(states.shape)}; it must keep it.")
    return made.to(states)


def _values(
    model: TransformerBridge, logits: Float[Tensor, "row vocab"], followed: Sequence[int | None]
) -> dict[str, np.ndarray]:
    logits = logits.float()
    known, missing = [token or 0 for token in followed], [token is None for token in followed]
    chosen, sure = logits[:, known], logits.log_softmax(-1)
    rank = torch.stack([(logits > one[:, None]).sum(-1) + 1 for one in chosen.T], dim=-1).float()
    numbers = {"logit": chosen, "log_probability": sure[:, known], "rank": rank}
    own = {name: one.cpu().numpy().copy() for name, one in numbers.items()}
    for one in own.values():
        one[:, missing] = np.nan
    best = sure.max(-1)
    words = np.array(token_strings(model, best.indices), dtype=object)
    return {**own, "top": words, "top_probability": best.values.exp().cpu().numpy()}
