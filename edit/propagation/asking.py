"""Probes as they are put to both models: their tokens, and what tells their two answers apart."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.propagation.sides import Sides
from edit.requests.answers import with_model_answers
from edit.requests.probes import Probe, Probed, as_probed, probes_for
from edit.requests.requests import Case, EditRequest, as_request
from locate.contrast.contrast import Contrast
from locate.engine import FrozenRun
from locate.errors import FactError
from locate.facts.answers import tell_apart
from locate.facts.prompts import Prompt, answer_strings, encode_text, rank_of, token_strings, worded
from locate.names import DEFAULT_BUDGET

# What is told of an answer.
ANSWERS = ("logit_diff", "logprob_new", "rank_new", "logprob_old", "rank_old")


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A probe as it is asked.

    Attributes:
        probe: what is asked.
        prompt: its tokens; those that both answers begin with (such as "New" of New York and New Jersey) join it.
        new: the first token of o* that tells it from o.
        old: that of o.
    """

    probe: Probe
    prompt: Prompt
    new: int
    old: int

    @classmethod
    def of(cls, model: TransformerBridge, probe: Probe) -> "Asked":
        """How to ask a probe.

        Raises:
            FactError: no token tells its answers apart.

        >>> asked = Asked.of(model, Probe(role="edit", text="The Louvre is in", new="Rome", old="Paris"))
        >>> asked.new == asked.old
        False
        """
        text = worded(model, probe.text, chat=probe.chat)
        apart = tell_apart(model, text, probe.new, probe.old, joined=probe.joined)
        prompt = Prompt(text=text, tokens=encode_text(model, text), subject_span=(0, 0), joined=probe.joined)
        return cls(probe=probe, prompt=prompt.after(apart.shared), new=apart.one, old=apart.other)

    @property
    def length(self) -> int:
        """How many tokens are put to the models."""
        return len(self.prompt.tokens)

    def tokens(self, model: TransformerBridge) -> tuple[str, ...]:
        """Its tokens as text."""
        return tuple(token_strings(model, self.prompt.tokens))

    def contrast(self, sides: Sides, *, keep: Sequence[str] = (), budget: int = DEFAULT_BUDGET) -> Contrast:
        """Edited against base on it, asked for the logit of o* over o."""
        return sides.contrast(self.prompt, self.new, self.probe.old, keep=keep, budget=budget)

    def answers(self, logits: Float[Tensor, "vocab"]) -> dict[str, Any]:
        """What logits say of o* and o: ``logit_diff`` of the two, and the log-probability and rank of each.

        >>> asked = Asked.of(model, Probe(role="edit", text="The Louvre is in", new="Rome", old="Paris"))
        >>> tuple(asked.answers(model(asked.prompt.tokens[None])[0, -1])) == ANSWERS
        True
        """
        own = logits.float()
        logprobs = own.log_softmax(-1)
        found: dict[str, Any] = {"logit_diff": float(own[self.new] - own[self.old])}
        for which, token in (("new", self.new), ("old", self.old)):
            found |= {f"logprob_{which}": float(logprobs[token]), f"rank_{which}": rank_of(own, token)}
        return found

    def totals(self, model: TransformerBridge, base: FrozenRun, edited: FrozenRun) -> dict[str, Any]:
        """What both models answer: logit differences, log-probabilities, ranks, and the first answers of their own."""
        probe = self.probe
        row: dict[str, Any] = {"role": probe.role, "text": probe.text, "old": probe.old, "new": probe.new}
        row |= {
            f"{name}_tokens": "|".join(answer_strings(model, self.prompt, row[name]) or ()) for name in ("old", "new")
        }
        for name, run in (("base", base), ("edited", edited)):
            found = self.answers(run.logits[0])
            row[name] = found["logit_diff"]
            row |= {f"{name}_{what}": value for what, value in found.items() if what != "logit_diff"}
            row[f"{name}_answer"] = model.tokenizer.decode([int(run.logits[0].argmax())])
        return {**row, "total_effect": row["edited"] - row["base"]}


def asked_of(sides: Sides, probes: Probed) -> list[Asked]:
    """How to ask the probes. Of a request (or a fact that stands for one) those that cannot be told apart
    are left out with a warning.

    An old answer that is not known is the base model's own.

    Raises:
        FactError: there are none; no token tells a probe's answers apart, or those of the edit itself; or the two
            models spell one of them in different tokens.
    """
    probes = as_probed(probes)
    if isinstance(probes, EditRequest):
        found = _tellable(sides.model, probes)
    else:
        with sides.before.entered():
            known = with_model_answers(sides.model, probes)
        found = [Asked.of(sides.model, one) for one in known]
    if not found:
        raise FactError("There are no probes; give some, or a request whose fact provides them.")
    for one in found:
        sides.check_tokens(one.prompt.text)
    return found


def tellable_probes(model: TransformerBridge, request: Case) -> list[Probe]:
    """A request's probes whose answers a token tells apart; a warning names the others.

    Raises:
        FactError: no token tells the answers of the edit itself apart.

    >>> [probe.role for probe in tellable_probes(model, request)][:1]
    ['edit']
    """
    return [one.probe for one in _tellable(model, as_request(request))]


def _tellable(model: TransformerBridge, request: EditRequest) -> list[Asked]:
    asked: list[Asked] = []
    for probe in probes_for(request):
        try:
            asked.append(Asked.of(model, probe))
        except FactError as error:
            if probe.role == "edit":
                raise
            warnings.warn(f"Left out of the propagation: {error}", stacklevel=4)
    return asked
