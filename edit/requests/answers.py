"""What the model itself answers to a probe, before an edit."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.requests.probes import Probe
from locate.engine.decode import continue_tokens, end_tokens
from locate.errors import FactError, listed, tell
from locate.facts.answers import tell_apart
from locate.facts.joining import continuation
from locate.facts.prompts import encode_text, worded
from locate.model.context import check_room, room_of

# An answer is its first phrase: up to a line break, or to punctuation that no letter or digit follows.
_END = re.compile(r"\s*(?:\n|[.,;:!?()\[\]\"“”](?!\w)|[。，；：！？、])")
_TOKENS = 6


def with_model_answers(model: TransformerBridge, probes: Sequence[Probe]) -> list[Probe]:
    """Probes with the model's own answer wherever the old one is not known.

    A probe that the model answers with the new answer already, or with one that no token tells from it, leaves
    nothing to measure: it is left out, and a warning names it.

    Args:
        model: a raw-mode bridge, without the edit.
        probes: those that have an old answer keep it.

    Raises:
        FactError: a probe is longer than the model's context.

    >>> probe = edit.Probe(role="one-hop", text="The Eiffel Tower is in the country of", new="Italy")
    >>> bool(edit.with_model_answers(model, [probe])[0].old)
    True
    """
    found, without = answered(model, probes)
    if without:
        tell(
            f"Left out {len(without)} of {len(probes)} probes: the model's own answer, against which the new one would "
            f"be measured, is not told from it:\n{listed(without)}"
        )
    return found


def answered(model: TransformerBridge, probes: Sequence[Probe]) -> tuple[list[Probe], list[str]]:
    """Probes with the model's own answer wherever the old one is not known, and what is wrong with those left out.

    >>> answered(model, edit.probes_for(request)) == (edit.probes_for(request), [])
    True
    """
    found, without = [], []
    for probe in probes:
        if probe.old.strip():
            found.append(probe)
            continue
        text = worded(model, probe.text, chat=probe.chat)
        own = own_answer(model, text, joined=probe.joined)
        try:
            tell_apart(model, text, probe.new, own, joined=probe.joined)
        except FactError as error:
            without.append(str(error))
        else:
            found.append(replace(probe, old=own))
    return found, without


def own_answer(model: TransformerBridge, text: str, *, joined: bool = False) -> str:
    """What the model answers: the likeliest beginning of a word there, and its first choices after it.

    A line break or a bracket, which may be a model's first choice after a question, is no answer.

    Raises:
        FactError: the text is longer than the model's context, or the model would begin no word after it.

    >>> own_answer(model, "The Eiffel Tower is located in the city of")[0].isalnum()
    True
    """
    tokens = encode_text(model, text)
    check_room(model, len(tokens), text)
    base = model.tokenizer.decode(tokens)

    def begins(token: int) -> bool:
        added = model.tokenizer.decode([*tokens.tolist(), token]).removeprefix(base)
        word = added.strip()
        return word[:1].isalnum() and (joined or added == continuation(text, word))

    def choose(logits: Float[Tensor, "row vocab"], step: int) -> Int[Tensor, "row"]:
        if step:
            return logits.argmax(-1)
        order = logits[0].argsort(descending=True).tolist()
        if (first := next((token for token in order if begins(token)), None)) is None:
            raise FactError(f"{text!r}: the model begins no word after it, so it has no answer of its own.")
        return torch.tensor([first], device=logits.device)

    room, ends, answer = room_of(model), end_tokens(model), ""
    steps = _TOKENS if room is None else min(_TOKENS, room + 1 - len(tokens))
    for (made,) in islice(continue_tokens(model, tokens[None], choose), steps):
        if int(made[-1]) in ends:
            break
        answer = model.tokenizer.decode([*tokens.tolist(), *made.tolist()]).removeprefix(base)
        if _END.search(answer.strip()):
            break
    bare = answer.strip()
    phrase = _END.split(bare, maxsplit=1)[0] or bare
    return answer[: len(answer) - len(answer.lstrip())] + phrase if joined else phrase
