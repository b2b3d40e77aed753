"""The joint of the toolkit: a run that is changed, a run that states come from, and what both are asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.corruption import Corruption, describe, run_corrupted
from locate.contrast.measures import as_metrics, usual_metric
from locate.contrast.metrics import Metric, Metrics, joint_measure, reading_of
from locate.contrast.pairs import Pair, Text, check_direction, make_pairs
from locate.contrast.rows import Rows
from locate.engine import FrozenRun, Measure, freeze_alike, freeze_together
from locate.errors import FactError, SiteError
from locate.facts.prompts import token_strings
from locate.facts.questions import Questions
from locate.names import DEFAULT_BUDGET, Direction
from locate.showing import Shown, first_of, shown


class Ends(NamedTuple):
    """What metrics are in the two runs themselves, row by row: what changes lead from and to."""

    target: Float[Tensor, "row metric"]
    source: Float[Tensor, "row metric"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast(Shown):
    """Two runs of the same questions, to give one of them states of the other and see what becomes of the answer.

    Clean against corrupted, in both directions, and a base against an edited model are all this.

    Attributes:
        target: the run that is changed.
        source: the run that states come from; it has kept those that are asked for.
        rows: which of their rows belong together, and what each of these asks.
        questions: what is asked.
        first: the first position where the two can differ; what is changed before it changes nothing.
        info: how the runs were made, for the record of a result.

    >>> contrast = locate.Contrast.of(model, fact, locate.TokenSwap("The Colosseum"))
    >>> corrupted, clean = contrast.ends("probability")
    >>> bool(clean != corrupted), contrast.reversed().target is contrast.source
    (True, True)
    """

    target: FrozenRun
    source: FrozenRun
    rows: Rows
    questions: Questions
    first: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = self.target.tokens.shape[1], self.source.tokens.shape[1]
        if lengths[0] != lengths[1]:
            raise FactError(f"Two runs give each other states position by position; found {lengths} tokens.")

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        clean: Text | Sequence[Text],
        corrupt: Corruption | Text | Sequence[Text],
        *,
        direction: Direction | str = "restore",
        keep: Sequence[str] = (),
        keep_target: Sequence[str] = (),
        metric: Metrics = (),
        budget: int = DEFAULT_BUDGET,
    ) -> "Contrast":
        """Run clean and corrupted prompts.

        Args:
            model: a raw-mode bridge.
            clean: a fact, a text, or token ids; or a list of those with as many tokens each.
            corrupt: the same, or a corruption of the clean fact's subject.
            direction: ``"restore"`` makes the corrupted run the target, ``"break"`` the clean one.
            keep: hook points whose states the source keeps.
            keep_target: those that the target keeps.
            metric: what will be asked, where that is of whole answers or of two that begin alike: such need tokens
                behind the prompts.
            budget: the most tokens in one pass.

        Raises:
            FactError: clean and corrupted prompts do not fit each other.
            SiteError: a hook point that the model does not have, or an unknown direction.

        >>> locate.Contrast.of(model, fact, locate.TokenSwap("The Colosseum"), keep=["blocks.5.hook_mlp_out"]).first
        1
        """
        metrics = as_metrics(metric) if metric else ()
        return cls.of_pairs(
            model, make_pairs(model, clean, corrupt, metrics), direction=direction, keep=keep, keep_target=keep_target,
            metrics=metrics, budget=budget, corruption=corrupt if isinstance(corrupt, Corruption) else None,
        )  # fmt: skip

    @classmethod
    def of_pairs(
        cls,
        model: TransformerBridge,
        pairs: Sequence[Pair],
        *,
        direction: Direction | str = "restore",
        keep: Sequence[str] = (),
        keep_target: Sequence[str] = (),
        metrics: Sequence[Metric] = (),
        budget: int = DEFAULT_BUDGET,
        corruption: Corruption | None = None,
    ) -> "Contrast":
        """The same of prompts that are encoded already."""
        restoring = check_direction(direction) == "restore"
        keep_clean, keep_corrupted = (keep, keep_target) if restoring else (keep_target, keep)
        prompts = tuple(pair.clean for pair in pairs)
        reading = reading_of(model, metrics, prompts, [pair.target for pair in pairs])
        each = torch.arange(len(pairs))
        rows = reading.rows(torch.stack([prompt.tokens for prompt in prompts]), each)
        # Both, as what the corrupted rows begin with is the clean ones'.
        kept = list(dict.fromkeys([*keep_clean, *keep_corrupted]))
        clean = freeze_together(model, rows, keep=kept, at=reading.at(each), budget=budget)
        tokens, hooks = run_corrupted([pair.corrupted for pair in pairs], prompts)
        owner = each.repeat_interleave(torch.tensor([len(pair.corrupted.tokens) for pair in pairs]))
        corrupted = freeze_alike(
            clean, owner, reading.rows(tokens, owner), hooks=hooks, keep=keep_corrupted, at=reading.at(owner)
        )
        clean = replace(clean, kept={name: clean.kept[name] for name in keep_clean})
        # Without a known answer, what the model says itself.
        following = reading.next_token(clean.logits, each)
        said = following.argmax(-1).tolist()
        answers = [said[i] if pair.answer is None else pair.answer for i, pair in enumerate(pairs)]
        questions = Questions(
            model=model, prompts=prompts, answers=torch.tensor(answers), clean=following, whole=reading.whole,
            targets_new=tuple(pair.target_new for pair in pairs),
        )  # fmt: skip
        contrast = cls(
            target=corrupted, source=clean, questions=questions, first=min(pair.first for pair in pairs),
            rows=Rows(target=torch.arange(len(owner)), source=owner, question=owner),
            info={
                "corrupt_tokens": _shared_tokens([token_strings(model, pair.corrupted.tokens[0]) for pair in pairs]),
                **(describe(corruption) if corruption is not None else {"corruption": "another prompt"}),
            },
        )  # fmt: skip
        return contrast if restoring else contrast.reversed()

    @classmethod
    def between(cls, target: FrozenRun, source: FrozenRun, questions: Questions, *, first: int = 0) -> "Contrast":
        """Two runs row by row, each row with a question of its own; or one row with all of the other run.

        Raises:
            FactError: they have not as many rows, or not as many tokens.
        """
        rows = Rows.of(len(target.tokens), len(source.tokens))
        return cls(target=target, source=source, rows=rows, questions=questions, first=first)

    def reversed(self) -> "Contrast":
        """The other direction: the source's run is changed, and the target's gives states."""
        return replace(self, target=self.source, source=self.target, rows=self.rows.reversed())

    def only(self, wanted: Bool[Tensor, "row"]) -> "Contrast":
        """Some of the rows."""
        return replace(self, rows=self.rows.only(wanted))

    @property
    def by_weights(self) -> bool:
        """Whether its runs compute with other weights, as before and after an edit."""
        target, source = self.target, self.source
        return target.model is not source.model or bool(target.weights.differing(source.weights))

    def metrics(self, wanted: Metrics | None = None) -> tuple[Metric, ...]:
        """Metrics as objects; by default the one that the questions allow.

        Raises:
            LocateError: an unknown name, something that is no metric, or two of one name.
        """
        return as_metrics(usual_metric(self.questions) if wanted is None else wanted)

    def measure(self, metrics: Metrics | None = None) -> Measure:
        """What turns logits of the target's rows into ``row metric`` numbers.

        Raises:
            LocateError: a metric that does not work with these questions.
        """
        return self._measure(self.target, self.rows.target, metrics)

    def ends(self, metrics: Metrics | None = None) -> Ends:
        """What metrics are in target and source themselves, row by row.

        Raises:
            LocateError: a metric does not work, or is not finite.

        >>> contrast = locate.Contrast.of(model, fact, locate.TokenSwap("The Colosseum"))
        >>> contrast.ends("probability").source.shape
        torch.Size([1, 1])
        """
        return Ends(
            target=self._own(self.target, self.rows.target, metrics),
            source=self._own(self.source, self.rows.source, metrics),
        )

    def mean(
        self, values: Float[Tensor, "*site row metric"]
    ) -> tuple[Float[Tensor, "*site metric"], Float[Tensor, "*site metric"]]:
        """The mean over all rows, and its standard error: over questions, or over the rows of a single one."""
        return mean_and_error(self.by_question(values))

    def by_question(self, values: Float[Tensor, "*site row metric"]) -> Float[Tensor, "*site question metric"]:
        """The mean over each question's rows, so that each counts once; of a single question its rows themselves."""
        asked = self.rows.question.unique()
        if len(asked) == 1:
            return values
        return torch.stack([values[..., self.rows.question == one, :].mean(-2) for one in asked], dim=-2)

    def check_kept(self, source: Sequence[str], target: Sequence[str] = ()) -> None:
        """Whether the two have kept what a change of them needs.

        Raises:
            SiteError: a state was not kept; the message names it.
        """
        for role, run, names in (("source", self.source, source), ("target", self.target, target)):
            if missing := [name for name in names if name not in run.kept]:
                asked = "keep" if role == "source" else "keep_target"
                raise SiteError(
                    f"The {role} of this contrast did not keep {missing[0]!r}, which is needed here. Make it with "
                    f"{asked}=[…], with these hook points: {', '.join(missing)}."
                )

    @property
    def record(self) -> dict[str, Any]:
        """What was asked of whom, for the record of a result."""
        model, asked = self.questions.model, self.questions
        return {
            "model": str(model.cfg.model_name), "pairs": len(asked.prompts), "prompt": asked.texts[0],
            # What all prompts share; where they differ, no one's own word stands for the others'.
            "answer": _shared([model.tokenizer.decode([answer]) for answer in asked.answers.tolist()]) or " answer",
            "answer_tokens": _shared([self._spelled(index) for index in range(len(asked.prompts))]),
            "target_new": _shared(asked.targets_new),
            "subject_span": _shared([list(prompt.subject_span) for prompt in asked.prompts]) or [0, 0],
            "tokens": _shared_tokens([token_strings(model, prompt.tokens) for prompt in asked.prompts]),
            "corruption": "other weights" if self.by_weights else "another prompt", **self.info,
        }  # fmt: skip

    def _named(self) -> str:
        return f"Contrast of {self.questions.model.cfg.model_name}, {self.record['corruption']}"

    def _headline(self) -> Mapping[str, str]:
        tokens, n = self.target.tokens.shape[1], len(self.questions.prompts)
        return {
            "on": first_of(self.questions.texts),
            "sizes": f"questions {n} × rows {len(self.rows)} × tokens {tokens}, alike before position {self.first}",
            "found": ", ".join(
                f"{one.name} {shown(float(target))} in the target, {shown(float(source))} in the source"
                for one, target, source in zip(self.metrics(), *(end.mean(0) for end in self.ends()), strict=True)
            ),
        }

    def _spelled(self, index: int) -> list[str]:
        """An answer's tokens: all of it where they are known, else its first."""
        asked = self.questions
        whole = (
            asked.whole[index] if asked.whole else torch.cat([asked.prompts[index].forced, asked.answers[index, None]])
        )
        return token_strings(asked.model, whole)

    def _measure(self, run: FrozenRun, rows: Int[Tensor, "row"], metrics: Metrics | None) -> Measure:
        asked = torch.zeros(len(run.tokens), dtype=torch.long)
        asked[rows] = self.rows.question
        return joint_measure(self.metrics(metrics), self.questions, asked)

    def _own(self, run: FrozenRun, rows: Int[Tensor, "row"], metrics: Metrics | None) -> Float[Tensor, "row metric"]:
        return self._measure(run, rows, metrics)(run.logits, run.at[0])[rows].cpu()


