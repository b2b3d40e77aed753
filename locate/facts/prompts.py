"""From text to tokens: where the subject stands, and how the answer is spelled."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.errors import FactError, SiteError
from locate.facts.chat import as_turn, special_tokens, turn_in
from locate.facts.facts import Fact
from locate.facts.joining import continuation
from locate.names import PositionName

Positions = PositionName | str | Sequence[int | str]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        text: the prompt as it is tokenised; of a chat, with the template's words.
        tokens: ids from the model's own tokenizer called plainly, shape ``position``.
        subject_span: half-open range of the subject's token positions.
        joined: whether answers follow exactly as they are given, without a space between.
        forced: those of the tokens, at the end, that belong to the answers already: what all of them begin with.

    >>> prompt = encode_fact(model, fact)
    >>> prompt.last_subject_position
    3
    """

    text: str
    tokens: Int[Tensor, "position"]
    subject_span: tuple[int, int]
    joined: bool = False
    forced: Int[Tensor, "_"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def after(self, forced: Int[Tensor, "_"]) -> "Prompt":
        """The same with the first tokens of an answer behind it.

        >>> len(encode_fact(model, fact).after(torch.tensor([7])).tokens) - len(encode_fact(model, fact).tokens)
        1
        """
        return replace(self, tokens=torch.cat([self.tokens, forced]), forced=torch.cat([self.forced, forced]))

    @property
    def last_subject_position(self) -> int:
        """Position of the subject's last token: where factual recall happens."""
        return self.subject_span[1] - 1


def encode_fact(model: TransformerBridge, fact: Fact, template: str | None = None, prefix: str = "") -> Prompt:
    """Tokenise a fact's prompt (or another template about its subject, or with text before it).

    The subject's tokens are those whose characters overlap it, by the tokenizer's own offsets. Of a chat, all of it is
    in the user's turn.

    Raises:
        FactError: the subject covers no token, the tokenizer gives no offsets, or it has no chat template.

    >>> prompt = encode_fact(model, fact)
    >>> prompt.subject_span
    (0, 4)
    """
    template = fact.prompt if template is None else template
    start = template.index("{}")
    # Of a chat that is written out, in its last turn before the subject.
    place = 0 if fact.chat else turn_in(model, template[:start])
    text = template[:place] + prefix + fact.fill(template[place:])
    start += len(prefix)
    if fact.chat:
        text, turn = as_turn(model, text)
        start += turn
    return replace(encode_with_span(model, text, start, start + len(fact.subject)), joined=fact.joined)


def encode_with_span(model: TransformerBridge, text: str, start: int, end: int) -> Prompt:
    """Tokenise text and find the tokens that overlap the characters ``start:end``."""
    ids, offsets = _tokenise(model, text)
    if offsets is None:
        raise FactError("Subject positions need a fast tokenizer (one that gives character offsets).")
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    if not inside:
        raise FactError(f"The subject {text[start:end]!r} covers no token of the prompt {text!r}.")
    return Prompt(text=text, tokens=torch.tensor(ids), subject_span=(inside[0], inside[-1] + 1))


def encode_text(model: TransformerBridge, text: str) -> Int[Tensor, "position"]:
    """Token ids of a text, as the model's tokenizer gives them.

    Without the special tokens that it adds at the end, which belong to no question, and without those that it adds at
    the beginning where the text has them already, as a chat that was written out.
    """
    ids, _ = _tokenise(model, text)
    if not ids:
        raise FactError(f"The text {text!r} has no tokens.")
    return torch.tensor(ids, dtype=torch.long)


def worded(model: TransformerBridge, text: str, *, chat: bool = False) -> str:
    """A text as it is put to the model: by itself, or as a user's turn.

    >>> worded(model, "The Louvre is in")
    'The Louvre is in'
    """
    return as_turn(model, text)[0] if chat else text


def resolve_positions(prompt: Prompt, positions: Positions) -> tuple[int, ...]:
    """The token positions that are meant, in ascending order.

    Names are ``"all"``, ``"subject"``, ``"subject_last"`` (its last token), ``"last"`` (the prompt's last token)
    and ``"others"`` (all but the subject's and the last); several may be given together.

    Raises:
        SiteError: an unknown name, or a position that the prompt does not have.

    >>> resolve_positions(encode_fact(model, fact), "subject")
    (0, 1, 2, 3)
    """
    length, (start, end) = len(prompt.tokens), prompt.subject_span
    named: dict[str, Sequence[int]] = {
        "all": range(length),
        "subject": range(start, end),
        "subject_last": range(max(start, end - 1), end),
    }
    named["last"] = range(length - 1, length)
    named["others"] = [place for place in range(length - 1) if not start <= place < end]
    if isinstance(positions, str):
        if positions not in named:
            raise SiteError(f"positions must be one of {', '.join(named)}, or indices; found {positions!r}.")
        if not named[positions]:
            raise SiteError(f"{prompt.text!r} has no {positions!r} tokens; it has no subject, or nothing else.")
        return tuple(named[positions])
    found: set[int] = set()
    for position in positions:
        if isinstance(position, str):
            found |= set(resolve_positions(prompt, position))
        elif -length <= position < length:
            found.add(position % length)
        else:
            raise SiteError(f"Position {position} is out of range: {prompt.text!r} has {length} tokens.")
    if not found:
        raise SiteError("positions: give at least one.")
    return tuple(sorted(found))


def encode_target(
    model: TransformerBridge, prompt: Prompt | str, target: str, *, joined: bool = False
) -> Int[Tensor, "token"]:
    """Token ids of ``target`` as they follow ``prompt``, with a space between where one belongs (``continuation``).

    Args:
        model: whose tokenizer.
        prompt: as text, or encoded, which says itself whether it is joined, and may end in the target's first tokens.
        target: the answer.
        joined: whether it follows exactly as it is given.

    Raises:
        FactError: the target is empty, merges with the prompt's last space, or is unknown to the tokenizer.

    >>> encode_target(model, "The Eiffel Tower is located in the city of", "Paris").shape
    torch.Size([1])
    """
    if isinstance(prompt, Prompt):
        whole, n = encode_target(model, prompt.text, target, joined=prompt.joined), len(prompt.forced)
        if n and (len(whole) <= n or not torch.equal(whole[:n], prompt.forced)):
            begun = "".join(token_strings(model, prompt.forced))
            raise FactError(
                f"{prompt.text!r}: the answers that are compared begin with {begun!r}, and {target!r} does not go on "
                "from there. Compare answers that all begin alike, or none."
            )
        return whole[n:]
    if not target.strip():
        raise FactError("The target is empty; give the answer's text, such as 'Paris'.")
    tokenizer = model.tokenizer
    # What follows a special token, such as one that opens a turn, follows it at once.
    at_once = joined or (not target[0].isspace() and prompt.endswith(special_tokens(model)))
    follows = continuation(prompt, target, joined=at_once)
    # Special tokens are left out: one that the tokenizer puts at the end would stand between the two.
    base = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + follows, add_special_tokens=False)["input_ids"]
    found = ids[len(base) :] if ids[: len(base)] == base else []
    # A space at a prompt's end belongs to the answer's first token; alone it is rarely what a model was taught on.
    if not found and (joined or not prompt[-1:].isspace()):
        found = _by_itself(model, base, follows)
    if not found:
        bare = prompt.rstrip()
        remedy = (
            f"Give the prompt {bare!r} and the target {prompt[len(bare) :] + follows!r}, or joined=True to ask for "
            "it after the space as it stands."
            if bare not in ("", prompt) and not joined
            else "End the prompt at a word boundary, without a trailing space."
        )
        raise FactError(f"The target {target!r} does not follow the prompt {prompt!r} as separate tokens. {remedy}")
    if tokenizer.unk_token_id in found and tokenizer.unk_token not in target:
        raise FactError(f"The target {target!r} is unknown to the model's tokenizer.")
    return torch.tensor(found)


