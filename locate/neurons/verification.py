"""Whether a fact's neurons carry its answer: silenced and amplified, beside random sets of as many neurons."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET, Branch, FrozenRun, Scaled, freeze
from locate.errors import FactError, LocateError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt
from locate.model.weights import down_projection
from locate.neurons.asking import AskedFact, ask
from locate.neurons.effects import ON, NeuronEffects, check_factors
from locate.neurons.sets import Place, Sets, random_sets, sets_of
from locate.sites.site import hook_name

_METRICS = ("log_probability", "probability")


def verify_neurons(
    model: TransformerBridge,
    facts: Sequence[Fact] | Fact,
    neurons: Sets,
    *,
    factors: Sequence[float] = (0.0, 2.0),
    random: int = 20,
    share: float = 0.5,
    unrelated: Sequence[Fact] | int = 3,
    position: str = "last",
    seed: int = 0,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> NeuronEffects:
    """Suppress (×0) and amplify (×2) each fact's neurons, and random sets of as many neurons in the same layers.

    As in Dai et al. 2022 (arXiv:2104.08696), activations are multiplied where the answer is predicted, whatever they
    are by then. Effects are measured on the fact's own prompt, on its paraphrases, and on unrelated facts' prompts,
    with their own answers.

    Args:
        model: a raw-mode bridge.
        facts: one or several.
        neurons: the scores of these facts, whose refined sets are taken (a fact without one is left out with a
            warning); or one set of sites for all; or a set for each.
        factors: by which activations are multiplied.
        random: how many random sets each fact's is compared with.
        share: of the prompts, for the refined sets.
        unrelated: other facts, or how many are drawn for each fact from those given: of another answer and, where both
            name theirs, another relation.
        position: ``"last"``, where the answer is predicted, or ``"all"``.
        seed: of random sets and of what is drawn.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: there are no facts, or a prompt cannot be used.
        SiteError: a site is no neuron of the model, or no fact has a refined set.
        LocateError: factors, numbers or the position are none.
        ModelError: a layer has no single MLP.

    >>> effects = locate.verify_neurons(model, [fact], neurons, random=2, progress=False)
    >>> float(effects.effect.sel(on="fact", factor=0).squeeze()) == float(effects.effect.sel(on="fact")[0, 0])
    True
    """
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    if not facts:
        raise FactError("There are no facts to verify neurons of; give at least one.")
    factors = check_factors(factors)
    if random < 0 or position not in ("last", "all"):
        raise LocateError(f"random must be 0 or more, position 'last' or 'all'; found {random} and {position!r}.")
    places = sets_of(model, facts, neurons, share=share)
    chosen = list(places)
    widths = {layer: down_projection(model, layer).key_size for own in places.values() for layer, _ in own}
    sets = {
        index: [own, *random_sets(own, widths, random, np.random.default_rng([seed, index]))]
        for index, own in places.items()
    }
    asked = {index: ask(model, facts[index]) for index in chosen}
    others = _unrelated(model, facts, asked, unrelated, seed)
    questions = _questions(asked, others)
    shape = (len(ON), len(chosen), len(factors), 1 + random)
    sums = {name: torch.zeros(shape, dtype=torch.float32) for name in _METRICS}
    clean = {name: torch.zeros(shape[:2], dtype=torch.float32) for name in _METRICS}
    count = torch.zeros(shape[:2], dtype=torch.float32)
    for one in tqdm(questions, "verifying neurons", unit="prompt", disable=not progress, delay=1):
        run = freeze(model, one.prompt.tokens[None], budget=budget)
        base = run.logits.float().log_softmax(-1)[0, one.answer].cpu()
        start = run.tokens.shape[1] - 1 if position == "last" else 0
        for index, kind, found in _scaled(run, start, one, sets, factors):
            at = (kind, chosen.index(index))
            count[at] += 1
            for name, make in zip(_METRICS, (torch.clone, torch.exp), strict=True):
                sums[name][at] += make(found)
                clean[name][at] += make(base)
    # No prompt of a kind: 0 ∕ 0.
    values = torch.stack([sums[name] / count[..., None, None] for name in _METRICS])
    data = xr.Dataset(
        {
            "values": (("metric", "on", "fact", "factor", "set"), values.numpy()),
            "clean": (("metric", "on", "fact"), torch.stack([clean[name] / count for name in _METRICS]).numpy()),
        },
        coords={
            "metric": list(_METRICS), "on": list(ON), "fact": [facts[index].text for index in chosen],
            "factor": factors, "set": range(1 + random),
        },
    )  # fmt: skip
    info = {
        "model": str(model.cfg.model_name), "random": random, "position": position, "seed": seed,
        "neurons": [places[index] for index in chosen], "left_out": len(facts) - len(chosen),
        "answer_tokens": [asked[index].spelled for index in chosen],
        "metrics": {"log_probability": "log p(answer) [nat]", "probability": "p(answer)"},
    }  # fmt: skip
    return NeuronEffects(data=data, metric="log_probability", info=info)


@dataclass(kw_only=True, eq=False)
class _Question:
    """A prompt with its answer, and for which facts it is what kind of prompt."""

    prompt: Prompt
    answer: int
    uses: list[tuple[int, int]] = field(default_factory=list)


def _questions(asked: dict[int, AskedFact], others: dict[int, list[AskedFact]]) -> list[_Question]:
    """Each prompt once, however many facts ask it."""
    found: dict[tuple[str, int], _Question] = {}
    for index, own in asked.items():
        kinds = [(own, own.prompts[:1]), (own, own.prompts[1:]), *((other, other.prompts) for other in others[index])]
        for kind, (one, prompts) in enumerate(kinds):
            for prompt in prompts:
                question = found.setdefault((prompt.text, one.answer), _Question(prompt=prompt, answer=one.answer))
                question.uses.append((index, min(kind, ON.index("unrelated"))))
    return list(found.values())


def _scaled(
    run: FrozenRun, start: int, question: _Question, sets: dict[int, list[list[Place]]], factors: Sequence[float]
) -> list[tuple[int, int, Float[Tensor, "factor set"]]]:
    """The answer's log-probability under each factor and set of each fact that asks; all facts in one batch."""
    branches = [_branch(run, start, sets[index], factors) for index, _ in question.uses]

    def measure(logits: Tensor, _rows: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)[:, question.answer]

    found = run.resume(start, branches, measure=measure).cpu().split([len(branch) for branch in branches])
    return [(index, kind, one.view(len(factors), -1)) for (index, kind), one in zip(question.uses, found, strict=True)]


