"""What is asked of every type of model, each against whole passes with plain hooks.

A check passes, with a word on what is missing, or raises a ``LocateError`` that says why the type is refused. Whatever
else it raises is a mistake.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import edit
import locate
from benchmarks import literal
from edit.values.contexts import build_contexts
from edit.values.optimisation import optimise_value
from locate import LocateError, ModelError
from locate.engine import freeze
from locate.engine.embedding import other_embeddings
from locate.engine.freezing import token_places
from locate.model.anatomy import anatomy
from locate.model.weights import down_projection, hf_parameters, model_fingerprint
from locate.neurons.knowledge import attribute_neurons
from locate.sites.contributions import contribution_hooks, contributions
from locate.sites.table import TABLE, hook_name
from tests import tiny
from tests.architectures import table

FACT = locate.Fact(
    prompt="I think that {} is in the city of", subject="Big Ben", target="Paris", target_new="Rome",
    paraphrases=("{} stands in",),
)  # fmt: skip
NOISE = locate.GaussianNoise(samples=2)
WINDOW = 2
PREFIXES = ("I am. ",)
OBJECTIVE = edit.ValueObjective(steps=3)
# Of the spread of the logits, and of a probability.
CLOSE = 1e-4
CLOSE_CHANCE = 1e-3
PATCHED = [row for row in TABLE if row.layered and (row.by_position or row.name == "attn_head_pattern")]


@dataclass(frozen=True, eq=False)
class Tried:
    """A type of model, with and without a bridge, and two prompts of one length."""

    kind: str

    @cached_property
    def plain(self) -> Any:
        return table.hf_model(self.kind)

    @cached_property
    def model(self) -> Any:
        return table.bridge(self.kind)

    @cached_property
    def tokens(self) -> torch.Tensor:
        return torch.tensor(tiny.tokenizer()(FACT.text)["input_ids"])

    def with_another(self, position: int) -> torch.Tensor:
        """The prompt with another token at a position."""
        other = self.tokens.clone()
        other[position] = tiny.tokenizer()(" London")["input_ids"][0]
        return other

    @property
    def n_layers(self) -> int:
        return self.model.cfg.n_layers

    def dense_layer(self) -> int:
        """A layer with one down-projection, if any has."""
        for layer in (1, *range(self.n_layers)):
            with suppress(ModelError):
                down_projection(self.model, layer)
                return layer
        return down_projection(self.model, 1).layer  # says why

    def update(self) -> edit.WeightUpdate:
        """A random change of a matrix in a layer: the last one there, most often the down-projection."""
        block = {id(parameter) for parameter in self.model.blocks[1].parameters()}
        known = {name: one.detach() for name, one in hf_parameters(self.model).items() if id(one) in block}
        names = [name for name, one in known.items() if one.ndim == 2 and float(one.std())]
        parameter = known[names[-1]]
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(size, 1, generator=generator) for size in parameter.shape)
        size = 0.5 * float(parameter.std())
        delta = edit.LowRank(left=size * left, right=right.T)
        return edit.WeightUpdate.make(self.model, {names[-1]: delta}, method="random")


def blocks_of(plain: nn.Module, n_layers: int) -> nn.ModuleList:
    return next(one for one in plain.modules() if isinstance(one, nn.ModuleList) and len(one) == n_layers)


def changed(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A block's output with its states changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


@torch.no_grad()
def plain_logits(plain: Any, tokens: torch.Tensor, hooks: Sequence[tuple[nn.Module, Callable]] = ()) -> torch.Tensor:
    """The last position's logits of a whole pass under plain hooks on some modules' outputs."""
    with ExitStack() as stack:
        for module, change in hooks:
            hook = module.register_forward_hook(lambda _module, _args, output, change=change: changed(output, change))
            stack.callback(hook.remove)
        return plain(tokens).logits[:, -1]


def hooked_logits(model: Any, tokens: torch.Tensor, hooks: Sequence[tuple[str, Callable]]) -> torch.Tensor:
    """The same of a bridge, by hook points."""
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model(tokens)[:, -1]


def difference(logits: torch.Tensor) -> torch.Tensor:
    return (logits[:, 7] - logits[:, 9]).float()


def assert_close(found: Any, expected: torch.Tensor, scale: float, tolerance: float = CLOSE) -> None:
    wrong = float((torch.as_tensor(found) - expected).abs().max()) / scale
    assert wrong <= tolerance, f"off by {wrong:.2g}"


def boots(tried: Tried) -> str:
    """The bridge computes what the plain model does, and a frozen run the same."""
    tokens = torch.stack([tried.tokens, tried.with_another(4)])
    with torch.no_grad():
        expected = tried.plain(tokens).logits
        assert_close(tried.model(tokens), expected, float(expected.std()))
    assert float(expected.std()) > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = freeze(tried.model, tokens)
    assert_close(run.logits, expected[:, -1], float(expected.std()))
    return "resumed" if run.resumable else "whole passes"


def trace_of_states(tried: Tried) -> str:
    """Restoring the stream after a block, everywhere."""
    found = causal_trace(tried, ["resid"])
    answer = tiny.tokenizer()(" " + FACT.target)["input_ids"][0]
    blocks = blocks_of(tried.plain, tried.n_layers)
    batch = tried.tokens.expand(1 + NOISE.samples, -1)
    modules = dict(tried.plain.named_modules())
    stream = next(name for name, one in modules.items() if one is tried.plain.get_input_embeddings())
    names = [stream, *other_embeddings(tried.model)]
    embeddings = [
        (modules[name], lambda value, noise=noise: torch.cat([value[:1], value[1:] + noise]))
        for name, noise in noise_by_module(tried.plain, tried.tokens, names, found.subject_span).items()
    ]
    # Before the subject, in it, after it, and at the end.
    positions = [2, *range(found.subject_span[0], found.subject_span[1] + 2), len(tried.tokens) - 1]
    expected = torch.empty(len(positions), tried.n_layers)
    for place, position in enumerate(positions):
        for layer in range(tried.n_layers):

            def restore(value: torch.Tensor, position: int = position) -> torch.Tensor:
                value = value.clone()
                value[1:, position] = value[0, position]
                return value

            logits = plain_logits(tried.plain, batch, [*embeddings, (blocks[layer], restore)])
            expected[place, layer] = logits[1:].softmax(-1)[:, answer].mean()
    compare_chances(found.scores.sel(kind="resid", position=positions).values, expected)
    return ""


def noise_by_module(
    model: Any, tokens: torch.Tensor, names: list[str], span: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """What modules that look tokens up get added, drawn one after the other and as large as their own values spread."""
    modules, found = dict(model.named_modules()), {}
    draws = np.random.RandomState(NOISE.seed)
    for name in names:
        with torch.no_grad():
            value = modules[name](tokens[None])[0]
        own = value[slice(*span)]
        found[name] = torch.zeros(NOISE.samples, *value.shape)
        noise = draws.randn(NOISE.samples, *own.shape) * NOISE.scale * float(own.std())
        found[name][:, slice(*span)] = torch.tensor(noise, dtype=torch.float32)
    return found


def trace_of_parts(tried: Tried) -> str:
    """Restoring what attention and MLP add, in windows of layers."""
    if other_embeddings(tried.model):
        return "not tried: tokens bring more than the stream"
    found = causal_trace(tried, ["mlp", "attn"])
    sites = [(position, layer) for position in (3, 4, 6, len(tried.tokens) - 1) for layer in range(tried.n_layers)]
    missing: set[str] = set()
    for kind in ("mlp", "attn"):
        expected = literal.causal_trace(tried.model, FACT, kind, window=WINDOW, corruption=NOISE, sites=sites)
        places = tuple(torch.tensor(sites).T)
        own = torch.tensor(found.scores.sel(kind=kind).values)[places]
        there = ~own.isnan()  # in the layers that have it
        compare_chances(own[there], expected[places][there])
        missing |= {kind} if not bool(there.all()) else set()
    return f"{' and '.join(sorted(missing))} in some layers" if missing else ""


def causal_trace(tried: Tried, kinds: list[str]) -> locate.Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate.causal_trace(tried.model, FACT, kinds=kinds, window=WINDOW, corruption=NOISE, progress=False)


def compare_chances(found: Any, expected: torch.Tensor) -> None:
    """Relative to each other: with random weights an answer's probability is small."""
    assert float(expected.std() / expected.mean()) > 0.01  # or there would be nothing to get wrong
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=CLOSE_CHANCE)


