"""Estimates of patches against exact patches: Pearson's r over all sites, for each method and kind of site.

    python -m benchmarks.attribution [--pairs 30] [--tasks ioi factual_recall] [--sites resid_pre attn_out]

Clean runs are patched with the corrupted run's states. Pairs are the largest group of one length. Effects of a pair are
those of its own metric; r is between the mean exact and the mean estimated effect of all sites, and its interval from a
bootstrap over pairs. Published r of relevance propagation on IOI (Rezaei Jafari et al. 2025, arXiv:2508.21258), GPT-2
small, against the gradient: residual .97 (.75), attention out .96 (.98), MLP out .99 (.20).
"""

import argparse
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

import locate
from benchmarks.timing import machine, seconds
from locate.tasks.paired import PairedPrompts

_METHODS: dict[str, dict[str, Any]] = {
    "atp": {"method": "atp"}, "atp*": {"method": "atp*"}, "relp": {"method": "relp"},
    "relp, half": {"method": "relp", "pattern": "half"}, "relp, frozen": {"method": "relp", "pattern": "frozen"},
    "gim": {"method": "gim"}, "ig": {"method": "ig"}, "relp-ig": {"method": "relp-ig"},
}  # fmt: skip
_SITES = ("resid_pre", "attn_out", "mlp_out", "attn_head_z")
_TASKS = ("ioi", "factual_recall")
_PUBLISHED = {"resid_pre": ".97 (atp .75)", "attn_out": ".96 (atp .98)", "mlp_out": ".99 (atp .20)"}
_RESAMPLES = 1000


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=30, help="how many are made of each task")
    parser.add_argument("--tasks", nargs="+", choices=_TASKS, default=list(_TASKS))
    parser.add_argument("--sites", nargs="+", default=list(_SITES))
    parser.add_argument("--methods", nargs="+", choices=list(_METHODS), default=list(_METHODS))
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    print(f"{machine()}; {arguments.model}; r and its interval of 95%, seconds of all pairs")
    for task in arguments.tasks:
        pairs: PairedPrompts = getattr(locate.tasks, task)(model, arguments.pairs)
        pairs = max((group.pairs for group in pairs.by_length(model)), key=len)
        print(f"{task}: {len(pairs)} pairs of one length of {arguments.pairs}")
        for sites in arguments.sites:
            _compare(model, pairs, sites, arguments.methods)


def _compare(model: TransformerBridge, pairs: PairedPrompts, sites: str, methods: list[str]) -> None:
    found: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        options: dict[str, Any] = {
            "sites": sites, "direction": "break", "metric": pairs.metric, "progress": False, **_METHODS.get(name, {})
        }  # fmt: skip
        of = locate.patch if name == "exact" else locate.attribute
        each = [of(model, one, other, **options) for one, other in zip(pairs.clean, pairs.corrupt, strict=True)]
        found[name] = np.stack([one.effect.values.ravel() for one in each])

    took = {name: seconds(lambda name=name: run(name)) for name in ("exact", *methods)}
    published = f"; published {_PUBLISHED[sites]}" if sites in _PUBLISHED else ""
    print(f"{sites:>12}: {found['exact'].shape[1]} sites, exact {took['exact']:.1f} s{published}")
    for name in methods:
        r, low, high = correlation(found["exact"], found[name])
        print(f"{name:>14}: r {r:.3f} ({low:.3f} to {high:.3f}), {took[name]:.1f} s", flush=True)


def correlation(exact: np.ndarray, estimated: np.ndarray) -> tuple[float, float, float]:
    """Between the mean effects, pairs first, with the bounds of a bootstrap over pairs."""

    def of(rows: Any) -> float:
        return float(np.corrcoef(exact[rows].mean(0), estimated[rows].mean(0))[0, 1])

    draws = np.random.default_rng(0).integers(0, len(exact), size=(_RESAMPLES, len(exact)))
    low, high = np.percentile([of(one) for one in draws], [2.5, 97.5])
    return of(slice(None)), float(low), float(high)


if __name__ == "__main__":
    main()
