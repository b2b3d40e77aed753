"""Prediction before editing: which probes an edit will reach, from the unedited model alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from einops import reduce
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.methods.rewriting.rome import ROME
from edit.methods.where import Where
from edit.names import HEAD
from edit.propagation.asking import Asked, tellable_probes
from edit.propagation.predicted import FEATURES, ReachPrediction
from edit.requests.answers import with_model_answers
from edit.requests.probes import CONSEQUENCES, Probe
from edit.requests.requests import Case, EditRequest, as_request
from edit.statistics import KeyStatistics
from locate.engine import Branch, FrozenRun, Measure, freeze
from locate.engine.gradients import Tape, backward_passes
from locate.engine.rules import Rules
from locate.errors import FactError, SiteError
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts
from locate.facts.prompts import encode_fact
from locate.facts.subjects import same_text
from locate.model.weights import down_projection
from locate.names import DEFAULT_BUDGET
from locate.patching.estimating import estimator
from locate.sites.places import hooks_of
from locate.sites.site import hook_name

# Facts of the new object whose states stand for the value that the edit will write.
_DONORS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """What the unedited model does on a prompt, asked for o* over o.

    Attributes:
        margin: logit(o*) − logit(o).
        key: what the down-projection reads at the subject's last token.
        gradient: of the margin by what the MLP adds there.
        relevance: how much of the margin goes through each head and each MLP, over all positions.
        donated: the margin when the subject's last state behind the layer is another subject's, donor by donor.
    """

    margin: float
    key: Float[Tensor, "d_mlp"]
    gradient: Float[Tensor, "d_model"]
    relevance: Float[np.ndarray, "component"]
    donated: Float[np.ndarray, "donor"]


@torch.inference_mode(False)
def predict_reach(
    model: TransformerBridge,
    request: Case,
    probes: Sequence[Probe] | None = None,
    *,
    layer: Where | None = None,
    statistics: KeyStatistics | None = None,
    others: Sequence[Fact] | None = None,
    method: str = "atp",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> ReachPrediction:
    """Rank which probes an edit will reach, before it is made.

    The edit will write a value at the subject's last token in a layer. On each probe the unedited model is asked how
    near it is to o* already, whether its key there is the edit prompt's, whether what turns the edit prompt to o* there
    turns the probe to its own o*, whether another subject's state there does (one of which o* is true), and whether
    both answers come from the same heads and MLPs.

    Args:
        model: a raw-mode bridge without the edit.
        request: the edit.
        probes: that name the subject; by default the consequences that the request's fact has.
        layer: where the edit will write; by default where ``ROME`` would.
        statistics: of the layer's keys: keys are compared as ROME and others do, under C⁻¹; without them, by cosine.
        others: facts among which those that have the new object are looked for; by default the shipped ones.
        method: how gradients are taken, ``"atp"`` as they are, or ``"relp"`` (see ``locate.attribute``).
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: there are no consequences, or a probe does not name the subject or no token tells its answers apart.
        SiteError: no such layer, or statistics of another one.
        ModelError: the layer has no one down-projection, or the method has no meaning in this architecture.

    >>> foreseen = edit.predict_reach(model, request, layer=4)
    >>> foreseen.table()["new"].tolist()
    ['Italy', 'Italian']
    """
    request, where = as_request(request), ROME().resolve_layer(model, layer)
    down_projection(model, where)
    if statistics is not None and statistics.layer != where:
        raise SiteError(f"statistics: are of layer {statistics.layer}; give those of layer {where}, or leave them out.")
    wanted = _following(model, request) if probes is None else with_model_answers(model, probes)
    if not wanted:
        raise FactError(
            f"There is nothing to predict: {request.fact.text!r} has no consequences of {request.target_new!r}. Give "
            "probes."
        )
    donors = _donors(model, request, where, bundled_facts() if others is None else others)
    rules = estimator(method).rules
    own = Probe(role="edit", text=request.fact.text, new=request.target_new, old=request.fact.target,
                joined=request.fact.joined, chat=request.fact.chat)  # fmt: skip
    readings = [
        _read(model, one, request.fact.subject, where, donors, rules, budget)
        for one in tqdm([own, *wanted], "prediction", disable=not progress, delay=1)
    ]
    weighted = readings[0].key.double()
    if statistics is not None:
        weighted = statistics.solve(weighted[:, None])[:, 0]
    scores = np.array([_features(readings[0], one, weighted) for one in readings[1:]])
    totals = pd.DataFrame([
        {"role": one.role, "text": one.text, "old": one.old, "new": one.new, "base": reading.margin}
        for one, reading in zip(wanted, readings[1:], strict=True)
    ])  # fmt: skip
    data = xr.Dataset(
        {"score": (("probe", "feature"), scores)}, coords={"probe": np.arange(len(wanted)), "feature": list(FEATURES)}
    )
    info = {
        "model": str(model.cfg.model_name), "request": request.describe(), "layer": where, "method": method,
        "statistics": statistics is not None, "donors": len(donors),
    }  # fmt: skip
    return ReachPrediction(data=data, probes=totals, info=info)


def _following(model: TransformerBridge, request: EditRequest) -> list[Probe]:
    """The request's consequences, of which those that cannot be told apart are left out with a warning."""
    return [one for one in tellable_probes(model, request) if one.role in CONSEQUENCES]