def mean_and_error(
    values: Float[Tensor, "*site question metric"],
) -> tuple[Float[Tensor, "*site metric"], Float[Tensor, "*site metric"]]:
    """The mean over questions, and its standard error, NaN of a single one.

    >>> [float(one) for one in mean_and_error(torch.tensor([[1.0], [3.0]]))]
    [2.0, 1.0]
    """
    n = values.shape[-2]
    mean = reduce(values, "... question metric -> ... metric", "mean")
    return mean, values.std(-2) / n**0.5 if n > 1 else torch.full_like(mean, float("nan"))


def as_contrast(
    model: TransformerBridge,
    clean: Text | Sequence[Text] | Contrast,
    corrupt: Corruption | Text | Sequence[Text] | None,
    *,
    direction: Direction | str = "restore",
    keep: Sequence[str] = (),
    keep_target: Sequence[str] = (),
    metric: Metrics | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Contrast:
    """What users give, run; or their own contrast, whose source is the clean run, turned in this direction.

    Raises:
        FactError: there is nothing to tell the clean prompt from, or a contrast is of another model.
        SiteError: a contrast whose runs did not keep what is asked for.
    """
    if isinstance(clean, Contrast):
        contrast = clean if check_direction(direction) == "restore" else clean.reversed()
        if contrast.target.model is not model:
            raise FactError("The contrast's runs are of another model than the one given; give theirs.")
        contrast.check_kept(keep, keep_target)
        return contrast
    if corrupt is None:
        raise FactError("corrupt: give a corruption or another prompt, or a Contrast in place of both.")
    return Contrast.of(
        model,
        clean,
        corrupt,
        direction=direction,
        keep=keep,
        keep_target=keep_target,
        metric=metric or (),
        budget=budget,
    )


def _shared(values: Sequence[Any]) -> Any:
    """What all of them are; None where they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _shared_tokens(rows: Sequence[Sequence[str]]) -> list[str]:
    """Labels of positions: the token that all prompts have there, or the position's number."""
    return [_shared(column) or f" [{place}]" for place, column in enumerate(zip(*rows, strict=True))]
