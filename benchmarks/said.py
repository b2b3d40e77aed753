"""Is an edit said? ROME's choices side by side on shipped facts, or on a public data set that chose nothing.

    python -m benchmarks.said [--facts 3] [--variants before default] [--layers 4] [--data counterfact_flat_1000.json]

Each fact is edited alone on the unedited model. Values of all facts are found together, and every edit answers its own
prompts: in one pass each row has its own edit's rank-one change, which is added to what the down-projection gives. The
shipped facts are those after the 50 on which ``benchmarks.quality`` judges (``--skip``). Prints percentages over facts
with 95% intervals; the rows are kept as CSV.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

import edit
import locate
from benchmarks.family import _PUBLISHED, usable
from benchmarks.quality import split
from benchmarks.timing import machine, seconds
from edit.evaluation.asking import Question, questions_of
from edit.evaluation.generation import _decode, exact_match
from edit.evaluation.scoring import _read, encode_pair
from edit.hyperparameters import hyperparameters
from edit.names import SAMPLED
from edit.requests.requests import EditRequest
from edit.values.contexts import Contexts
from edit.values.objective import ENDING_OBJECTIVE, ValueObjective
from locate.facts.prompts import encode_text
from locate.model.weights import down_projection
from locate.sites.table import hook_name


@hyperparameters
class EndsIn(edit.ROME):
    """The answer must end in one token and in nothing else: this mark, or what ends a text, as LocFT-BF has it."""

    mark: str | None = None

    def contexts_of(self, model: Any, request: EditRequest, prefixes: Sequence[str]) -> Contexts:
        """See ``LocateThenEdit.contexts_of``."""
        tokenizer = model.tokenizer
        (end,) = [tokenizer.eos_token_id] if self.mark is None else tokenizer(self.mark)["input_ids"]
        return replace(super().contexts_of(model, request, prefixes), endings=torch.tensor([end]))


_ALONE: dict[str, Any] = {"objective": ValueObjective(), "openings": ()}
_ASKED_FOR = replace(ENDING_OBJECTIVE, end=1e-9)  # and not waited for
_OPENINGS = edit.ROME().openings
VARIANTS: dict[str, Any] = {
    "published": lambda **given: edit.ROME(original=True, objective=_PUBLISHED, openings=(), **given),
    "before": lambda **given: edit.ROME(bare_weight=0.5, **_ALONE, **given),
    "even": lambda **given: edit.ROME(**_ALONE, **given),
    "even, EOS": lambda **given: EndsIn(openings=(), **given),
    "even, full stop": lambda **given: EndsIn(mark=".", openings=(), **given),
    "even, end asked for": lambda **given: edit.ROME(objective=_ASKED_FOR, openings=(), **given),
    "even, end": lambda **given: edit.ROME(openings=(), **given),
    "even, end, first opening": lambda **given: edit.ROME(openings=_OPENINGS[:1], **given),
    "even, end, second opening": lambda **given: edit.ROME(openings=_OPENINGS[1:2], **given),
    "even, end, third opening": lambda **given: edit.ROME(openings=_OPENINGS[2:], **given),
    "before, end, openings": lambda **given: edit.ROME(bare_weight=0.5, **given),
    "default": lambda **given: edit.ROME(**given),
    "default, KL 0.25": lambda **given: edit.ROME(objective=replace(ENDING_OBJECTIVE, kl_weight=0.25), **given),
    "default, KL 1": lambda **given: edit.ROME(objective=replace(ENDING_OBJECTIVE, kl_weight=1.0), **given),
    "default, P 0.95": lambda **given: edit.ROME(objective=replace(ENDING_OBJECTIVE, probability=0.95), **given),
    "default, ten prefixes": lambda **given: edit.ROME(prefix_lengths=((5, 10),), **given),
}
_NEW_TOKENS = 12
_ROWS = 64
_SHOWN = {
    "efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS", "exact match": "said",
    "paraphrase exact match": "paraphrases said", "locality": "neighbour's answer stays",
    "unrelated locality": "other relation's answer stays",
}  # fmt: skip


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="CounterFact, in place of the shipped facts")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--known-to", default="smollm2-135m", help="the model that knows the shipped facts")
    parser.add_argument("--device", default=None)
    parser.add_argument("--skip", type=int, default=50, help="shipped facts to leave to benchmarks.quality")
    parser.add_argument("--facts", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[4])
    parser.add_argument("--variants", nargs="+", default=["before", "default"], choices=list(VARIANTS))
    parser.add_argument("--corpus", default=SAMPLED, help="for key statistics")
    parser.add_argument("--out", type=Path, default=Path("runs/said"))
    given = parser.parse_args()
    model = locate.load_model(given.model, **({} if given.device is None else {"device": given.device}))
    if given.data is None:
        facts = split(given.skip + given.facts, 0, given.known_to)[0][given.skip :]
        requests = [edit.EditRequest(fact) for fact in facts]
    else:
        requests, _ = usable(model, edit.load_counterfact(given.data), given.facts)
    print(f"{machine()}; {given.model}; {len(requests)} facts of {given.data or 'those that ship'}", flush=True)
    before = judge(model, requests)
    for layer in given.layers:
        for name in given.variants:
            method = VARIANTS[name](layer=layer, corpus=given.corpus)
            method.statistics_for(model)
            values: list[Any] = []
            took = seconds(lambda m=method, v=values: v.extend(m.values_for(model, requests)))
            updates = list(method.fit_each(model, requests, values=values, progress=False))
            rows = judge(model, requests, updates, layer).assign(model="edited")
            rows["same_answer"] = rows["top"] == before["top"]
            given.out.mkdir(parents=True, exist_ok=True)
            where = "shipped" if given.data is None else given.data.stem
            rows.to_csv(given.out / f"{where}-{layer}-{name.replace(', ', '-').replace(' ', '-')}.csv", index=False)
            steps = sum(len(value.losses) - 1 for value in values) / len(values)
            missed = sum(value.missed for value in values)
            print(
                f"layer {layer}, {name}: {line(rows)}; {steps:.0f} steps, {missed} missed, "
                f"{took / len(requests):.2f} s a value", flush=True,
            )  # fmt: skip


def line(rows: pd.DataFrame) -> str:
    """What a variant came to."""
    table: Any = edit.Evaluation(rows=rows).summary()
    cells = []
    for key, short in _SHOWN.items():
        if key in table.index:
            own = table.loc[key]
            bounds = "" if pd.isna(own["edited low"]) else f" [{own['edited low']:.0f}, {own['edited high']:.0f}]"
            cells.append(f"{short} {own['edited']:.1f}{bounds}")
    return "; ".join(cells)


def judge(
    model: Any, requests: Sequence[EditRequest], updates: Sequence[edit.WeightUpdate] = (), layer: int = 0
) -> pd.DataFrame:
    """What each edit answers to its own prompts, or the unedited model where there are no updates.

    >>> rows = judge(model, [request], [edit.ROME(layer=4).fit(model, [request])], 4)
    >>> rows["probe"].iloc[0], bool(rows["success"].iloc[0])
    ('efficacy', True)
    """
    questions = [*questions_of(requests), *_other_relations(requests)]
    factors = _factors(model, updates, layer) if updates else None
    owners = torch.tensor([question.case for question in questions])
    rows = pd.DataFrame(
        {"case": owners, "probe": [q.probe for q in questions], "prompt": [q.prompt for q in questions]}
    )
    scores = _scores(model, questions, owners, layer, factors)
    for name in ("new", "true", "top", "rank_new"):
        rows[name] = [one[name] for one in scores]
    rows["success"] = [
        new > true if question.wants_new else true > new
        for question, new, true in zip(questions, rows["new"], rows["true"], strict=True)
    ]
    rows["generation"] = _said(model, questions, owners, layer, factors)
    rows["exact_match"] = [exact_match(s, q.answers) for s, q in zip(rows["generation"], questions, strict=True)]
    return rows


def _other_relations(requests: Sequence[EditRequest]) -> list[Question]:
    return [
        Question(case=case, probe="unrelated", subject=fact.subject, prompt=fact.fill(other.prompt),
                 target_new=request.target_new, target=other.target, answers=(other.target,))
        for case, request in enumerate(requests) for fact in [request.fact] for other in fact.other_relations
    ]  # fmt: skip


Factors = tuple[Float[Tensor, "edit d_model"], Float[Tensor, "edit d_mlp"]]


def _factors(model: Any, updates: Sequence[edit.WeightUpdate], layer: int) -> Factors:
    down = down_projection(model, layer)
    own = [update.deltas[down.name] for update in updates]
    lefts, rights = torch.stack([one.left[:, 0] for one in own]), torch.stack([one.right[0] for one in own])
    device = down.parameter.device
    return (rights.to(device), lefts.to(device)) if down.transposed else (lefts.to(device), rights.to(device))


@contextmanager
def _each_its_own(model: Any, layer: int, factors: Factors | None, owners: Tensor) -> Iterator[None]:
    """Every row of the passes within under the change of its own edit."""
    if factors is None:
        yield
        return
    lefts, rights = (factor[owners.to(factor.device)] for factor in factors)
    doses: list[Tensor] = []

    def read(value: Tensor, hook: object) -> None:
        doses[:] = [einsum(value.float(), rights, "row position d, row d -> row position")]

    def write(value: Tensor, hook: object) -> Tensor:
        return value + (rearrange(doses[0], "row position -> row position 1") * lefts[:, None]).to(value)

    hooks = [(hook_name("down_in", layer), read), (hook_name("down_out", layer), write)]
    with model.hooks(fwd_hooks=hooks):
        yield


def _scores(
    model: Any, questions: Sequence[Question], owners: Tensor, layer: int, factors: Factors | None
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{} for _ in questions]
    asked = [(i, name) for i in range(len(questions)) for name in ("new", "true")]
    for start in range(0, len(asked), _ROWS):
        part = asked[start : start + _ROWS]
        rows, places, targets = [], [], []
        for row, (index, name) in enumerate(part):
            question = questions[index]
            answer = question.target_new if name == "new" else question.target
            prompt, target = encode_pair(model, question.prompt, answer)
            rows.append(torch.cat([prompt, target[:-1]]))
            places += [(row, len(prompt) - 1 + step) for step in range(len(target))]
            targets.append(target)
        with _each_its_own(model, layer, factors, owners[[index for index, _ in part]]):
            logprobs, _ = _read(model, rows, places)
        own = logprobs.cpu().split([len(target) for target in targets])
        for (index, name), scores, target in zip(part, own, targets, strict=True):
            found[index][name] = float(scores.gather(1, target[:, None]).mean())
            if name == "new":
                found[index]["top"] = int(scores[0].argmax())
                found[index]["rank_new"] = int((scores[0] > scores[0, target[0]]).sum()) + 1
    return found


def _said(model: Any, questions: Sequence[Question], owners: Tensor, layer: int, factors: Factors | None) -> list[str]:
    encoded = [encode_text(model, question.prompt) for question in questions]
    texts = [""] * len(questions)
    for length in sorted({len(one) for one in encoded}):
        alike = [index for index, one in enumerate(encoded) if len(one) == length]
        for start in range(0, len(alike), 4 * _ROWS):
            part = alike[start : start + 4 * _ROWS]
            with _each_its_own(model, layer, factors, owners[part]):
                made = _decode(model, torch.stack([encoded[index] for index in part]), _NEW_TOKENS)
            for index, text in zip(part, made, strict=True):
                texts[index] = text
    return texts


if __name__ == "__main__":
    main()