def patch(tried: Tried, clean: torch.Tensor, corrupt: torch.Tensor, **options: Any) -> locate.Patches:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate.patch(tried.model, clean, corrupt, metric=difference, progress=False, **options)


def cut(tried: Tried) -> str:
    """The whole state of the one token that differs, in any layer, is the other run."""
    last = len(tried.tokens) - 1
    other = tried.with_another(last)
    clean, corrupt = (plain_logits(tried.plain, one[None]) for one in (tried.tokens, other))
    assert not torch.allclose(clean, corrupt, atol=1e-2 * float(clean.std()))
    for site in ["block_in"] if token_places(tried.model) else ["resid_pre", "block_in"]:
        found = patch(tried, tried.tokens, other, sites=site, positions=[last])
        assert_close(found.values.values, difference(clean), float(clean.std()))
    return "block_in alone" if token_places(tried.model) else ""


def patches(tried: Tried) -> str:
    """Every kind of site of the table, at a token and a unit."""
    clean, corrupt = tried.tokens, tried.with_another(4)
    scale = float(plain_logits(tried.plain, clean[None]).std())
    refused: list[str] = []
    why: LocateError | None = None
    largest = 0.0
    for row in PATCHED:
        unit = None if row.unit is None else row.unit.removeprefix("kv_")
        options: dict[str, Any] = {"by": ("layer", "position", unit), "units": [1]} if unit else {}
        if row.name == "attn_head_pattern":
            options = {"by": ("layer", "position", "head"), "units": [1]}
        if row.name == "attn_head_k" or row.name == "attn_head_v":
            options["units"] = [0]
        try:
            found = patch(tried, clean, corrupt, sites=row.name, positions=[4, 6], **options)
        except LocateError as error:
            refused.append(row.name)
            why = error
            continue
        if row.name == "block_in" and token_places(tried.model):
            continue  # more than a state: see ``cut``
        for place, layer in enumerate(found.values["layer"].values.tolist()):
            source = source_of(tried, row, clean, layer)
            for index, position in enumerate((4, 6)):
                expected = literal_patch(tried, row, source, corrupt, layer, position, options.get("units", [0])[0])
                assert_close(found.values.values[place, index].item(), expected, scale)
                largest = max(largest, abs(float(expected) - found.corrupted))
    if why is not None and len(refused) == len(PATCHED):
        raise why
    assert largest > 0.01 * scale
    return f"not {', '.join(refused)}" if refused else ""


