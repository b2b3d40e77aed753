"""Did the edit take, does it generalise, and did it leave the rest alone?"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol, Unpack, runtime_checkable

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.change import Change, within, without
from edit.changes.updates import edits_in
from edit.evaluation.asking import Asking, Settings, ask, check_questions, with_settings, write_texts
from edit.evaluation.baseline import Baseline, measure
from edit.evaluation.results import Evaluation
from edit.evaluation.scoring import agreement
from edit.methods import EditingMethod
from edit.methods.where import Each, each_of
from edit.requests.requests import Cases, EditRequest, as_requests
from locate.engine.rows import Budget, in_parts

# Edits whose values are found, and kept, at a time.
_TOGETHER = 256


@runtime_checkable
class Fitting(Protocol):
    """Anything that fits a change, of this toolkit or not."""

    def fit(self, model: TransformerBridge, requests: Sequence[EditRequest], *, progress: bool = True) -> Change:
        """Find the change."""
        ...


@with_settings
def evaluate(
    model: TransformerBridge,
    update: Change,
    cases: Cases,
    *,
    baseline: Baseline | None = None,
    progress: bool = True,
    **settings: Unpack[Settings],
) -> Evaluation:
    """Ask the edited and the unedited model every prompt of the cases: their own, paraphrases, neighbours, unrelated.

    The model is left as it came, edited or not.

    Args:
        model: a raw-mode bridge.
        update: the edit to judge, applied to the model or not.
        cases: the edited facts, with their new targets.
        generate: whether to let the model speak as well (greedy, natural stop, exact match).
        max_new_tokens: at most, per generation.
        fluency: whether to let it write texts of a hundred tokens as well, sampled as published (slow).
        seed: of those texts.
        references: what to compare those texts with, for the published reference score (``load_reference_texts``).
        baseline: what ``edit.baseline`` measured on the same cases with the same settings, so that many edits
            need the unedited model's answers only once.
        progress: whether to show bars.

    Raises:
        FactError: a case has no new target, there are references for none, or the baseline is of other cases or
            settings.
        UpdateError: the update does not fit the model.

    >>> evaluation = edit.evaluate(model, update, [request])
    >>> evaluation.rows["model"].unique().tolist()
    ['edited', 'unedited']
    """
    requests = as_requests(cases)
    asking = Asking(**settings)
    if baseline is None:
        with without(model, update):
            baseline = measure(model, requests, asking, progress=progress)
    else:
        baseline.check(requests, asking)
    # Whole distributions of the unedited model are kept for some prompts at a time only.
    step = Budget.of(model).distributions
    starts = range(0, len(baseline.questions), step)
    parts = [
        _judge(model, update, baseline, slice(at, at + step), progress and len(starts) == 1)
        for at in tqdm(starts, "edited model", disable=not progress or len(starts) == 1, delay=1)
    ]
    edited = pd.concat(parts, ignore_index=True)
    texts = None
    if baseline.texts is not None:
        with within(model, update):
            written = write_texts(model, requests, asking, progress=progress)
        texts = pd.concat([written.assign(model="edited"), baseline.texts.assign(model="unedited")], ignore_index=True)
    named = [_missed(update, request) for request in requests]
    edited["missed"] = [named[case] for case in edited["case"]]
    plain = baseline.answers.rows.assign(model="unedited", missed=False, same_answer=True, same_tokens=1.0, kl=0.0)
    return Evaluation(rows=pd.concat([edited, plain], ignore_index=True), texts=texts)


@with_settings
def evaluate_each(
    model: TransformerBridge,
    method: EditingMethod | Fitting,
    cases: Cases,
    *,
    layer: Each | None = None,
    baseline: Baseline | None = None,
    progress: bool = True,
    **settings: Unpack[Settings],
) -> Evaluation:
    """Edit one case at a time on the unedited model, evaluate each edit, and put the results together.

    The unedited model is asked once for all cases, and a method of this toolkit optimises the values of all of them
    together, which changes nothing but speed. ``layer`` is where to edit instead of the method's own layers, as
    ``fit_each`` takes it: one place, or one for each case, such as their traces. The other settings are those of
    ``evaluate``. A method of one's own needs no more than ``fit``. The changes themselves are not kept: ``fit_each``
    gives them, to be evaluated one by one and pooled by ``Evaluation.join``.

    >>> evaluation = edit.evaluate_each(model, edit.ROME(layer=4), facts)       # doctest: +SKIP
    """
    requests = as_requests(cases)
    asking = Asking(**settings)
    check_questions(model, requests)
    if baseline is not None:
        baseline.check(requests, asking)
    # Before much is done, so that what cannot be edited is told at once.
    if (check := getattr(method, "check", None)) is not None:
        check(model, requests)
    updates = _each(model, method, requests, layer, progress)
    updates = chain([next(updates)], updates)  # the first shows whether layers and statistics fit
    if baseline is None:
        baseline = measure(model, requests, asking, progress=progress)
    pairs = tqdm(zip(requests, updates, strict=True), "edit and evaluate", len(requests), disable=not progress, delay=1)
    parts = [
        evaluate(model, update, [request], **vars(asking), baseline=baseline.of_case(case), progress=False)
        for case, (request, update) in enumerate(pairs)
    ]
    return Evaluation.join(parts)


def _each(
    model: TransformerBridge, method: EditingMethod | Fitting, requests: Sequence[EditRequest], layer: Each | None,
    progress: bool,
) -> Iterator[Change]:  # fmt: skip
    """A change for each request by itself, many found together where the method can."""
    together = getattr(method, "fit_each", None)
    places = each_of(layer, len(requests))
    shared = all(place is layer for place in places)
    for group in in_parts(range(len(requests)), _TOGETHER):
        asked, own = [requests[index] for index in group], [places[index] for index in group]
        if together is not None:
            where = {} if layer is None else {"layer": layer if shared else own}
            yield from together(model, asked, progress=progress, **where)
            continue
        for request, place in zip(asked, own, strict=True):
            where = {} if place is None else {"layer": place}
            yield method.fit(model, [request], progress=False, **where)


def _missed(update: Change, request: EditRequest) -> bool:
    """Whether the record of a change says that the value of a request did not reach its target."""
    wanted = (request.fact.prompt, request.fact.subject, request.target_new)
    edits = edits_in(getattr(update, "info", {}))
    return any(
        edit.get("missed", False) and (edit["prompt"], edit["subject"], edit["target_new"]) == wanted for edit in edits
    )


def _judge(model: TransformerBridge, update: Change, before: Baseline, part: slice, progress: bool) -> pd.DataFrame:
    """The edited model's rows for some of the questions."""
    questions = before.questions[part]
    texts = [question.text(model) for question in questions]
    prompts = list(dict.fromkeys(texts))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    drift: dict[str, float] = {}
    with without(model, update):
        reference = before.logprobs(model, prompts)

    def compare(seen: list[str], logprobs: Tensor, _: Tensor) -> None:
        own = reference[[place[prompt] for prompt in seen]]
        kl = (own.exp() * (own - logprobs)).sum(-1).clamp_min(0)  # below 0 only by rounding
        drift.update(zip(seen, kl.tolist(), strict=True))

    with within(model, update):
        after = ask(model, questions, before.asking, compare, progress=progress)
    firsts = zip(before.answers.first[part], after.first, strict=True)
    choices = zip(before.answers.choices[part], after.choices, strict=True)
    return after.rows.assign(
        model="edited",
        same_answer=[one == other for one, other in firsts],
        same_tokens=[agreement(one, other) for one, other in choices],
        kl=[drift[text] for text in texts],
    )
