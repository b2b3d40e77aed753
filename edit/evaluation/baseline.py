"""What the unedited model answers, measured once for any number of edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.evaluation.asking import (
    Answers,
    Asking,
    Question,
    Settings,
    ask,
    check_references,
    questions_of,
    with_settings,
    write_texts,
)
from edit.requests.requests import Cases, EditRequest, as_requests
from locate.engine.readout import read_logits
from locate.errors import FactError


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """The unedited model's answers to the prompts of some cases.

    Attributes:
        requests: the cases.
        asking: how they were asked.
        answers: one row per prompt of every case.
        texts: the long texts, where they were asked for.
        residuals: by prompt as it was put, the last block's output at its last token: all that is needed to have the
            whole distribution of the next token again, at a hundredth of its size.

    >>> before = baseline(model, [request])
    >>> edit.evaluate(model, update, [request], baseline=before).rows["model"].nunique()
    2
    """

    requests: tuple[EditRequest, ...]
    asking: Asking
    answers: Answers
    texts: pd.DataFrame | None
    residuals: Mapping[str, Float[Tensor, "d_model"]]

    @property
    def questions(self) -> list[Question]:
        """Every prompt of every case, in the order of the rows."""
        return questions_of(self.requests)

    def of_case(self, case: int) -> "Baseline":
        """The part of one case, which becomes case 0.

        >>> len(baseline(model, [request, request]).of_case(1).requests)
        1
        """
        rows = self.answers.rows
        own = np.flatnonzero(rows["case"] == case).tolist()
        texts = None if self.texts is None else self.texts.query("case == @case")
        return Baseline(
            requests=(self.requests[case],),
            asking=self.asking,
            answers=Answers(
                rows=rows.iloc[own].assign(case=0).reset_index(drop=True),
                choices=[self.answers.choices[place] for place in own],
                first=[self.answers.first[place] for place in own],
            ),
            texts=None if texts is None else texts.assign(case=0).reset_index(drop=True),
            residuals=self.residuals,
        )

    def check(self, requests: Sequence[EditRequest], asking: Asking) -> None:
        """Refuse to stand for other cases, or for the same asked in another way.

        Raises:
            FactError: the cases or a setting differ.
        """
        if self.requests != tuple(requests):
            raise FactError(
                f"baseline: was measured on {len(self.requests)} cases, which are not the {len(requests)} to evaluate. "
                "Measure it on these, by edit.baseline(model, cases)."
            )
        for name, value in vars(asking).items():
            if (own := getattr(self.asking, name)) != value:
                raise FactError(
                    f"baseline: was measured with {name}={own}, but {name}={value} is asked for now. "
                    "Use the same settings for both."
                )

    def logprobs(self, model: TransformerBridge, prompts: Sequence[str]) -> Float[Tensor, "prompt vocab"]:
        """The unedited model's distribution of the next token after each prompt."""
        with torch.no_grad():
            return read_logits(model, torch.stack([self.residuals[p] for p in prompts])).float().log_softmax(-1)


@with_settings
def baseline(
    model: TransformerBridge,
    cases: Cases,
    *,
    progress: bool = True,
    **settings: Unpack[Settings],
) -> Baseline:
    """Ask the model as it is now, to compare any number of edits with it.

    Args:
        model: a raw-mode bridge, unedited.
        cases: the facts that will be edited, with their new targets.
        generate: whether to let the model speak as well.
        max_new_tokens: at most, per generation.
        fluency: whether to let it write long texts as well (slow).
        seed: of those texts.
        references: what to compare those texts with (``load_reference_texts``).
        progress: whether to show bars.

    Raises:
        FactError: a case has no new target, or there are references for none.

    >>> before = baseline(model, [request], generate=False)
    >>> before.answers.rows["probe"].iloc[0]
    'efficacy'
    """
    return measure(model, as_requests(cases), Asking(**settings), progress=progress)


def measure(model: TransformerBridge, requests: Sequence[EditRequest], asking: Asking, *, progress: bool) -> Baseline:
    """The baseline of these requests."""
    check_references(requests, asking)
    residuals: dict[str, Tensor] = {}

    def keep(prompts: list[str], _: Tensor, states: Tensor) -> None:
        residuals.update(zip(prompts, states, strict=True))

    answers = ask(model, questions_of(requests), asking, keep, progress=progress)
    texts = write_texts(model, requests, asking, progress=progress) if asking.fluency else None
    return Baseline(requests=tuple(requests), asking=asking, answers=answers, texts=texts, residuals=residuals)