def source_of(tried: Tried, row: Any, clean: torch.Tensor, layer: int) -> torch.Tensor:
    """What the clean run has at a place; in the middle of a block, the sum of what entered and attention's output."""
    names = ["resid_pre", "attn_out"] if row.name == "resid_mid" else [row.name]
    seen: list[torch.Tensor] = []
    hooks = [(hook_name(name, layer), lambda value, hook: seen.append(value.clone())) for name in names]
    hooked_logits(tried.model, clean[None], hooks)
    return sum(seen[1:], seen[0])


def literal_patch(
    tried: Tried, row: Any, source: torch.Tensor, corrupt: torch.Tensor, layer: int, position: int, unit: int
) -> torch.Tensor:
    seen: dict[str, torch.Tensor] = {}
    middle = row.name == "resid_mid"
    name = hook_name("attn_out" if middle else row.name, layer)
    seen: dict[str, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook: Any) -> None:
        seen["entering"] = value.clone()

    def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        if middle:  # attention's output is what brings the sum to the wanted state
            value[:, position] = source[:, position] - seen["entering"][:, position]
        elif row.name == "attn_head_pattern" or (row.unit and value.shape[1] != len(corrupt)):
            value[:, unit, position] = source[:, unit, position]
        elif row.unit:
            value[:, position, unit] = source[:, position, unit]
        else:
            value[:, position] = source[:, position]
        return value

    entering = [(hook_name("resid_pre", layer), keep)] if middle else []
    return difference(hooked_logits(tried.model, corrupt[None], [*entering, (name, put)]))


