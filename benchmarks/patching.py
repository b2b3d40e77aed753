"""Activation patching against TransformerLens' own functions on an IOI prompt, in one run.

    python -m benchmarks.patching [--repeats 3]

Both patch every site from the same clean into the same corrupted run, by the same metric. Prints wall times in turns,
the ratio, and the largest difference of the metric; then how much of the exact answer screening finds, and its time.
"""

import argparse
from statistics import median
from typing import Any

import torch
from transformer_lens import patching as transformer_lens_patching

import locate
from benchmarks.timing import alternate, machine, seconds
from locate.facts.prompts import encode_target, encode_text
from locate.model.devices import input_device

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
_FUNCTIONS = {
    "resid_pre": transformer_lens_patching.get_act_patch_resid_pre,
    "attn_out": transformer_lens_patching.get_act_patch_attn_out,
    "mlp_out": transformer_lens_patching.get_act_patch_mlp_out,
    "attn_head_z": transformer_lens_patching.get_act_patch_attn_head_out_all_pos,
}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sites", nargs="+", default=list(_FUNCTIONS), choices=list(_FUNCTIONS))
    parser.add_argument("--screen", nargs="*", default=["resid_pre", "attn_head_z", "mlp_neurons"])
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    mary, john = (encode_target(model, CLEAN, name)[0] for name in ("Mary", "John"))
    clean, corrupt = (encode_text(model, text).to(input_device(model)) for text in (CLEAN, CORRUPT))

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, mary] - logits[:, john]).float()

    shape = f"{len(clean)} tokens, {model.cfg.n_layers} layers, {model.cfg.n_heads} heads"
    print(f"{machine()}; {arguments.model}; “{CLEAN}” against “… Mary gave …”; {shape}")
    locate.patch(model, clean, corrupt, metric=metric, progress=False)  # warm up
    with torch.no_grad():
        _, cache = model.run_with_cache(clean[None])
    for sites in arguments.sites:
        found: dict[str, torch.Tensor] = {}

        def engine(sites: str = sites, found: dict[str, torch.Tensor] = found) -> None:
            patches = locate.patch(model, clean, corrupt, sites=sites, metric=metric, progress=False)
            found["engine"] = torch.from_numpy(patches.values.values)

        def loop(sites: str = sites, found: dict[str, torch.Tensor] = found) -> None:
            with torch.no_grad():
                found["loop"] = _FUNCTIONS[sites](model, corrupt[None], cache, lambda logits: metric(logits[:, -1])[0])

        fast, slow, ratios = alternate(engine, loop, arguments.repeats)
        difference = float((found["engine"] - found["loop"].cpu()).abs().max())
        print(
            f"{sites:>12}: engine {fast:6.2f} s, transformer_lens.patching {slow:6.2f} s, ratio {median(ratios):.2f} "
            f"(each turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}), largest difference {difference:.1e}",
            flush=True,
        )
    for sites in arguments.screen:
        _screen(model, clean, corrupt, metric, sites)


def _screen(model: Any, clean: torch.Tensor, corrupt: torch.Tensor, metric: Any, sites: str) -> None:
    """How much of the exact answer is among the sites that a first-order estimate picks."""
    by = ("layer", "position", "neuron") if sites == "mlp_neurons" else None
    options: dict[str, Any] = {"sites": sites, "metric": metric, "progress": False, "by": by}
    options |= {"positions": "last"} if by else {}
    found: dict[float, locate.Patches] = {}

    def run(share: float) -> None:
        screen = None if share == 1 else share
        found[share] = locate.patch(model, clean, corrupt, screen=screen, **options)

    exact_time = seconds(lambda: run(1))
    for share in (0.02, 0.05, 0.1, 0.2):
        took = seconds(lambda share=share: run(share))
        recall = ", ".join(f"{100 * found[share].recall(found[1], n):.0f}% of the top {n}" for n in (5, 10, 20))
        print(
            f"{sites:>12}, {found[1].values.size} sites, screened to {100 * share:.0f}%: recall {recall}; "
            f"{took:.2f} s instead of {exact_time:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
