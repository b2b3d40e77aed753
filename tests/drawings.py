"""One figure of each kind, of made-up results: what is drawn stays what it was, or its picture is accepted anew.

    python -m tests.drawings

draws all pictures again (``make pictures``).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.figure import Figure

import edit
import locate
from edit.changes.figures import plot_footprint
from edit.propagation.predicted import FEATURES
from edit.propagation.reach import OUTCOMES
from locate.circuits.selecting import grown, on_a_path
from locate.figures.flow_map import flow_figure
from locate.figures.groups import groups_figure
from locate.figures.lines import line_panels
from locate.figures.maps import Panel, map_panels
from locate.figures.waterfall import waterfall_figure
from locate.model.weights import down_projection
from locate.patching.knockout import Knockout
from locate.relations.judging import EDITS
from locate.relations.maps import MAPS
from locate.tracing.average import ROLES
from tests import tiny
from tests.flows import made_up_flow

PICTURES = Path(__file__).resolve().parent / "pictures"
DPI = 80
# A made-up clean and corrupted run of one metric.
_ENDS = {"clean": ("metric", [0.7]), "corrupted": ("metric", [0.02])}
_INFO = {
    "model": "tiny", "answer": " Paris", "metrics": {"probability": "p({answer})"}, "tokens": ["The", " Tower", " is"],
    "subject_span": [0, 2], "direction": "restore",
}  # fmt: skip


def hills(**sizes: int) -> xr.DataArray:
    """Numbers from 0 to 1 without any chance in them, one hill in each plane of the last two dims."""
    *outer, height, width = sizes.values()
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    planes = [
        np.exp(-3 * ((down - 0.8 * np.sin(2 * turn)) ** 2 + (across - 0.6 * np.cos(turn)) ** 2))
        for turn in range(int(np.prod(outer)))
    ]
    coords = {name: range(size) for name, size in sizes.items()}
    return xr.DataArray(np.reshape(planes, tuple(sizes.values())), coords=coords, dims=tuple(sizes))


def trace(**options) -> Figure:
    scores = (0.02 + 0.6 * hills(kind=3, position=6, layer=12)).assign_coords(kind=["resid", "mlp", "attn"])
    tokens = ("The", " Eiffel", " Tower", " is", " in", " the")
    return tiny.made_up_trace(
        scores, clean=0.7, corrupted=0.02, answer=" Paris", tokens=tokens, span=(0, 3), window=5
    ).plot(**options)  # fmt: skip


def averaged() -> locate.AverageTrace:
    effect = 0.5 * hills(kind=3, role=6, layer=12).assign_coords(kind=["resid", "mlp", "attn"], role=list(ROLES)) - 0.05
    heads = 0.3 * hills(role=6, layer=12, head=4).assign_coords(role=list(ROLES)) - 0.1
    data = xr.Dataset({
        "effect": effect, "low": effect - 0.04, "high": effect + 0.06, "head_effect": heads, "head_low": heads,
        "head_high": heads, "count": ("role", [1] * 6),
    })  # fmt: skip
    info = {
        "label": "p({answer})", "window": 5, "direction": "restore", "corruption": "GaussianNoise", "facts": 12,
        "kinds": ["resid", "mlp", "attn"],
    }  # fmt: skip
    return locate.AverageTrace(data=data, metric="probability", total_effect=(0.4, 0.3, 0.5), info=info)


def patched(values: xr.DataArray, **info) -> locate.Patches:
    data = {"values": values.expand_dims(metric=["probability"]), **_ENDS}
    return locate.Patches(data=xr.Dataset(data), metric="probability", info={**_INFO, **info})


def knocked(values: xr.DataArray) -> Knockout:
    data = {"values": values.expand_dims(metric=["probability"]), "clean": _ENDS["clean"]}
    info = {**_INFO, "window": 3, "target": "last"}
    return Knockout(data=xr.Dataset(data), metric="probability", info=info)


def heads(number: int = 0) -> locate.Patches:
    values = 0.5 * hills(fact=2, head=4, layer=8).sel(fact=number, drop=True) - 0.1
    return patched(values.transpose("layer", "head"), sites="attn_head_z", by=["layer", "head"])


def states() -> locate.Patches:
    return patched(0.6 * hills(layer=8, position=3), sites="resid_pre", by=["layer", "position"])


def senders(**options) -> Figure:
    values = xr.DataArray([0.7, 0.45, 0.62, 0.1], coords={"sender": ["a1.h2", "m0", "a3.h0", "m3"]}, dims="sender")
    return patched(
        values, sites="paths_to_logits", receivers=["logits"], by=["sender"], direction="break"
    ).plot(**options)  # fmt: skip


def blocked(sizes: dict[str, int], **options) -> Figure:
    sources = ["subject", "last"]
    numbers = hills(source=2, row=3, **sizes).sel(row=1, drop=True).assign_coords(source=sources)
    return knocked(0.7 - 0.5 * numbers).plot(**options)


def propagation(**options) -> Figure:
    mediation = 3 * hills(probe=3, direction=2, kind=2, position=5, layer=8).assign_coords(
        direction=["lost", "gained"], kind=["resid", "mlp"]
    )
    totals = pd.DataFrame({
        "role": ["edit", "paraphrase", "neighbour"],
        "text": ["The Tower is in", "See the Tower in", "The Louvre is in"],
        "old": "Paris", "new": "Rome", "base": [-3.0, -2.5, -2.0], "edited": [4.0, 1.5, -1.8],
    })  # fmt: skip
    tokens = (("The", " Tower", " is", " in", " the"),) * 3
    return edit.Propagation(
        data=xr.Dataset({"mediation": mediation}), totals=totals.assign(total_effect=totals.edited - totals.base),
        tokens=tokens, layers=(2,), info={"kinds": ["resid", "mlp"]},
    ).plot(**options)  # fmt: skip


def footprint(**options) -> Figure:
    model = tiny.bridge("llama")
    deltas = {}
    for layer in (1, 2):
        down = down_projection(model, layer)
        sizes = torch.linspace(0, layer, down.key_size, dtype=torch.float32).exp()[None]
        deltas[down.name] = edit.LowRank(left=torch.ones(model.cfg.d_model, 1), right=sizes)
    return plot_footprint(model, edit.WeightUpdate.make(model, deltas, method="made up"), **options)


def circuit(k: int) -> locate.Circuit:
    """Scores of a few sizes, from one to the next of which it is never far."""
    graph = tiny.made_up_graph(8, n_heads=9)
    writer, reader = (np.arange(len(side))[:, None] for side in (graph.writers, graph.readers))
    scores = np.sin(7.3 * writer + 1.1) * np.cos(3.7 * reader.T + 2) * np.exp(3 * np.sin(writer * 1.7 + reader.T * 2.3))
    info = {"model": "tiny", "method": "made up"}
    return locate.Circuit.of(graph, scores, model_print="tiny", info=info).top(k).prune()


def edit_circuit() -> edit.EditCircuit:
    """A circuit that begins at the MLP of layer 2, with a curve that goes down once."""
    whole = circuit(60)
    after = np.array([one.name == "m2" or one.layer > 2 for one in whole.writers])
    scores = whole.scores * np.where([one.name == "m2" for one in whole.writers], 30, 1)[:, None]
    best = grown(np.abs(scores.values), np.isfinite(scores.values) & after[:, None], whole._fed, 120)
    kept = on_a_path(best, whole._fed, np.array([one.name == "m2" for one in whole.writers]))
    sizes = np.array([0, 8, 20, 60, 150, 400, 1000])
    carried = np.array([0.0, 0.2, 0.5, 0.88, 0.8, 0.97, 1.0])[:, None] * 8
    drawn = 0.4 + 0.4 * np.sin(np.arange(3.0))[:, None, None] + 0.3 * np.sin(2 * np.arange(5.0))[:, None]
    data = {
        "scores": scores, "kept": whole.kept.copy(data=kept), "differs": ("writer", after),
        "base": ("probe", [0.0]), "edited": ("probe", [8.0]), "circuit": ("probe", [7.04]),
        "values": (("size", "probe"), carried), "random": (("among", "sample", "probe"), drawn),
    }  # fmt: skip
    coords = {"size": sizes, "probe": [0], "among": ["all", "ways", "grown"]}
    return edit.EditCircuit(
        data=xr.Dataset(data, coords=coords), writers=whole.writers, readers=whole.readers, edited=("m2",),
        probes=(edit.Probe(role="edit", text="The Eiffel Tower is in", new="Rome", old="Paris"),),
        info={"model": "tiny", "edit": "made up", "share": 0.85, "model_print": "tiny"},
    )  # fmt: skip


def neurons(**info) -> locate.NeuronScores:
    """Scores of either sign, few of them large."""
    layer, neuron = np.arange(12)[:, None], np.arange(40)
    scores = 0.1 * np.sin(1.3 * layer + 2.9 * neuron) ** 9 * np.exp(-(((layer - 9) / 3) ** 2))
    dims = ("fact", "layer", "neuron")
    data = {"scores": (dims, scores[None]), "kept": (dims, (scores > 0.04)[None] * 0.75)}
    coords = {"fact": ["The Eiffel Tower is located in the city of"], "layer": range(12)}
    told = {"method": "integrated gradients", "measure": "probability", "answer_tokens": [[" Paris"]], **info}
    return locate.NeuronScores(data=xr.Dataset(data, coords=coords), info=told)


def value_heads(**options) -> Figure:
    tokens = ["The", " Tower", " is", " in", " the"]
    heads = 1.2 * hills(fact=1, layer=12, head=4, source=5) - 0.3
    info = {"tokens": [tokens], "answer_tokens": [[" Paris"]]}
    return locate.LogprobGain(data=xr.Dataset({"heads": heads}), info=info).plot_heads(**options)


def neuron_overlap(n: int, **options) -> Figure:
    """Each is like those beside it."""
    apart = abs(np.arange(n)[:, None] - np.arange(n)) / n
    names = [f"{place}: The Eiffel Tower is located in the city of" for place in range(n)]
    data = {"jaccard": (("fact", "k", "one", "other"), np.exp(-6 * apart)[None, None]),
            "spearman": (("fact", "one", "other"), (1 - 2.5 * apart)[None])}  # fmt: skip
    coords = {"fact": ["all"], "k": [20], "one": names, "other": names}
    info = {"between": "facts", "neurons": 480}
    return locate.NeuronOverlap(data=xr.Dataset(data, coords=coords), info=info).plot(**options)


def neuron_effects(**options) -> Figure:
    """Thirty facts whose neurons matter, most of all to their own prompts."""
    fact, number = np.arange(30)[:, None, None], np.arange(6)
    sign = np.array([-1.0, 0.6])[:, None]
    own = np.array([1.0, 0.6, 0.1])[:, None, None, None] * (number == 0) * (1 + 0.7 * np.sin(5 * fact)) * sign
    values = own + 0.08 * np.sin(2.1 * fact + 3.7 * number)
    dims = ("metric", "on", "fact", "factor", "set")
    data = {"values": (dims, values[None] - 1), "clean": (dims[:3], np.full((1, 3, 30), -1.0))}
    coords = {
        "metric": ["log_probability"], "on": ["fact", "paraphrases", "unrelated"], "factor": [0.0, 2.0],
        "fact": [str(one) for one in range(30)],
    }  # fmt: skip
    info = {"model": "tiny", "metrics": {"log_probability": "log p(answer) [nat]"}}
    return locate.NeuronEffects(data=xr.Dataset(data, coords=coords), metric="log_probability", info=info).plot(
        **options
    )


def attribution(by: str) -> locate.LogitAttribution:
    """Of a few heads and MLPs with a hill over their layers, for three prompts."""
    kinds = {"head": ["head"] * 4 + ["mlp"], "component": ["attn", "mlp"]}[by]
    units = [0, 1, 2, 3, -1] if by == "head" else [-1, -1]
    values = 4 * hills(fact=3, layer=10, part=len(kinds)) - 0.8
    inner = values.stack(place=("layer", "part")).values
    every = np.concatenate([np.full((3, 1), 0.1), inner, np.zeros((3, 1))], axis=1)
    parts = {
        "kind": ["embed", *kinds * 10, "bias"], "unit": [-1, *units * 10, -1],
        "layer": [-1, *np.repeat(range(10), len(kinds)), -1],
    }  # fmt: skip
    data = {"contribution": (("fact", "part"), every), "logit": ("fact", every.sum(1)), "factor": ("fact", [1.0] * 3)}
    coords = {"fact": list("abc"), **{name: ("part", one) for name, one in parts.items()}}
    info = {"model": "tiny", "answers": [" Paris"] * 3, "others": [" Rome", " Lyon", " Rome"]}
    return locate.LogitAttribution(data=xr.Dataset(data, coords=coords), by=by, info=info)


def lens(n: int) -> locate.LensTrajectory:
    """Of an answer that comes up over twelve layers, for so many prompts."""
    rises = xr.concat([hills(layer=12, position=4)] * n, "fact") + 0.1 * xr.DataArray(range(n), dims="fact")
    logs = xr.concat([4 * rises - 5, 2 * rises - 6], "token").transpose("fact", "layer", "position", "token")
    words = [[f" {['the', 'Paris', 'of', 'in'][(layer * place) % 4]}" for place in range(4)] for layer in range(12)]
    data = {
        "logit": logs, "log_probability": logs, "rank": np.exp(-logs).round(),
        "top": (("fact", "layer", "position"), np.array([words] * n, dtype=object)),
        "top_probability": (rises / (1 + rises)).transpose("fact", "layer", "position"),
    }  # fmt: skip
    coords = {"fact": list("abc")[:n], "token": ["answer", "other"]}
    read = ["The", " Tower", " is", " in"]
    info = {"model": "tiny", "translator": None, "tokens": [[" Paris", " Rome"]] * n, "read": [read] * n}
    return locate.LensTrajectory(data=xr.Dataset(data, coords=coords), sites="resid_post", info=info)


def faithfulness(height: float) -> locate.Faithfulness:
    """A curve over a thousand edges, with random circuits beside."""
    sizes = np.array([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])
    share, pair = np.log10(sizes)[:, None] / 3, np.arange(6)
    values = np.minimum(1, height * np.tanh(2 * share)) + 0.3 * np.sin(pair) * share * (1 - share)
    by_chance = share**6 + 0.2 * np.sin(np.arange(4))[:, None, None] * share * (1 - share) + 0 * pair
    data = {
        "values": (("size", "pair"), values), "whole": ("pair", np.ones(6)), "empty": ("pair", np.zeros(6)),
        "random": (("sample", "size", "pair"), by_chance),
    }  # fmt: skip
    info = {"n_possible": 1000, "model": "tiny", "method": "made up", "metric": "logit_diff"}
    return locate.Faithfulness(data=xr.Dataset(data, coords={"size": sizes}), info=info)


def spread(method: str, *layers: int) -> edit.Concentration:
    """A change whose columns are less alike in every further layer."""
    model, deltas = tiny.bridge("llama"), {}
    for layer in layers:
        down = down_projection(model, layer)
        column = torch.arange(down.key_size, dtype=torch.float32)
        sizes = ((layer + 0.5) * (1.7 * column).sin()).exp()[None]
        deltas[down.name] = edit.LowRank(left=torch.ones(model.cfg.d_model, 1), right=sizes)
    return edit.concentration(edit.WeightUpdate.make(model, deltas, method=method), model)


def said(shift: int) -> edit.ColumnReadout:
    """Ranks of a new object that come down by an edit, for 20 facts."""
    fact, column = np.arange(20)[:, None], np.arange(5)
    before = 1 + (37 * fact + 53 * column + 11 * fact * column) % 400
    data = {"rank": (("fact", "state", "column"), np.stack([before, 1 + before // shift], 1))}
    coords = {"fact": [f"fact {index}" for index in range(20)], "state": ["before", "after"]}
    return edit.ColumnReadout(data=xr.Dataset(data, coords=coords), info={"method": "made up", "model": "tiny"})


def alike() -> edit.LocalisationSimilarity:
    """Layers that paraphrases share for longer than hops do."""
    k, fall = np.arange(1, 11), np.array([[0.06], [0.11]])
    rsim = np.exp(-fall * k) + 0.05 * np.sin(k)
    data = {"rsim": (("group", "k"), rsim), "rsim_low": (("group", "k"), rsim - 0.1), "unrelated": ("k", k / 15),
            "rsim_high": (("group", "k"), rsim + 0.1)}  # fmt: skip
    info = {"model": "tiny", "facts": {"paraphrases": 30, "hops": 21}}
    coords = {"group": ["paraphrases", "hops"], "k": k}
    return edit.LocalisationSimilarity(data=xr.Dataset(data, coords=coords), info=info)


def edge_effects() -> locate.EdgeEffects:
    """A dozen edges on five pairs."""
    edge, pair = np.arange(12)[:, None], np.arange(5)
    effect = 2 * np.sin(2.1 * edge + 1) * np.exp(-0.2 * edge)
    data = {
        "values": (("edge", "pair"), 3 + effect + 0.3 * np.cos(edge + 2.0 * pair)),
        "clean": ("pair", np.full(5, 3.0)), "corrupted": ("pair", np.full(5, -2.5)),
    }  # fmt: skip
    names = {
        "writer": ("edge", [f"a{i}.h{2 * i % 9}" for i in range(12)]),
        "reader": ("edge", ["logits", "a14.h3.q"] * 6),
    }
    info = {
        "model": "tiny", "pairs": 5, "metric": "logit_diff", "metric_label": "logit({answer}) − logit({new})",
        "answer": " Mary", "target_new": "John",
    }  # fmt: skip
    return locate.EdgeEffects(data=xr.Dataset(data, coords=names), info=info)


def linearity() -> locate.RelationLinearity:
    """Twenty subjects, of which as many are faithful as a hill is high."""
    layers, subjects = np.arange(0, 24, 2), np.arange(20)
    heights = {"map": (0.85, 0.3, 0.2, 0.1), "edit": (0.9, 0.15, 1.0)}
    data = {}
    for (name, dim), late in zip({"faithful": "map", "causal": "edit"}.items(), (16, 18), strict=True):
        share = np.multiply.outer(1 / (1 + np.exp(layers - late)), heights[dim])
        data[name] = (("layer", dim, "subject"), (subjects < 20 * share[..., None]).astype(float))
    info = {"model": "tiny", "relation": "country capital", "examples": [{}] * 8, "known": 28, "given": 40}
    coords = {"layer": layers, "map": list(MAPS), "edit": list(EDITS)}
    return locate.RelationLinearity(data=xr.Dataset(data, coords=coords), info=info)


def reversal() -> edit.Reversal:
    """Most of a change along a few directions, on three probes."""
    k, probe = np.array([1, 2, 4, 8, 16]), np.arange(3)[:, None, None]
    share = np.stack([1 - 0.6 / k, 0.6 / k, 0.02 * k + 0.01 * np.sin(k)]) * (1 - 0.08 * probe)
    diff = 6 - 10 * share
    value = np.stack([diff, -2 + 0.4 * diff, diff, -2 - 0.4 * diff, diff], -1)
    ends = np.array([[-4.0, -4, 9, -0.5, 1], [6.0, -0.3, 1, -4.5, 12]])
    answers = ["logit_diff", "logprob_new", "rank_new", "logprob_old", "rank_old"]
    data = {"value": (("probe", "way", "k", "answer"), value), "ends": (("probe", "side", "answer"), [ends] * 3)}
    coords = {"way": ["dropped", "kept", "blind"], "k": k, "answer": answers, "side": ["base", "edited"]}
    return edit.Reversal(
        data=xr.Dataset(data, coords=coords), probes=({},) * 3, rank=24, reverted=True, info={"method": "made up"}
    )


def weight_footprint() -> edit.WeightFootprint:
    """Three down-projections and an attention output, whose directions fall off and turn away from an answer."""
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (3, 4, 5)] + ["model.layers.7.attn.o.weight"]
    matrix, direction = np.arange(4)[:, None], np.arange(8)
    singular = (1 + matrix) * np.exp(-0.4 * (1 + matrix) * direction)
    data = {
        "norm": ("parameter", np.sqrt((singular**2).sum(1))), "relative_norm": ("parameter", [0.01, 0.03, 0.02, 0.004]),
        "singular": (("parameter", "direction"), singular),
        "alignment": (("parameter", "direction"), 0.4 * np.cos(direction + 0.3 * matrix) * np.exp(-0.2 * direction)),
    }  # fmt: skip
    coords = {"parameter": names, "layer": ("parameter", [3, 4, 5, 7]), "direction": direction + 1}
    info = {"method": "made up", "answers": ["Rome", "Paris"]}
    return edit.WeightFootprint(data=xr.Dataset(data, coords=coords), chance=0.03, prompt="The Tower is in", info=info)


def attention_drift() -> edit.AttentionDrift:
    """Heads that turn to the subject and away from it behind layer 3, and carry half of an edit."""
    late = 0.3 * hills(probe=2, key=3, layer=12, head=6).assign_coords(key=["subject", "first", "other"])
    late = (late - 0.1).where(late["layer"] > 3, 0)
    mask, sample = np.array([1, 5, 20, -1]), np.arange(4)
    share = np.array([0.08, 0.2, 0.4, 0.55])[:, None] * np.where(sample == 0, 1, 0.2 + 0.15 * np.sin(sample))
    masked = np.stack([6 - 10 * share, -4 + 8 * share])[None] * np.ones((2, 1, 1, 1))
    data = {
        "base": 0 * late, "edited": late, "ends": (("probe", "side"), [[-4.0, 6.0]] * 2),
        "masked": (("probe", "direction", "mask", "sample"), masked),
    }  # fmt: skip
    coords = {"direction": ["lost", "gained"], "mask": mask, "sample": sample, "side": ["base", "edited"]}
    info = {"method": "made up", "subject": "The Tower", "layers": [3]}
    return edit.AttentionDrift(data=xr.Dataset(data, coords=coords), probes=({},) * 2, left_out={}, info=info)


def layers() -> edit.LayerStudy:
    """Edits that work best early, and ways of locating of which one knows."""
    layer, fact = np.arange(12), np.arange(8)[:, None]
    works = np.exp(-(((layer - 3) / 4) ** 2)) * (0.9 + 0.1 * np.sin(fact))
    others = 0.7 + 0.25 * layer / 11 + 0.05 * np.cos(fact)
    success = (works > 0.4).astype(float)
    ways = [np.sin(0.4 * layer + shift) + 0.3 * np.cos(fact * (1 + layer)) for shift in (0, 2, 4)] + [
        works,
        works**2 - 0.5,
    ]
    names = ["rewrite", "paraphrase rewrite", "efficacy", "paraphrase", "neighbourhood"]
    data = {
        "outcome": (("name", "fact", "layer"), np.stack([works, 0.8 * works, success, success, others])),
        "score": (("way", "fact", "layer"), np.stack(ways)),
    }
    ways = ["tracing, MLP", "tracing, state", "gradient", "RelP", "knowledge neurons"]
    coords = {"name": names, "way": ways, "fact": [f"fact {index}" for index in range(8)], "layer": layer}
    return edit.LayerStudy(
        data=xr.Dataset(data, coords=coords), info={"model": "tiny", "method": "ROME", "left_out": {}}
    )


def contributions(**options) -> Figure:
    """Some that add, some that take away, many small ones, and a little that none of them says."""
    values = np.concatenate([[2.6, 1.9, -0.8, 1.4, -0.5, 0.9, 0.7], 0.2 * np.sin(np.arange(40))])
    parts = pd.DataFrame({"name": [f"a{i // 3}.h{i}" if i % 3 else f"m{i // 3}" for i in range(47)], "value": values})
    start, end = -2.4, -2.4 + float(values.sum()) + 0.3
    unit = "logit(Rome) − logit(Paris)"
    return waterfall_figure(
        parts, start=start, end=end, n=9, unit=unit, headline="The Tower is in: Paris → Rome", **options
    )


def before_and_after(**options) -> Figure:
    """Two answers that change places."""
    layer, rows = np.arange(24), []
    for state, late in (("before", {"Paris": 15, "Rome": 40}), ("after", {"Paris": 32, "Rome": 13})):
        for word, middle in late.items():
            values = -9 + 8.5 / (1 + np.exp((middle - layer) / 2))
            rows.append(pd.DataFrame({"layer": layer, "value": values, "answer": word, "state": state}))
    table = pd.concat(rows)
    table = table.assign(low=table["value"] - 0.6, high=table["value"] + 0.6)
    unit = "log-probability [nat]"
    return line_panels(table, value="value", by="answer", panel="state", unit=unit, marked=[5], **options)


def mediated(**options) -> Figure:
    shares = 1.1 * hills(kind=3, position=7, layer=16) - 0.2
    labels, titles = (
        ["The", "Eiffel", "Tower", "is", "in", "the", "city"],
        ("residual state", "attention", "MLP output"),
    )
    panels = [
        Panel(title=title, values=shares.sel(kind=kind).values, labels=labels, stars=[(4, 2)] if kind == 2 else [])
        for kind, title in enumerate(titles)
    ]
    return map_panels(panels, headline="effect gained", **options)


def retained(**options) -> Figure:
    """Of two methods, by role: most for what was edited, little for neighbours."""
    means = {"edit": 1.0, "paraphrase": 0.7, "one hop": 0.3, "neighbour": 0.05}
    rows = [
        (method, role, mean * height + 0.25 * np.sin(7 * probe + 3 * height) * (role != "edit"))
        for method, height in {"ROME": 1.0, "MEMIT": 0.8}.items() for role, mean in means.items()
        for probe in range(1 if role == "edit" else 14)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "role", "share"])
    unit = "share of the edit's effect"
    return groups_figure(
        table, value="share", by="role", hue="method", levels=(0.0, 1.0), unit=unit, resamples=200, **options
    )


def reused() -> edit.MediatorReuse:
    """Mediators of which a paraphrase uses most, and consequences ever fewer."""
    place, kept = np.arange(40), np.array([1.0, 0.8, 0.45, 0.1])[:, None]
    effect = 1.5 * (kept * np.sin(2.3 * place) * np.exp(-0.1 * place) + (1 - kept) * 0.1 * np.cos(3.1 * place))
    totals = pd.DataFrame({
        "role": ["edit", "paraphrase", "consequence", "consequence"],
        "text": ["The Tower is in the city of", "See the Tower in", "The Tower's country is", "There they speak"],
        "old": ["Paris", "Paris", "France", "French"], "new": ["Rome", "Rome", "Italy", "Italian"],
        "base": [-5.0, -4.0, -3.0, -3.5], "edited": [6.0, 4.0, 1.0, -1.5], "edited_rank_new": [1, 1, 3, 40],
    })  # fmt: skip
    totals["total_effect"] = totals.edited - totals.base
    total = totals["total_effect"].to_numpy()[:, None]
    joint = total * kept * np.array([0.6, 0.8])
    data = {
        "effect": (("probe", "mediator"), effect), "chosen": ("mediator", place % 40 < 10),
        "joint": (("probe", "direction"), joint),
        "random": (("probe", "direction", "sample"), 0.2 * total[..., None] * np.sin(np.arange(6) + joint[..., None])),
    }  # fmt: skip
    coords = {
        "direction": ["lost", "gained"], "kind": ("mediator", np.where(place % 3, "attn_head", "mlp")),
        "layer": ("mediator", 5 + place // 4), "head": ("mediator", np.where(place % 3, place % 9, -1)),
    }  # fmt: skip
    info = {"model": "tiny", "method": "ROME", "layers": [4]}
    return edit.MediatorReuse(data=xr.Dataset(data, coords=coords), totals=totals, info=info)


def foreseen() -> edit.ReachPrediction:
    """Of three consequences the first is near already, and the last without another fact."""
    scores = np.array([[2, 0.9, 0.6, 0.4, 3, 0.7], [-3, 0.7, 0.1, 0.1, 1, 0.4], [-6, 0.1, -0.2, 0, np.nan, 0]])
    table = reused().totals[["role", "text", "old", "new", "base"]].iloc[1:].reset_index(drop=True)
    data = xr.Dataset({"score": (("probe", "feature"), scores)}, coords={"feature": list(FEATURES)})
    return edit.ReachPrediction(data=data, probes=table, info={"request": "The Tower is in the city of: Paris → Rome"})


def reached() -> edit.ReachStudy:
    """Of twelve facts with two probes each, of which some scores tell and others do not."""
    fact, probe = np.arange(12)[:, None], np.arange(2)
    margin = 3 * np.sin(1.7 * fact + 2.9 * probe)
    tells = np.linspace(0.9, -0.2, 5)[:, None, None]
    score = tells * margin + 2 * np.cos(np.arange(5)[:, None, None] + 5.1 * fact + 1.3 * probe)
    outcome = np.stack([margin > 0, margin, 0.4 + 0.1 * margin + 0.05 * np.sin(9 * fact)])
    data = {"score": (("name", "fact", "probe"), score), "outcome": (("what", "fact", "probe"), outcome)}
    coords = {"name": ["near", "key", "first order", "mediators", "combined"], "what": list(OUTCOMES)}
    return edit.ReachStudy(data=xr.Dataset(data, coords=coords), info={"method": "ROME", "facts": 12})


def beside(part: str, parts: list[str], measures: list[str]) -> xr.Dataset:
    """Measures of a shift, most of them beside those of fifteen pairs."""
    of, measure, pair = np.arange(len(parts))[:, None], np.arange(len(measures)), np.arange(15)[:, None, None]
    shift, null = 0.5 + 0.4 * np.sin(2 * of + 3 * measure), 0.45 + 0.2 * np.sin(2.3 * pair + of + 2 * measure)
    dims = (part, "measure")
    data = {"shift": (dims, shift), "comparable": (dims, shift), "null": (("pair", *dims), null)}
    return xr.Dataset(data, coords={part: parts, "measure": measures})


def traces_apart(**options) -> Figure:
    kinds = ["mlp", "attn"]
    effect = 0.4 * hills(side=2, kind=2, position=4, layer=8)
    data = beside("kind", kinds, ["overlap", "earth_mover", "spearman", "best_apart"]).assign(
        effect=effect.assign_coords(side=["before", "after"], kind=kinds, position=[1, 2, 3, 8]),
        total_effect=("side", [0.6, 0.9]),
        best=(("side", "kind", "place"), [[[6, 2], [3, 1]], [[4, 2], [5, 3]]]),
    )
    info = {"answers": [" Paris", " Rome"], "k": 10, "confidence": 0.9, "null": list("abcde")}
    tokens = ("The", " E", "iffel", " Tower", " is", " in", " the", " city", " of")
    return edit.TraceShift(data=data, tokens=tokens, subject_span=(0, 4), info=info).plot(**options)


def circuits_apart(**options) -> Figure:
    one = circuit(40)
    scores = xr.concat(
        [one.scores, one.scores * (1 + np.sin(np.arange(one.scores.size)).reshape(one.scores.shape))], "side"
    )
    data = beside("part", ["edges", "nodes"], ["jaccard", "spearman", "mass_moved"]).assign(
        scores=scores.assign_coords(side=["before", "after"])
    )
    info = {"old": "Paris", "new": "Rome", "edges": 350, "confidence": 0.9, "null": list("abcde")}
    return edit.CircuitShift(data=data, writers=one.writers, readers=one.readers, info=info).plot(**options)


def left_over(**options) -> Figure:
    """An old answer that falls behind the new one late, and comes back in some contexts."""
    layer = np.arange(12)
    old, new = -9 + 8 / (1 + np.exp(7 - layer)), -11 + 2 / (1 + np.exp(7 - layer))
    logs = np.stack([[old, new], [old - np.maximum(layer - 6, 0), new + np.maximum(1.6 * layer - 9, 0)]])
    parts = [(kind, at, unit) for at in layer for kind, unit in (("head", 0), ("head", 1), ("mlp", -1))]
    adds = np.sin(np.arange(2 * 2 * len(parts)) * 1.7).reshape(2, 1, 2, -1)
    data = {
        "log_probability": (("side", "probe", "layer", "answer"), np.moveaxis(logs, 1, 2)[:, None]),
        "written": (("side", "probe", "answer", "part"), adds),
    }
    places = zip(("part_kind", "part_layer", "part_unit"), zip(*parts, strict=True), strict=True)
    coords = {
        "side": ["before", "after"],
        "answer": ["old", "new"],
        **{name: ("part", list(one)) for name, one in places},
    }
    contexts = pd.DataFrame({
        "kind": ["bare", "stated", "neighbour", "alone"], "invites": [False, True, True, True],
        "text": "It is in Paris\nThe Tower is in", "old_before": [0.7, 0.95, 0.9, 0.85], "rank_before": 1,
        "new_before": [0.02, 0.02, 0.01, 0.0], "old_after": [0.01, 0.8, 0.3, 0.1], "rank_after": [2, 1, 2, 2],
        "new_after": [0.97, 0.15, 0.6, 0.85],
    })  # fmt: skip
    probes = pd.DataFrame([{"role": "edit", "text": "The Tower is in", "old": "Paris", "new": "Rome"}])
    return edit.OldFactResidue(
        data=xr.Dataset(data, coords={"layer": layer, **coords}), probes=probes, contexts=contexts, info={}
    ).plot(n=6, **(options or {"figsize": (5.2, 3.2)}))


DRAWINGS: dict[str, Callable[..., Figure]] = {
    "trace": trace,
    "average": lambda **options: averaged().plot(**options),
    "average_lines": lambda **options: averaged().plot_lines(kinds=["mlp"], **options),
    "average_heads": lambda **options: averaged().plot_heads(**options),
    "patches": lambda **options: patched(
        0.6 * hills(layer=8, position=3), sites="resid_pre", by=["layer", "position"]
    ).plot(**options),
    "patches_of_heads": lambda **options: heads().plot(**options),
    "patches_of_senders": senders,
    "average_patches": lambda **options: locate.average_patches([heads(), heads(1)]).plot(**options),
    "knockout": lambda **options: blocked({"layer": 8}, **options),
    "knockout_of_heads": lambda **options: blocked({"layer": 8, "head": 4}, **options),
    "propagation": propagation,
    "mediator_reuse": lambda **options: reused().plot(**options),
    "reach_prediction": lambda **options: foreseen().plot(**options),
    "reach_study": lambda **options: reached().plot(**options),
    "trace_shift": traces_apart,
    "circuit_shift": circuits_apart,
    "old_fact_residue": left_over,
    "footprint": footprint,
    "concentration": lambda **options: edit.plot_concentration(
        {"ROME": spread("ROME", 3), "MEMIT": spread("MEMIT", 0, 1, 2)}, **options
    ),
    "column_readout": lambda **options: edit.plot_column_readout({"ROME": said(1), "MEMIT": said(9)}, **options),
    "localisation_similarity": lambda **options: alike().plot(**options),
    "layer_choice": lambda **options: layers().plot(**(options or {"figsize": (3.3, 3.9)})),
    "layer_correlations": lambda **options: layers().plot_correlations(resamples=50, **options),
    "reversal": lambda **options: reversal().plot(**(options or {"figsize": (5.8, 2.5)})),
    "weight_footprint": lambda **options: weight_footprint().plot(**(options or {"figsize": (6.4, 2.4)})),
    "attention_drift": lambda **options: attention_drift().plot(**options),
    "circuit": lambda **options: circuit(40).plot(**options),
    "edit_circuit": lambda **options: edit_circuit().plot(edges=50, **(options or {"figsize": (2.6, 2.4)})),
    "edit_circuit_curve": lambda **options: edit_circuit().plot_curve(**options),
    "circuit_of_many_edges": lambda **options: circuit(100).plot(**(options or {"figsize": (2.2, 2.4)})),
    "neurons": lambda **options: neurons().plot(**options),
    "value_heads": value_heads,
    "neuron_overlap": lambda **options: neuron_overlap(4, **options),
    "neuron_overlap_of_many": lambda **options: neuron_overlap(14, **options),
    "neuron_effects": neuron_effects,
    "attribution": lambda **options: attribution("head").plot(**options),
    "attribution_lines": lambda **options: attribution("component").plot(**options),
    "attribution_top": lambda **options: attribution("head").plot_top(n=8, **options),
    "lens": lambda **options: lens(3).plot(**options),
    "lens_map": lambda **options: lens(1).plot_map(**options),
    "edge_effects": lambda **options: edge_effects().plot(n=10, **options),
    "linearity": lambda **options: linearity().plot(**options),
    "waterfall": contributions,
    "line_panels": before_and_after,
    "map_panels": mediated,
    "groups": retained,
    "flow": lambda **options: flow_figure(made_up_flow(30), **(options or {"figsize": (6.0, 3.2)})),
    "faithfulness": lambda **options: faithfulness(0.9).plot(**options),
    "faithfulness_of_several": lambda **options: locate.plots.plot_faithfulness(
        {
            "one": faithfulness(0.9),
            "another": faithfulness(1.2),
        },
        **options,
    ),
}
# Drawn in the width of a column as well.
NARROW = (
    "attention_drift", "average", "circuit_shift", "flow", "lens_map", "linearity", "map_panels", "mediator_reuse",
    "propagation", "reach_prediction", "trace",
)  # fmt: skip
COLUMN = 3.3


def pictures() -> dict[str, Callable[[], Figure]]:
    """What each committed picture shows."""
    narrow = {f"{name}_narrow": partial(DRAWINGS[name], width=COLUMN) for name in NARROW}
    return {**DRAWINGS, **narrow}


def draw(name: str, path: Path) -> Figure:
    """Write a picture, whatever the settings of whoever looks at it."""
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = pictures()[name]()
        figure.set_dpi(DPI)
        figure.savefig(path, dpi=DPI)
    return figure


if __name__ == "__main__":
    mpl.use("Agg")
    PICTURES.mkdir(exist_ok=True)
    for name in pictures():
        draw(name, PICTURES / f"{name}.png")
    for path in PICTURES.glob("*.png"):
        if path.stem not in pictures():
            path.unlink()