def neurons(tried: Tried) -> str:
    """Integrated gradients against differences of whole passes."""
    answer, steps, layer, step = 7, 4, 1, 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = attribute_neurons(tried.model, tried.tokens, answer, steps=steps, rule="right").values[layer]
    seen: list[torch.Tensor] = []
    name = hook_name("neuron", layer)
    hooked_logits(tried.model, tried.tokens[None], [(name, lambda value, hook: seen.append(value[0, -1].clone()))])
    (own,) = seen
    largest = found.abs().topk(3).indices
    shares = torch.arange(1, steps + 1) / steps
    rows = own * shares[:, None, None, None].expand(-1, len(largest), 2, 1)
    size = step * float(own.abs().max())
    for index, neuron in enumerate(largest.tolist()):
        rows[:, index, 0, neuron] -= size
        rows[:, index, 1, neuron] += size
    flat = rows.flatten(0, 2)

    def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([value[:, :-1], flat[:, None]], dim=1)

    chances = hooked_logits(tried.model, tried.tokens.expand(len(flat), -1), [(name, put)]).softmax(-1)[:, answer]
    below, above = chances.view(rows.shape[:3]).unbind(-1)
    expected = own[largest] * ((above - below) / (2 * size)).mean(0)
    assert_close(found[largest], expected, float(expected.abs().max()), 0.05)
    return ""