def _by_itself(model: TransformerBridge, base: list[int], follows: str) -> list[int]:
    """The tokens of an answer whose first ones would merge with the prompt's last; none where it has none of its own.

    Words that are joined, as in scripts without spaces, may share a token when they are written together. A model that
    has been given the prompt's own tokens goes on after them.
    """
    tokenizer = model.tokenizer

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    for anchor in ("", "\n"):  # the second where a tokenizer puts a space before every text
        before = tokenizer(anchor, add_special_tokens=False)["input_ids"] if anchor else []
        ids = tokenizer(anchor + follows, add_special_tokens=False)["input_ids"]
        found = ids[len(before) :]
        if ids[: len(before)] == before and found and decoded(base + found) == decoded(base) + follows:
            return found
    return []


def rank_of(logits: Float[Tensor, "vocab"], token: int) -> int:
    """The 1-based rank of a token among the logits (1 is the model's first answer)."""
    return int((logits > logits[token]).sum()) + 1


def token_strings(model: TransformerBridge, tokens: Int[Tensor, "position"]) -> list[str]:
    """Readable text of each token, for labels."""
    return [model.tokenizer.decode([token]) for token in tokens.tolist()]


def answer_strings(model: TransformerBridge, prompt: Prompt, target: str | None) -> list[str] | None:
    """The tokens of an answer as text, for the record of a result; None without one.

    >>> answer_strings(model, encode_fact(model, fact), "Paris")
    [' Paris']
    """
    if target is None:
        return None
    return token_strings(model, torch.cat([prompt.forced, encode_target(model, prompt, target)]))


def _tokenise(model: TransformerBridge, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
    """Token ids and where each stands in the text; no places where the tokenizer does not give them."""
    tokenizer = model.tokenizer
    fast = bool(tokenizer.is_fast)
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    ids = list(plain["input_ids"])
    whole = tokenizer(text)["input_ids"]
    start = next((i for i in range(len(whole) - len(ids) + 1) if whole[i : i + len(ids)] == ids), 0)
    front = [] if ids[:start] == whole[:start] else whole[:start]
    return [*front, *ids], [*[(0, 0)] * len(front), *plain["offset_mapping"]] if fast else None
