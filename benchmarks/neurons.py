"""Neurons: whether integrated gradients add up, what the sweep of all layers saves, and whether the neurons matter.

    python -m benchmarks.neurons [--facts 50] [--paraphrases 1] [--rules 2] [--sweeps 2] [--random 20]

Facts that ship with the project and that the model knows, spread over their relations. Four parts, the first two left
out at 0, the others together:

1. The rules of the integral: |Σ attributions − change of P| as a share of the change (or of a thousandth, where P
   hardly changes), over prompts and layers, and the seconds of each rule.
2. All layers in one sweep against integrated gradients layer by layer, as published: whole passes of all steps' rows;
   once more in float64, where what roundings make of it is gone.
3. Completeness at the default steps, over all prompts and paraphrases of the facts.
4. Refined neurons suppressed (×0) and amplified (×2) beside random sets of the same layers: paired tests, both ways.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

import locate
from benchmarks.timing import machine, seconds
from locate.facts.prompts import encode_target
from locate.neurons.knowledge import attribute_neurons
from locate.sites.site import hook_name

T = TypeVar("T")

RULES = {"right": (20, 100), "adaptive": (None,)}
# Of the published integral; and the layers that are run one by one.
_STEPS, _LAYERS = 20, 5


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=50, help="of completeness and of the test")
    parser.add_argument("--paraphrases", type=int, default=1, help="of each fact, beside its prompt")
    parser.add_argument("--rules", type=int, default=2, help="facts on which the rules are compared")
    parser.add_argument("--sweeps", type=int, default=2, help="facts on which the sweep is compared")
    parser.add_argument("--random", type=int, default=20, help="random sets for each fact")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model = locate.load_model(asked.model)
    print(f"{machine()}; {asked.model}, {model.cfg.n_layers} layers of {model.cfg.d_mlp} neurons", flush=True)
    known = locate.bundled_facts(known_to="smollm2-135m")
    if asked.rules:
        _rules(model, _spread(known, asked.rules))
    if asked.sweeps:
        _sweeps(asked.model, model, _spread(known, asked.sweeps))
    if asked.facts:
        facts = [replace(one, paraphrases=one.paraphrases[: asked.paraphrases]) for one in _spread(known, asked.facts)]
        _neurons(model, facts, asked.random)


def _spread(facts: list[locate.Fact], n: int) -> list[locate.Fact]:
    """So many of the facts, as far from each other as they come: of all relations."""
    return [facts[place] for place in np.linspace(0, len(facts) - 1, min(n, len(facts))).astype(int)]


def _rules(model: TransformerBridge, facts: list[locate.Fact]) -> None:
    alone = [replace(one, paraphrases=()) for one in facts]
    print(f"\n{len(alone)} prompts × {model.cfg.n_layers} layers\n")
    print("| rule | missed, median | 90% of layers | most | layers within 2% | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rule, several in RULES.items():
        for steps in several:
            options = {"rule": rule, "steps": steps, "progress": False}
            found, took = _timed(lambda options=options: locate.knowledge_neurons(model, alone, **options))
            missed = found.missed.values
            name = rule if steps is None else f"{rule}, {steps} points"
            middle, most = (f"{100 * np.quantile(missed, share):.2f}%" for share in (0.5, 0.9))
            within = f"{100 * (missed <= 0.02).mean():.0f}%"
            print(f"| {name} | {middle} | {most} | {100 * missed.max():.1f}% | {within} | {took:.1f} |", flush=True)


def _sweeps(name: str, model: TransformerBridge, facts: list[locate.Fact]) -> None:
    ratios, apart = [], []
    # Layer by layer every layer costs the same: whole passes.
    layers = sorted({*np.linspace(0, model.cfg.n_layers - 1, _LAYERS).astype(int).tolist()})
    print(
        f"\nAll layers in one sweep against layer by layer, {_STEPS} right ends each; of the latter {len(layers)} "
        "layers are run, and the time of all follows from theirs"
    )
    for fact in facts:
        prompt = locate.encode_fact(model, fact)
        answer = int(encode_target(model, prompt, fact.target)[0])
        found: dict[str, torch.Tensor] = {}

        def sweep(tokens: torch.Tensor = prompt.tokens, answer: int = answer, found: dict = found) -> None:
            found["sweep"] = attribute_neurons(model, tokens, answer, steps=_STEPS, rule="right").values

        def literal(tokens: torch.Tensor = prompt.tokens, answer: int = answer, found: dict = found) -> None:
            found["literal"] = layer_by_layer(model, tokens, answer, layers)

        sweep()  # what a first run of a form finds out
        fast, slow = seconds(sweep), seconds(literal) * model.cfg.n_layers / len(layers)
        ratios.append(slow / fast)
        apart.append(float((found["sweep"][layers] - found["literal"]).abs().max()))
        print(
            f"  {len(prompt.tokens)} tokens: {fast:.2f} s against {slow:.2f} s, {ratios[-1]:.1f} times; largest "
            f"difference {apart[-1]:.1e} of values up to {float(found['literal'].abs().max()):.2f}",
            flush=True,
        )
    print(
        f"  {np.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}; asked: 15), apart by "
        f"{max(apart):.1e} at most (asked: 1e-5)"
    )
    prompt = locate.encode_fact(model, facts[0])
    answer = int(encode_target(model, prompt, facts[0].target)[0])
    exact, ends = locate.load_model(name, dtype=torch.float64), [layers[0], layers[-1]]
    swept = attribute_neurons(exact, prompt.tokens, answer, steps=_STEPS, rule="right").values[ends]
    difference = float((swept - layer_by_layer(exact, prompt.tokens, answer, ends)).abs().max())
    print(f"  in float64, on the first fact in layers {ends[0]} and {ends[1]}: apart by {difference:.1e} at most")


def layer_by_layer(model: TransformerBridge, tokens: torch.Tensor, answer: int, layers: Sequence[int]) -> torch.Tensor:
    """Integrated gradients as published: for each layer a batch of whole passes, a row for each step."""
    table = []
    shares = torch.arange(1, _STEPS + 1, dtype=model.cfg.dtype)[:, None] / _STEPS
    for layer in layers:
        name = hook_name("neuron", layer)
        own: list[torch.Tensor] = []
        with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda value, hook, own=own: own.append(value[0, -1]))]):
            model(tokens[None])
        scaled = (own[0].clone() * shares).requires_grad_()

        def put(value: torch.Tensor, hook: object, scaled: torch.Tensor = scaled) -> torch.Tensor:
            return torch.cat([value[:, :-1], scaled[:, None]], dim=1)

        with model.hooks(fwd_hooks=[(name, put)]):
            chances = model(tokens.expand(_STEPS, -1))[:, -1].softmax(-1)[:, answer]
        (gradient,) = torch.autograd.grad(chances.sum(), scaled)
        table.append(own[0] * gradient.mean(0))
    return torch.stack(table).detach()


def _neurons(model: TransformerBridge, facts: list[locate.Fact], random: int) -> None:
    scores, took = _timed(lambda: locate.knowledge_neurons(model, facts, progress=False))
    missed = np.concatenate(scores.info["missed"])
    prompts, layers = (100 * float((one <= 0.02).mean()) for one in (missed, scores.missed))
    print(
        f"\nCompleteness at the default steps: {prompts:.1f}% of {len(missed)} prompts within 2% in every layer "
        f"(asked: 95%), {layers:.1f}% of facts' layers; {took:.0f} s"
    )
    sizes = [len(scores.refined(index, least=0)) for index in range(len(facts))]
    print(f"Refined sets: {np.median(sizes):.0f} neurons ({min(sizes)} to {max(sizes)}; {sizes.count(0)} empty)")
    effects, took = _timed(lambda: locate.verify_neurons(model, facts, scores, random=random, progress=False))
    print(f"Suppressed and amplified beside {random} random sets each, changes with intervals of 95%; {took:.0f} s")
    for metric in effects.metrics:
        print(f"{metric}:")
        for row in effects.of(metric).summary().to_dict("records"):
            told = "; ".join(
                f"{name} {row[name]:+.3g} ({row[f'{name}_low']:+.3g} to {row[f'{name}_high']:+.3g})"
                for name in ("effect", "random", "difference")
            )
            tests = f"Wilcoxon p {row['wilcoxon']:.1e}, permutation p {row['permutation']:.1e}"
            alike = f"sign of the mean in {100 * row['same_sign']:.0f}%"
            print(f"  ×{row['factor']:g} on {row['on']}, {row['facts']} facts: {told}; {alike}; {tests}", flush=True)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    found: list[T] = []
    took = seconds(lambda: found.append(work()))
    return found[0], took


if __name__ == "__main__":
    main()
