"""What is asked of the last position: prompts, and the tokens between which they decide."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.pairs import Text, are_several, as_prompt
from locate.errors import FactError
from locate.facts.answers import tell_apart
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, encode_target
from locate.tasks.paired import PairedPrompts

Answer = str | int
# One answer, or one over another.
Answers = Answer | tuple[Answer, Answer]
Prompts = PairedPrompts | Text | Sequence[Text]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A prompt with its answers.

    Attributes:
        prompt: with the tokens that both answers begin with behind it.
        answer: the token of the answer that comes next; None where nothing says which.
        other: that of the answer it is held against.
    """

    prompt: Prompt
    answer: int | None
    other: int | None

    def spelled(self, model: TransformerBridge) -> tuple[str | None, str | None]:
        """The answers' tokens as text."""
        one, other = (None if token is None else str(model.tokenizer.decode([token])) for token in self._tokens)
        return one, other

    @property
    def _tokens(self) -> tuple[int | None, int | None]:
        return self.answer, self.other


def asked_of(model: TransformerBridge, prompts: Prompts, answers: Answers | Sequence[Answers] | None) -> list[Asked]:
    """Prompts with their answers: those given, else a fact's ``target`` and ``target_new``, and of pairs both targets.

    Args:
        model: whose tokenizer.
        prompts: facts, texts or token ids, or paired prompts, of which the clean ones are asked.
        answers: a text (its first token counts) or a token's id, or a pair ``(answer, other)``; or a list with one of
            these for each prompt.

    Raises:
        FactError: no prompts, not as many answers, answers that are the same, or a token that there is not.

    >>> asked = asked_of(model, "The Louvre is in", ("Paris", "Rome"))
    >>> asked[0].spelled(model)
    (' Paris', ' Rome')
    """
    if isinstance(prompts, PairedPrompts):
        given: list[Text] = list(prompts.clean)
        own: list[Answers | None] = [(one.target, other.target) for one, other in prompts]
    else:
        given = list(prompts) if are_several(prompts) else [prompts]  # type: ignore[arg-type, list-item]
        own = [_own(one) for one in given]
    if not given:
        raise FactError("There are no prompts; give at least one.")
    if isinstance(answers, list):
        if len(answers) != len(given):
            raise FactError(f"answers: found {len(answers)} for {len(given)} prompts; give as many, or one for all.")
        own = list(answers)
    elif answers is not None:
        own = [answers] * len(given)  # type: ignore[list-item]
    for one in own:
        if isinstance(one, tuple) and len(one) != 2:
            raise FactError(f"answers: a pair is one answer and the other it is held against, found {len(one)}.")
    return [_asked(model, one, its) for one, its in zip(given, own, strict=True)]


def token_after(model: TransformerBridge, prompt: Prompt, answer: Answer) -> int:
    """The token with which an answer begins after a prompt.

    Raises:
        FactError: it is a token that there is not, or as ``encode_target`` does.

    >>> token_after(model, as_prompt(model, "The Louvre is in"), 7)
    7
    """
    if isinstance(answer, str):
        return int(encode_target(model, prompt, answer)[0])
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise FactError(f"An answer must be a text or a token's id, found {type(answer).__name__}.")
    if not 0 <= answer < model.cfg.d_vocab:
        raise FactError(f"There is no token {answer}: the model's tokens are 0 to {model.cfg.d_vocab - 1}.")
    return answer


def _own(text: Text) -> Answers | None:
    if not isinstance(text, Fact):
        return None
    return text.target if text.target_new is None else (text.target, text.target_new)


def _asked(model: TransformerBridge, text: Text, answers: Answers | None) -> Asked:
    prompt = as_prompt(model, text)
    if not isinstance(answers, tuple):
        return Asked(prompt=prompt, answer=None if answers is None else token_after(model, prompt, answers), other=None)
    first, second = answers
    if isinstance(first, str) and isinstance(second, str):
        apart = tell_apart(model, prompt, first, second)
        longer = prompt.after(apart.shared) if len(apart.shared) else prompt
        return Asked(prompt=longer, answer=apart.one, other=apart.other)
    one, other = (token_after(model, prompt, answer) for answer in answers)
    if one == other:
        raise FactError(f"{prompt.text!r}: both answers begin with token {one}, so nothing tells them apart.")
    return Asked(prompt=prompt, answer=one, other=other)
