"""Gradient × activation: what each neuron contributes to an answer to first order, from one backward pass a prompt."""

from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.measures import as_metrics
from locate.contrast.metrics import Metric
from locate.engine import DEFAULT_BUDGET, Branch, freeze
from locate.engine.gradients import Tape, backward_passes
from locate.engine.rules import GRADIENT, RELP, Rules
from locate.errors import FactError, LocateError, ModelError, suggest
from locate.facts.facts import Fact
from locate.facts.prompts import Positions, Prompt, resolve_positions, token_strings
from locate.facts.questions import Questions
from locate.model.weights import check_down_projections
from locate.neurons.asking import AskedFact, ask
from locate.neurons.scores import NeuronScores, check_threshold, passing_of
from locate.sites.site import hook_name

METHODS: dict[str, Rules] = {"gradient_x_activation": GRADIENT, "relp": RELP}


def neuron_attribution(
    model: TransformerBridge,
    facts: Sequence[Fact] | Fact,
    *,
    method: str = "gradient_x_activation",
    metric: str | Metric = "probability",
    positions: Positions = "last",
    prefixes: Sequence[str] = (),
    threshold: float = 0.2,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> NeuronScores:
    """Attribute each fact's answer to every MLP neuron by its activation times the metric's gradient there.

    One backward pass a prompt gives all layers, neurons and positions, where integrated gradients
    (``knowledge_neurons``) take many at the last position alone; they are exact about a layer as a whole, and this is
    not.

    Args:
        model: a raw-mode bridge.
        facts: one or several, each asked by its prompt and its paraphrases.
        method: ``"gradient_x_activation"``, or ``"relp"``, whose gradient flows back by the rules of relevance
            propagation (``locate.attribute``).
        metric: of the answer; with a gradient.
        positions: whose activations count; ``scores`` is their sum, ``data["by_position"]`` tells them apart.
        prefixes: texts to put before each fact's prompt as further prompts.
        threshold: the share of a prompt's largest attribution that a neuron must exceed to count in ``kept``.
        budget: the most tokens in one pass, an eighth of it where gradients are kept.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no facts, a prompt that cannot be used, or prompts whose answers begin with different tokens.
        SiteError: a prompt has no such positions.
        LocateError: an unknown method, a metric without a gradient, or a threshold out of range.
        ModelError: a layer has no single MLP, MLPs differ in width, or a rule has no meaning in this architecture.

    >>> found = locate.neuron_attribution(model, fact, positions="subject", progress=False)
    >>> found.data["by_position"].dims
    ('fact', 'position', 'layer', 'neuron')
    """
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    if not facts:
        raise FactError("There are no facts to attribute; give at least one.")
    if method not in METHODS:
        raise LocateError(f"There is no method {method!r} of neuron attribution. {suggest(method, METHODS)}")
    check_threshold(threshold)
    (measured,) = as_metrics(metric)
    check_down_projections(model)
    asked = [ask(model, fact, prefixes) for fact in facts]
    places = [[resolve_positions(prompt, positions) for prompt in one.prompts] for one in asked]
    tables: dict[str, list[Tensor]] = {"scores": [], "kept": [], "coarse": []}
    own: list[Tensor] = []
    with tqdm(total=sum(map(len, places)), desc="neurons", unit="prompt", disable=not progress, delay=1) as bar:
        for one, at in zip(asked, places, strict=True):
            found = []
            for prompt, columns in zip(one.prompts, at, strict=True):
                found.append(_attributed(model, one, prompt, columns, METHODS[method], measured, budget))
                bar.update()
            each = torch.stack([part.sum(0) for part in found])
            passing = passing_of(each, threshold)
            for name, value in (("scores", each.mean(0)), ("kept", passing.float().mean(0)), ("coarse", passing[0])):
                tables[name].append(value)
            own.append(found[0])
    dims = ("fact", "layer", "neuron")
    data = {name: xr.DataArray(torch.stack(several).numpy(), dims=dims) for name, several in tables.items()}
    firsts = [at[0] for at in places]
    if max(map(len, firsts)) > 1:
        every = sorted({place for at in firsts for place in at})
        shape = (len(own), len(every), *own[0].shape[1:])
        by_position = torch.full(shape, float("nan"), dtype=torch.float32)
        most = []
        for row, (table, at) in enumerate(zip(own, firsts, strict=True)):
            by_position[row, [every.index(place) for place in at]] = table
            most.append(torch.tensor(at)[table.abs().argmax(0)])
        data |= {
            "by_position": xr.DataArray(
                by_position.numpy(), dims=("fact", "position", *dims[1:]), coords={"position": every}
            ),
            "strongest": xr.DataArray(torch.stack(most).numpy(), dims=dims),
        }
    dataset = xr.Dataset(data).assign_coords(fact=[fact.text for fact in facts], layer=range(model.cfg.n_layers))
    info = {
        "model": str(model.cfg.model_name), "method": method, "measure": measured.name, "threshold": threshold,
        "prompts": [[prompt.text for prompt in one.prompts] for one in asked],
        "tokens": [token_strings(model, one.prompts[0].tokens) for one in asked],
        "answer_tokens": [one.spelled for one in asked],
    }  # fmt: skip
    return NeuronScores(data=dataset, info=info)


def _attributed(
    model: TransformerBridge, one: AskedFact, prompt: Prompt, columns: Sequence[int], rules: Rules, metric: Metric,
    budget: int,
) -> Float[Tensor, "position layer neuron"]:  # fmt: skip
    """Activation × gradient at some positions of one prompt."""
    run = freeze(model, prompt.tokens[None], budget=budget)
    questions = Questions(
        model=model, prompts=(prompt,), answers=torch.tensor([one.answer]), targets_new=(one.fact.target_new,),
        clean=run.logits,
    )  # fmt: skip
    bound, start = metric.bind(questions), min(columns)
    names = [hook_name("neuron", layer) for layer in range(model.cfg.n_layers)]
    found: list[Tensor] = []

    def use(tape: Tape) -> None:
        gradients = tape.gradients()
        parts = [(tape.values[name] * gradients[name])[0].float().cpu() for name in names]
        if len(widths := {part.shape[-1] for part in parts}) > 1:
            raise ModelError(
                f"The MLPs differ in width between layers ({sorted(widths)}): their neurons fill no table."
            )
        found.append(torch.stack(parts, dim=1))

    branch = Branch(layer=0, rows=torch.zeros(1, dtype=torch.long), states=run.residuals[0][:, start:])
    backward_passes(run, start, branch, names, lambda logits, rows: bound(logits, rows)[:, None], use, rules=rules)
    return found[0][[column - start for column in columns]]
