"""Exact mediation of an edit against whole forward passes with TransformerLens hooks, in one run.

    python -m benchmarks.mediation [--update FILE] [--kinds resid mlp attn] [--repeats 1]

Both exchange every state from the edited layer on, one at a time, between base and edited model, both ways, on the
prompt of the first shipped fact; whole passes one site each, as one writes them. Prints wall times, the ratio, and the
largest difference in logits, which is also taken in float64, where it is not rounding.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edit
import locate
from benchmarks.timing import alternate, machine
from edit.propagation.asking import asked_of
from edit.propagation.sides import Sides

_HOOKS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--update", type=Path, help="of an edit; by default a new one by ROME")
    parser.add_argument("--kinds", nargs="+", default=list(_HOOKS), choices=list(_HOOKS))
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    request = edit.EditRequest(locate.bundled_facts(known_to=arguments.model)[0])
    if arguments.update is None:
        update = edit.ROME(prefix_lengths=((10, 4),)).fit(model, [request])
    else:
        update = edit.load_update(arguments.update)
    probe = edit.probes_for(request)[0]
    found: dict[str, np.ndarray] = {}

    def engine() -> None:
        flow = edit.mediate(model, update, [probe], kinds=arguments.kinds, progress=False)
        found["engine"] = flow.mediation.sel(probe=0).values

    def literal() -> None:
        found["literal"] = _whole_passes(model, update, probe, arguments.kinds)

    fast, slow, ratios = alternate(engine, literal, arguments.repeats)
    shape = f"{found['engine'].size} sites, edited layer {Sides.of(model, update).layers}"
    print(f"{machine()}; {arguments.model}; {probe.text!r}; {shape}")
    print(f"engine {fast:.1f} s, whole passes {slow:.1f} s, ratio {', '.join(f'{ratio:.1f}' for ratio in ratios)}")
    _tell("float32", found)
    del model
    double = locate.load_model(arguments.model, dtype=torch.float64)
    wide = edit.WeightUpdate.make(double, update.deltas, method=update.method)
    flow = edit.mediate(double, wide, [probe], kinds=["mlp"], progress=False)
    found = {
        "engine": flow.mediation.sel(probe=0).values,
        "literal": _whole_passes(double, wide, probe, ["mlp"], at=[-1]),
    }
    found["engine"] = found["engine"][..., -1:, :]
    _tell("float64, MLPs at the last token", found)


def _tell(what: str, found: dict[str, np.ndarray]) -> None:
    apart = float(np.abs(found["engine"] - found["literal"]).max())
    print(f"{what}: largest difference {apart:.1e} logits, of effects up to {np.abs(found['literal']).max():.1f}")


def _whole_passes(model: Any, update: Any, probe: Any, kinds: list[str], at: list[int] | None = None) -> np.ndarray:
    """By direction, kind, position and layer, what one whole pass each says."""
    sides = Sides.of(model, update)
    (asked,) = asked_of(sides, [probe])
    tokens = asked.prompt.tokens[None]
    positions = list(range(tokens.shape[1])) if at is None else at
    effects = np.zeros((2, len(kinds), len(positions), model.cfg.n_layers))

    def run(hooks: Any = ()) -> float:
        with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
            logits = model(tokens)[0, -1]
        return float(logits[asked.new] - logits[asked.old])

    def states(names: list[str]) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        # By the name that was asked for: some hook points are known by several.
        run([(name, lambda value, hook, name=name: seen.__setitem__(name, value.clone())) for name in names])
        return seen

    def exchanged(name: str, position: int, others: dict[str, torch.Tensor]) -> float:
        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[:, position] = others[name][:, position]
            return value

        return run([(name, put)])

    layers = range(sides.layers[0], model.cfg.n_layers)
    names = {(kind, layer): f"blocks.{layer}.{_HOOKS[kind]}" for kind in kinds for layer in layers}
    base, base_states = run(), states(list(names.values()))
    with update.applied(model):
        edited, edited_states = run(), states(list(names.values()))
        for (kind, layer), name in names.items():
            for place, position in enumerate(positions):
                effects[0, kinds.index(kind), place, layer] = edited - exchanged(name, position, base_states)
    for (kind, layer), name in names.items():
        for place, position in enumerate(positions):
            effects[1, kinds.index(kind), place, layer] = exchanged(name, position, edited_states) - base
    return effects


if __name__ == "__main__":
    main()