def _branch(run: FrozenRun, start: int, sets: Sequence[Sequence[Place]], factors: Sequence[float]) -> Branch:
    """A row for each factor and set, which enters at the first layer of the set."""
    at: dict[int, list[tuple[int, int, float]]] = {}
    rows = [(factor, own) for factor in factors for own in sets]
    for row, (factor, own) in enumerate(rows):
        for layer, neuron in own:
            at.setdefault(layer, []).append((row, neuron, factor))
    scaled = {}
    for layer, several in at.items():
        which, units, by = zip(*several, strict=True)
        scaled[hook_name("neuron", layer)] = Scaled(
            rows=torch.tensor(which), units=torch.tensor(units), factors=torch.tensor(by, dtype=torch.float32)
        )
    first = min(at)
    return Branch(
        layer=first, rows=torch.zeros(len(rows), dtype=torch.long),
        states=run.residuals[first][:, start:].expand(len(rows), -1, -1), interventions=scaled,
    )  # fmt: skip


def _unrelated(
    model: TransformerBridge, facts: Sequence[Fact], asked: dict[int, AskedFact], unrelated: Sequence[Fact] | int,
    seed: int,
) -> dict[int, list[AskedFact]]:  # fmt: skip
    """For each fact, others that have nothing to do with it."""
    if not isinstance(unrelated, int):
        every = [ask(model, fact, own=True) for fact in unrelated]
        return dict.fromkeys(asked, every)
    found: dict[int, list[AskedFact]] = {}
    pool = [ask(model, fact, own=True) for fact in facts] if unrelated else []
    for index, own in asked.items():
        apart = [one for one in pool if one.answer != own.answer and not _related(one.fact, own.fact)]
        order = np.random.default_rng([seed, index, 1]).permutation(len(apart))[:unrelated]
        found[index] = [apart[at] for at in order]
    return found


def _related(one: Fact, other: Fact) -> bool:
    return one.relation is not None and one.relation == other.relation