def edits(tried: Tried) -> str:
    """ROME writes v* exactly, and is taken back bit for bit."""
    layer = tried.dense_layer()
    request = edit.EditRequest(FACT)
    size = down_projection(tried.model, layer).key_size
    root = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = edit.KeyStatistics(
        second_moment=root.T @ root / len(root), count=len(root), layer=layer, corpus="random", seed=0,
        fingerprint=model_fingerprint(tried.model),
    )  # fmt: skip
    method = edit.ROME(
        openings=(),
        layer=layer,
        objective=OBJECTIVE,
        prefixes=PREFIXES,
        statistics={layer: statistics},
        bare_weight=None,
    )
    before = {name: one.detach().clone() for name, one in hf_parameters(tried.model).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update = method.fit(tried.model, [request], progress=False)
        value = optimise_value(tried.model, build_contexts(tried.model, request, ["", *PREFIXES]), layer, OBJECTIVE)
    key = value.keys.mean(0)
    projection = tried.model.blocks[layer].mlp.out
    with torch.no_grad(), update.applied(tried.model):
        written = projection(key[None, None])[0, 0]
    old = value.outputs.mean(0)
    assert_close(written, value.value, float((value.value - old).norm()), 1e-3)
    assert float((value.value - old).norm()) > 1e-2 * float(old.norm())
    assert all(torch.equal(one, before[name]) for name, one in hf_parameters(tried.model).items())
    dense = [one for one in range(tried.n_layers) if is_dense(tried, one)]
    return "" if len(dense) == tried.n_layers else f"layers {', '.join(map(str, dense))} only"


def is_dense(tried: Tried, layer: int) -> bool:
    try:
        down_projection(tried.model, layer)
    except ModelError:
        return False
    return True


def exports(tried: Tried) -> str:
    """An exported folder says what the edited model says, in plain transformers."""
    update, tokens = tried.update(), tried.tokens[None]
    with torch.no_grad():
        before = tried.model(tokens)
        with update.applied(tried.model):
            edited = tried.model(tokens)
    assert not torch.allclose(before, edited, atol=1e-3 * float(before.std()))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = edit.export(tried.model, update, Path(folder) / "edited")
        loaded = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
        assert_close(loaded(tokens).logits, edited, float(edited.std()))
    return ""


def propagates(tried: Tried) -> str:
    """The last state carries all of an edit's effect, and a state's share is that of a literal exchange."""
    update, layer = tried.update(), 1
    probe = edit.Probe(role="edit", text=FACT.text, new="Rome", old="Paris")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow = edit.mediate(tried.model, update, [probe], kinds=("resid", "mlp", "attn"), progress=False)
    new, old = (tiny.tokenizer()(" " + word)["input_ids"][0] for word in ("Rome", "Paris"))
    tokens = torch.tensor(tiny.tokenizer()(FACT.text)["input_ids"])[None]
    total = float(flow.totals.loc[0, "total_effect"])
    last = tokens.shape[1] - 1
    ends = flow.share(0).sel(kind="resid", layer=tried.n_layers - 1, position=last)
    np.testing.assert_allclose(ends.values, 1, atol=1e-3)
    for kind in ("resid", "mlp", "attn"):
        name, seen = hook_name(kind, layer), []

        def keep(value: torch.Tensor, hook: Any, seen: list = seen) -> None:
            seen.append(value.clone())

        def put(value: torch.Tensor, hook: Any, seen: list = seen) -> torch.Tensor:
            value = value.clone()
            value[:, last] = seen[0][:, last]
            return value

        with update.applied(tried.model):
            hooked_logits(tried.model, tokens, [(name, keep)])
        base = hooked_logits(tried.model, tokens, [])[0]
        with_state = hooked_logits(tried.model, tokens, [(name, put)])[0]
        expected = (with_state[new] - with_state[old]) - (base[new] - base[old])
        own = flow.mediation.sel(probe=0, direction="gained", kind=kind, layer=layer, position=last)
        assert_close(float(own), expected, max(abs(total), float(base.std())))
    return ""


def adds_up(tried: Tried) -> str:
    """Heads, biases and MLP sum to what a layer adds to the stream."""
    with_heads = [layer for layer, one in enumerate(anatomy(tried.model).layers) if one.n_heads]
    names = contribution_hooks(tried.model, with_heads or [0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = freeze(tried.model, tried.tokens[None], keep=names)
    for layer in with_heads:
        found = contributions(tried.model, layer, run.kept)
        total = found.heads.sum(-2) + found.bias
        total = total if found.mlp is None else total + found.mlp
        added = run.residuals[layer + 1] - run.residuals[layer]
        assert_close(total, added, float(added.std()))
    return "" if len(with_heads) == tried.n_layers else f"layers {', '.join(map(str, with_heads))} only"


def lens(tried: Tried) -> str:
    """What parts add sums to the plain model's own difference of two answers, told apart by heads where they can be."""
    tokens = tried.tokens
    logits = plain_logits(tried.plain, tokens[None])[0].double()
    one, other = logits.argsort(descending=True)[:2].tolist()
    remark = ""
    try:
        found = locate.logit_attribution(tried.model, tokens, (one, other), by="head", progress=False)
    except locate.ModelError:
        found = locate.logit_attribution(tried.model, tokens, (one, other), by="layer", progress=False)
        remark = "by layer alone"
    assert_close(found.sum.values, (logits[one] - logits[other])[None], float(logits.std()), 1e-4)
    return remark


def circuits(tried: Tried) -> str:
    """All edges of a circuit are the one run and none of them the other; and every edge has a score."""
    clean, corrupt = tried.tokens, tried.with_another(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = locate.find_circuit(
            tried.model, clean, corrupt, metric=difference, method="eap-relp-ig", steps=1, progress=False
        )
        curve = found.faithfulness(tried.model, clean, corrupt, sizes=[1.0], metric=difference, progress=False)
    expected = [difference(plain_logits(tried.plain, tokens[None])) for tokens in (clean, corrupt)]
    scale = float(plain_logits(tried.plain, clean[None]).std())
    assert_close(curve.data["values"].item(), expected[0], scale)
    assert_close(curve.data["empty"].item(), expected[1], scale)
    assert np.isfinite(found.to_dataframe()["score"]).all()
    assert np.abs(found.to_dataframe()["score"]).max() > 0
    return ""


CHECKS: dict[str, Callable[[Tried], str]] = {
    "run": boots, "trace": trace_of_states, "attn, mlp": trace_of_parts, "cut": cut, "patch": patches,
    "neurons": neurons, "ROME": edits, "export": exports, "propagate": propagates, "contributions": adds_up,
    "lens": lens,
    "circuit": circuits,
}  # fmt: skip
