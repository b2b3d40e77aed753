"""What is asked about an edit, and what a model answers, one row per prompt."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from typing import Any, TypedDict, TypeVar

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from edit.datasets.texts import ReferenceTexts
from edit.evaluation.fluency import ngram_entropy, sample_texts
from edit.evaluation.generation import exact_match, generate_greedily
from edit.evaluation.scoring import Pair, Score, See, encode_pair, score_targets
from edit.requests.requests import EditRequest
from locate.errors import FactError, counted, listed
from locate.facts.answers import first_difference
from locate.facts.prompts import token_strings, worded

Function = TypeVar("Function", bound=Callable[..., Any])

_CHANGED = ("efficacy", "paraphrase")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the models are asked, which must be the same for both.

    Attributes:
        generate: whether they speak as well.
        max_new_tokens: at most, per generation.
        fluency: whether they write long texts as well.
        seed: of those texts.
        references: what those texts are compared with.

    Raises:
        FactError: there are references, but no texts to compare with them.
    """

    generate: bool = True
    max_new_tokens: int = 16
    fluency: bool = False
    seed: int = 0
    references: ReferenceTexts | None = None

    def __post_init__(self) -> None:
        if self.references is not None and not self.fluency:
            raise FactError("references: are compared with long texts, which fluency=True lets the models write.")


class Settings(TypedDict, total=False):
    """The same as keywords, for the functions that make one of them."""

    generate: bool
    max_new_tokens: int
    fluency: bool
    seed: int
    references: ReferenceTexts | None


