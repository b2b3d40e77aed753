"""Two answers to one prompt: compared at the first token that tells them apart."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_fact, encode_target


@dataclass(frozen=True, kw_only=True, eq=False)
class Apart:
    """Two answers that have been told apart.

    Attributes:
        shared: the tokens with which both begin, such as "New" of New York and New Jersey; they join the prompt.
        one: the first token of the one that is not the other's.
        other: the other's token there.
    """

    shared: Int[Tensor, "_"]
    one: int
    other: int


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two answers' tokens differ; None where one begins with all of the other.

    >>> first_difference([5, 6, 7], [5, 8]), first_difference([5, 6], [5])
    (1, None)
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), None)


def tell_apart(model: TransformerBridge, prompt: Prompt | str, one: str, other: str, *, joined: bool = False) -> Apart:
    """Where two answers to a prompt part.

    Raises:
        FactError: one begins with all of the other, so that no token tells them apart; or as ``encode_target`` does.

    >>> tell_apart(model, "The Eiffel Tower is located in the city of", "Paris", "Rome").shared.shape
    torch.Size([0])
    """
    first, second = (encode_target(model, prompt, answer, joined=joined) for answer in (one, other))
    place = first_difference(first.tolist(), second.tolist())
    if place is None:
        text = prompt.text if isinstance(prompt, Prompt) else prompt
        raise FactError(
            f"{text!r}: of the answers {one!r} and {other!r} one begins with all of the other, so no "
            "token tells them apart. Choose other answers."
        )
    return Apart(shared=first[:place], one=int(first[place]), other=int(second[place]))


def encode_question(model: TransformerBridge, fact: Fact) -> Prompt:
    """A fact's prompt, up to where its two answers part, where it has two: what both begin with joins it.

    >>> len(encode_question(model, fact).forced)
    0
    """
    return up_to_difference(model, encode_fact(model, fact), fact.target, fact.target_new)


def up_to_difference(model: TransformerBridge, prompt: Prompt, one: str | None, other: str | None) -> Prompt:
    """A prompt with the tokens that both of its answers begin with behind it; as it is where no token parts them.

    >>> prompt = locate.encode_fact(model, fact)
    >>> up_to_difference(model, prompt, "Paris", None) is prompt
    True
    """
    if one is None or other is None:
        return prompt
    first, second = (encode_target(model, prompt, answer) for answer in (one, other))
    place = first_difference(first.tolist(), second.tolist())
    return prompt.after(first[:place]) if place else prompt
