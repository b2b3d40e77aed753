"""Knowledge neurons: MLP neurons whose activation a fact's answer depends on, by integrated gradients."""

from collections.abc import Sequence

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET, Branch, FrozenRun, Pin, freeze
from locate.engine.rows import Budget, cut
from locate.errors import FactError, LocateError, ModelError
from locate.facts.facts import Fact
from locate.model.parameters import frozen_parameters
from locate.model.precision import at_least_float32
from locate.model.running import running
from locate.model.weights import check_down_projections
from locate.neurons.asking import AskedFact, Negatives, ask, negatives_of
from locate.neurons.integration import RULES, Answer, Asked, Attribution
from locate.neurons.scores import LEAST_CHANGE, NeuronScores, check_threshold, passing_of
from locate.sites.site import hook_name

_STEPS = {"adaptive": 60, "right": 20}


def knowledge_neurons(
    model: TransformerBridge,
    facts: Sequence[Fact] | Fact,
    *,
    prefixes: Sequence[str] = (),
    steps: int | None = None,
    rule: str = "adaptive",
    threshold: float = 0.2,
    negatives: Negatives | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> NeuronScores:
    """Attribute each fact's answer to every MLP neuron (Dai et al. 2022, arXiv:2104.08696), all layers in one sweep.

    Attr(w) = w ∫ ∂P(α·w)/∂w dα over α from 0 to 1 at the prompt's last position, with P the probability of the answer's
    first token. What is attributed to a layer adds up to P(w) − P(0); by how much it misses that is in the result
    (``missed``; of each prompt's worst layer in ``info["missed"]``).
    A fact is asked by its prompt and its paraphrases; what all of these share is what the fact itself needs.

    Args:
        model: a raw-mode bridge.
        facts: one or several.
        prefixes: texts to put before each fact's prompt as further prompts.
        steps: points of the integral for each layer: 20 for ``"right"``; for ``"adaptive"`` the most on average, 60 if
            none are given, of which most models need a fraction.
        rule: ``"adaptive"`` puts Gauss–Legendre points where P changes, until a layer adds up to within 1%;
            ``"right"`` is the published sum (w/m) Σₖ ∂P((k/m)·w)/∂w over ``steps`` right ends, which misses by
            more than 10% in one layer of three.
        threshold: the share of a prompt's largest attribution that a neuron must exceed to count in ``kept``.
        negatives: other facts, of which those with the same relation (where both name theirs) and another answer are
            asked for their own; ``refined`` leaves out neurons that pass there too. ``"relation"`` takes them from
            ``facts`` itself, at no cost.
        budget: the most tokens in one pass, an eighth of it where gradients are kept.
        progress: whether to show a bar.

    Raises:
        FactError: no facts, a prompt that cannot be used, prompts whose answers begin with different tokens, or a fact
            without a negative.
        LocateError: steps or threshold out of range, or an unknown rule.
        ModelError: a layer has no single MLP, as in mixtures of experts.

    >>> locate.knowledge_neurons(model, fact, steps=5, progress=False).best().kind
    'neuron'
    """
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    if not facts:
        raise FactError("There are no facts to attribute; give at least one.")
    if rule not in RULES:
        raise LocateError(f"rule must be one of {', '.join(RULES)}, found {rule!r}.")
    steps = _STEPS[rule] if steps is None else steps
    if steps < 1:
        raise LocateError(f"steps must be 1 or more, found {steps}.")
    check_threshold(threshold)
    asked = [ask(model, fact, prefixes) for fact in facts]
    others = _others(model, asked, negatives)
    unlike = [negatives_of(one, others) for one in asked] if negatives is not None else []

    def attributed(one: AskedFact) -> list[Attribution]:
        found = []
        for prompt in one.prompts:
            found.append(attribute_neurons(model, prompt.tokens, one.answer, steps=steps, rule=rule, budget=budget))
            bar.update()
        return found

    tables: dict[str, list[Tensor]] = {name: [] for name in ("scores", "kept", "coarse", "change", "residual")}
    shares: list[list[float]] = []
    beside = [] if others is asked else others
    total = sum(len(one.prompts) for one in [*asked, *beside])
    with tqdm(total=total, desc="neurons", unit="prompt", disable=not progress, delay=1) as bar:
        for one in asked:
            found = attributed(one)
            each, changes = (torch.stack([getattr(part, name) for part in found]) for name in ("values", "change"))
            passing = passing_of(each, threshold)
            own = (each.mean(0), passing.float().mean(0), passing[0], changes.mean(0))
            missed = (each.sum(-1) - changes).abs()
            for table, value in zip(tables.values(), (*own, missed.amax(0)), strict=True):
                table.append(value)
            shares.append((missed / changes.abs().clamp_min(LEAST_CHANGE)).amax(1).tolist())
        if negatives is not None:
            passed = tables["coarse"]
            if beside:
                passed = [passing_of(attributed(one)[0].values[None], threshold)[0] for one in beside]
            # One at a time: all of a fact's negatives together may be many times the table.
            none = torch.zeros((), dtype=torch.float32)
            tables["negative"] = [sum((passed[at].float() for at in own), none) / len(own) for own in unlike]
    dims = ("fact", "layer", "neuron")
    arrays = {name: torch.stack(several).numpy() for name, several in tables.items()}
    data = xr.Dataset({name: (dims[: one.ndim], one) for name, one in arrays.items()})
    data = data.assign_coords(fact=[fact.text for fact in facts], layer=range(model.cfg.n_layers))
    info = {
        "model": str(model.cfg.model_name), "method": "integrated gradients", "measure": "probability", "steps": steps,
        "rule": rule, "threshold": threshold, "prompts": [[prompt.text for prompt in one.prompts] for one in asked],
        "answer_tokens": [one.spelled for one in asked], "missed": shares,
        "negatives": [[others[at].prompts[0].text for at in own] for own in unlike],
    }  # fmt: skip
    return NeuronScores(data=data, info=info)


def _others(model: TransformerBridge, asked: list[AskedFact], negatives: Negatives | None) -> list[AskedFact]:
    """The facts among which each has its negatives: the same ones, or others."""
    if negatives is None:
        return []
    if isinstance(negatives, str):
        if negatives != "relation":
            raise LocateError(f"negatives must be facts, or 'relation'; found {negatives!r}.")
        return asked
    return [ask(model, fact, own=True) for fact in negatives]


def attribute_neurons(
    model: TransformerBridge, tokens: Tensor, answer: int, *, steps: int = 60, rule: str = "adaptive",
    budget: int = DEFAULT_BUDGET,
) -> Attribution:  # fmt: skip
    """Integrated gradients of an answer's probability, over the activations of one layer at a time.

    Only the last position is run again, for every layer and step side by side.

    Raises:
        ModelError: a layer has no single MLP, or one of another width than the others.

    >>> found = attribute_neurons(model, locate.encode_fact(model, fact).tokens, 42, steps=2)
    >>> found.values.shape == (model.cfg.n_layers, model.cfg.d_mlp)
    True
    """
    n, last = model.cfg.n_layers, len(tokens) - 1
    names = [hook_name("neuron", layer) for layer in range(n)]
    check_down_projections(model)
    run = freeze(model, tokens[None], keep=names, budget=budget)
    if len({run.kept[name].shape[-1] for name in names}) > 1:
        widths = ", ".join(str(run.kept[name].shape[-1]) for name in names)
        raise ModelError(
            f"The MLPs differ in width between layers ({widths}), so their neurons fill no one table. Patch the "
            "neurons of single layers instead: locate.patch(…, sites='mlp_neurons', layers=[…])."
        )
    states = torch.stack([run.kept[name][0, last] for name in names])

    def ask(asked: Sequence[Asked]) -> list[Answer]:
        answers: list[list[Answer]] = [[] for _ in asked]
        at_once = Budget(tokens=budget).rows(1, gradients=True)
        for part in cut([len(one.shares) for one in asked], at_once):
            own = [(index, asked[index].layer, asked[index].shares[which]) for index, which in part]
            found = _gradients(run, [(names[layer], layer, states[layer], shares) for _, layer, shares in own], answer)
            for (index, _, _), one in zip(own, found, strict=True):
                answers[index].append(one)
        return [Answer(*map(torch.cat, zip(*parts, strict=True))) for parts in answers]

    return RULES[rule](ask, at_least_float32(states).cpu(), steps)


def _gradients(run: FrozenRun, places: Sequence[tuple[str, int, Tensor, Tensor]], answer: int) -> list[Answer]:
    """P of an answer, and its gradient, with the neurons of a layer at shares of their state at the last position."""
    last = run.tokens.shape[1] - 1
    with running(run.model, grad=True), frozen_parameters(run.model):
        scaled = [(w[None] * shares.to(w)[:, None])[:, None].requires_grad_() for _, _, w, shares in places]
        branches = [
            Branch(
                layer=layer, rows=torch.zeros(len(values), dtype=torch.long),
                states=run.residuals[layer][:, last:].expand(len(values), -1, -1),
                interventions={name: Pin(values=values)},
            )
            for (name, layer, _, _), values in zip(places, scaled, strict=True)
        ]  # fmt: skip
        chances = at_least_float32(run.resume(last, branches, grad=True)).softmax(-1)[:, answer]
        gradients = torch.autograd.grad(chances.sum(), scaled)
    each = chances.detach().cpu().split([len(values) for values in scaled])
    return [Answer(own, at_least_float32(one[:, 0]).cpu()) for own, one in zip(each, gradients, strict=True)]