def with_settings(function: Function) -> Function:
    """Spell the settings out in a signature that has them as ``**settings``: notebooks and ``help`` read them there.

    >>> list(signature(edit.baseline).parameters)[2:5]
    ['generate', 'max_new_tokens', 'fluency']
    """
    own = list(signature(function).parameters.values())
    spelled = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Asking)
    ]
    first = [one for one in own if one.kind is Parameter.POSITIONAL_OR_KEYWORD]
    rest = [one for one in own if one.kind is Parameter.KEYWORD_ONLY]
    function.__signature__ = signature(function).replace(parameters=[*first, *spelled, *rest])  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt of a case.

    Attributes:
        case: index of the case.
        probe: ``"efficacy"``, ``"paraphrase"``, ``"neighbourhood"`` or ``"unrelated"``.
        subject: of the edited fact.
        prompt: the prompt.
        target_new: the edit's new object.
        target: the fact's own object, or the prompt's own answer where it is unrelated.
        answers: what a generation should be, with other names of it.
        joined: whether targets follow the prompt exactly as they are given.
        chat: whether the prompt is what a user says in a chat.
    """

    case: int
    probe: str
    subject: str
    prompt: str
    target_new: str
    target: str
    answers: tuple[str, ...]
    joined: bool = False
    chat: bool = False

    @property
    def wants_new(self) -> bool:
        """Whether the edit should bring the new object here."""
        return self.probe in _CHANGED

    def text(self, model: TransformerBridge) -> str:
        """What is put to the model: the prompt, with the words of a chat's template where it is one."""
        return worded(model, self.prompt, chat=self.chat)

    def pair(self, model: TransformerBridge, target: str) -> Pair:
        """What is put to the model, and a target, to be scored."""
        text = self.text(model)
        return (text, target, True) if self.joined else (text, target)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model answers.

    Attributes:
        rows: one per question, with the columns that one model alone determines.
        choices: per question, its first choices in place of the wanted answer's tokens, teacher-forced.
        first: per question, its first choice after the prompt and what both answers begin with.
    """

    rows: pd.DataFrame
    choices: list[tuple[int, ...]]
    first: list[int]


def questions_of(requests: Sequence[EditRequest]) -> list[Question]:
    """Every prompt of every case.

    >>> [question.probe for question in questions_of([request])][:2]
    ['efficacy', 'paraphrase']
    """
    questions: list[Question] = []
    for case, request in enumerate(requests):
        fact = request.fact
        new, old = (request.target_new, *request.aliases), (fact.target, *request.aliases_before)
        asked = [("efficacy", fact.text, fact.target, new)]
        asked += [("paraphrase", text, fact.target, new) for text in request.paraphrases]
        asked += [("neighbourhood", text, fact.target, old) for text in fact.neighbours]
        asked += [("unrelated", o.prompt, o.target, (o.target, *o.aliases)) for o in request.unrelated]
        questions += [
            Question(case=case, probe=probe, subject=fact.subject, prompt=prompt, target_new=request.target_new,
                     target=target, answers=answers, joined=fact.joined and probe != "unrelated",
                     chat=fact.chat)
            for probe, prompt, target, answers in asked
        ]  # fmt: skip
    return questions


def check_questions(model: TransformerBridge, requests: Sequence[EditRequest]) -> None:
    """Whether every prompt of every case can be asked, with both of its answers.

    Raises:
        FactError: some cannot; the message names them.
    """
    wrong: list[str] = []
    for question in questions_of(requests):
        try:
            for target in (question.target_new, question.target):
                encode_pair(model, question.text(model), target, question.joined)
        except FactError as error:
            wrong.append(f"{requests[question.case].describe()}, {question.probe}: {error}")
    if wrong:
        raise FactError(f"{counted(len(wrong), 'prompt')} cannot be asked. Nothing was changed.\n{listed(wrong)}")


def ask(
    model: TransformerBridge, questions: Sequence[Question], how: Asking, see: See, *, progress: bool = False
) -> Answers:
    """Score both objects after every prompt and let the model speak; one pass serves all that is scored."""
    columns = ("case", "subject", "target", "target_new", "probe", "prompt")
    rows = pd.DataFrame({name: [getattr(question, name) for question in questions] for name in columns})
    pairs = [q.pair(model, q.target_new) for q in questions] + [q.pair(model, q.target) for q in questions]
    scores = score_targets(model, pairs, see=see, progress=progress)
    new, true = scores[: len(questions)], scores[len(questions) :]
    wanted = [new[i] if question.wants_new else true[i] for i, question in enumerate(questions)]
    for name, own in (("new", new), ("true", true)):
        rows[f"logprob_{name}"] = [score.mean_logprob for score in own]
    # Of the first token that tells the two apart, after those that both begin with; of the last where none does.
    told = [_first_told(n, t) for n, t in zip(new, true, strict=True)]
    for name, own in (("new", new), ("true", true)):
        rows[f"probability_{name}"] = [math.exp(score.of_token(at)[0]) for score, at in zip(own, told, strict=True)]
    for name, own in (("new", new), ("true", true)):
        rows[f"rank_{name}"] = [score.of_token(at)[1] for score, at in zip(own, told, strict=True)]
    # Where nothing should change, success means that the true answer still wins; a tie is a failure either way.
    rows["success"] = [
        n.mean_logprob > t.mean_logprob if q.wants_new else t.mean_logprob > n.mean_logprob
        for q, n, t in zip(questions, new, true, strict=True)
    ]
    for name, own in (("new", new), ("true", true)):
        rows[f"tokens_{name}"] = ["|".join(token_strings(model, torch.tensor(score.tokens))) for score in own]
    rows["token_accuracy"] = [score.token_accuracy for score in wanted]
    if how.generate:
        texts = [question.text(model) for question in questions]
        unique = list(dict.fromkeys(texts))
        answers = generate_greedily(model, unique, max_new_tokens=how.max_new_tokens, progress=progress)
        said = dict(zip(unique, answers, strict=True))
        rows["generation"] = [said[text] for text in texts]
        rows["exact_match"] = [exact_match(said[t], q.answers) for t, q in zip(texts, questions, strict=True)]
    return Answers(
        rows=rows,
        choices=[score.predicted for score in wanted],
        first=[s.predicted[at] for s, at in zip(new, told, strict=True)],
    )


def _first_told(one: Score, other: Score) -> int:
    place = first_difference(one.tokens, other.tokens)
    return min(len(one.tokens), len(other.tokens)) - 1 if place is None else place


def write_texts(
    model: TransformerBridge, requests: Sequence[EditRequest], how: Asking, *, progress: bool = False
) -> pd.DataFrame:
    """Long texts about every case's subject, and their n-gram entropy.

    Published records repeat a prompt to have several texts from it: each place in a case has its own seed.
    Cases without generation prompts continue the fact's own prompt. All texts of a case together have one
    similarity to the references, where there are any for it.
    """
    asked = [
        (case, how.seed + place, prompt)
        for case, request in enumerate(requests)
        for place, prompt in enumerate(request.generation_prompts or (request.fact.text,))
    ]
    texts = sample_texts(model, [prompt for *_, prompt in asked], [seed for _, seed, _ in asked], progress=progress)
    table = pd.DataFrame(
        {
            "case": [case for case, *_ in asked],
            "prompt": [prompt for *_, prompt in asked],
            "text": texts,
            "entropy": [ngram_entropy(text) for text in texts],
        }
    )
    if (references := how.references) is not None:
        own: list[list[str]] = [[] for _ in requests]
        for (case, *_), text in zip(asked, texts, strict=True):
            own[case].append(text)
        alike = [
            references.similarity(" ".join(written), about) if (about := references.about(request)) else float("nan")
            for request, written in zip(requests, own, strict=True)
        ]
        table["reference"] = [alike[case] for case, *_ in asked]
    return table


def check_references(requests: Sequence[EditRequest], how: Asking) -> None:
    """Whether there are references for some case.

    Raises:
        FactError: there are for none.
    """
    if how.references is not None and not any(how.references.about(request) for request in requests):
        raise FactError(
            f"references: {how.references} have no text for any of {len(requests)} cases. They are found by the "
            "fact's id."
        )