def _donors(
    model: TransformerBridge, request: EditRequest, layer: int, others: Sequence[Fact]
) -> list[Float[Tensor, "d_model"]]:
    """States behind the layer at the last token of other subjects, of which the new object is true."""
    name = model.cfg.model_name
    alike = [
        one for one in others
        if same_text(one.target, request.target_new) and not same_text(one.subject, request.fact.subject)
    ]  # fmt: skip
    alike.sort(key=lambda one: (one.relation != request.fact.relation, one.ranks.get(str(name), 1)))
    states = []
    for one in alike[:_DONORS]:
        prompt = encode_fact(model, one)
        states.append(freeze(model, prompt.tokens[None]).residuals[layer + 1][0, prompt.last_subject_position])
    return states


def _read(
    model: TransformerBridge,
    probe: Probe,
    subject: str,
    layer: int,
    donors: Sequence[Tensor],
    rules: Rules,
    budget: int,
) -> _Reading:
    asked = Asked.of(model, probe)
    at = _subject_last(model, probe, subject)
    key = hook_name("down_in", layer)
    run = freeze(model, asked.prompt.tokens[None], keep=[key], budget=budget)

    def measure(logits: Tensor, rows: Tensor) -> Tensor:
        return (logits[:, asked.new] - logits[:, asked.old]).float()[:, None]

    gradient, relevance = _relevance(run, layer, at, measure, rules)
    return _Reading(
        margin=float(measure(run.logits, run.at[0])), key=run.kept[key][0, at].float(), gradient=gradient,
        relevance=relevance, donated=_donated(run, layer, at, donors, measure),
    )  # fmt: skip


def _subject_last(model: TransformerBridge, probe: Probe, subject: str) -> int:
    """Where the subject's last token stands in a probe."""
    fact = Fact.from_text(
        probe.text, subject=subject, target=probe.old, target_new=probe.new, joined=probe.joined, chat=probe.chat
    )
    return encode_fact(model, fact).last_subject_position


def _relevance(
    run: FrozenRun, layer: int, at: int, measure: Measure, rules: Rules
) -> tuple[Float[Tensor, "d_model"], Float[np.ndarray, "component"]]:
    """The gradient at the site, and state times gradient of every head and MLP, summed over positions."""
    heads, mlps = hooks_of(run.model, HEAD), hooks_of(run.model, "mlp")
    site, found = hook_name("mlp", layer), []

    def use(tape: Tape) -> None:
        gradients = tape.gradients()
        flows = {name: tape.values[name].float() * one.float() for name, one in gradients.items()}
        parts = [reduce(flows[name], "row position head d_head -> head", "sum") for name in heads]
        parts += [reduce(flows[name], "row position d_model -> 1", "sum") for name in mlps]
        found.append((gradients[site][0, at].float().cpu(), torch.cat([one.cpu() for one in parts]).numpy()))

    branch = Branch(layer=0, rows=torch.tensor([0]), states=run.residuals[0])
    backward_passes(run, 0, branch, [*heads, *mlps], measure, use, rules=rules)
    return found[0]


def _donated(
    run: FrozenRun, layer: int, at: int, donors: Sequence[Tensor], measure: Measure
) -> Float[np.ndarray, "donor"]:
    """The margin with each donor's state in place of the subject's last, behind the layer."""
    if not donors:
        return np.empty(0)
    states = run.residuals[layer + 1][:, at:].repeat(len(donors), 1, 1)
    states[:, 0] = torch.stack(list(donors)).to(states)
    branch = Branch(layer=layer + 1, rows=torch.zeros(len(donors), dtype=torch.long), states=states)
    return run.resume(at, [branch], measure=measure)[:, 0].cpu().numpy()


def _features(own: _Reading, probe: _Reading, weighted: Float[Tensor, "d_mlp"]) -> list[float]:
    """In the order of ``FEATURES``; ``weighted`` is the edit prompt's key, under C⁻¹ where that is known."""
    fires = float(probe.key.double() @ weighted / (own.key.double() @ weighted))
    along = float(probe.gradient @ own.gradient / (own.gradient @ own.gradient))
    found: Mapping[str, float] = {
        "near": probe.margin,
        "key": fires,
        "gradient": float(torch.nn.functional.cosine_similarity(probe.gradient, own.gradient, dim=0)),
        "first order": fires * along,
        "donor": float((probe.donated - probe.margin).mean()) if len(probe.donated) else float("nan"),
        "mediators": float(_cosine(own.relevance, probe.relevance)),
    }
    return [found[name] for name in FEATURES]


def _cosine(one: Float[np.ndarray, "component"], other: Float[np.ndarray, "component"]) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
