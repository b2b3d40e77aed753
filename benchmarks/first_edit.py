"""From a model that was never seen to its first edit, and what the quick key statistics cost in quality.

    python -m benchmarks.first_edit [--model smollm2-135m | --config gemma3-270m] [--only quick]
    python -m benchmarks.first_edit --quality 50 [--methods ROME MEMIT AlphaEdit]

Prints the seconds of loading, of key statistics (nothing is read from the cache), of values and of the rest of the
edit, and the whole, with quick and with full statistics; then how alike the two edits are. ``--config`` makes a model
of random weights, on which nothing has to be downloaded: its edits mean nothing, their time is that of the real one.
``--quality`` edits shipped facts that the model answers, each alone, under both, from the same values, and prints ES,
PS and NS, their paired differences, quick less full, and the differences' 95% intervals over facts. Here the cache is
used.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import edit
import locate
from benchmarks.timing import machine, seconds
from edit.names import AMOUNTS, QUICK_KEYS, Amount
from edit.statistics import collect_statistics
from locate.contrast.bootstrap import mean_interval
from locate.facts.files import spread
from locate.model.bundled import bundled_folder
from locate.model.weights import down_projection

# The published shape of Gemma 3 270M: a third of its weights are blocks, the rest is vocabulary.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3-270m": (
        "gemma3_text",
        {
            "vocab_size": 262_144, "hidden_size": 640, "num_hidden_layers": 18, "intermediate_size": 2048,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
            "query_pre_attn_scalar": 256, "max_position_embeddings": 32_768, "tie_word_embeddings": True,
        },
    )
}  # fmt: skip
_SCORES = {"efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS"}


def made(name: str) -> TransformerBridge:
    """A model of random weights, with the default model's tokens: those that it does not have are never likely."""
    kind, config = _CONFIGS[name]
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **config), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] = 0
    return locate.load_model(model.eval(), tokenizer)


def first_edit(model: TransformerBridge, amount: Amount) -> tuple[dict[str, float], edit.WeightUpdate]:
    """The seconds of an edit's steps, and the edit."""
    request = edit.EditRequest(locate.bundled_facts()[0])
    method = edit.ROME(statistics=amount)
    found: dict[str, Any] = {}
    size = down_projection(model, method.resolve_layer(model)).key_size
    tokens = (QUICK_KEYS if amount == "quick" else method.keys_per_dimension) * size
    taken: dict[str, float] = {}

    def statistics() -> None:
        found["statistics"] = collect_statistics(
            model, method.edited_layers(model), tokens=tokens, shrink=amount == "quick", cache=False
        )

    taken["statistics"] = seconds(statistics)
    taken["values"] = seconds(lambda: found.update(values=method.values_for(model, [request])))
    method = replace(method, statistics=found["statistics"])
    taken["edit"] = seconds(
        lambda: found.update(update=next(method.fit_each(model, [request], values=found["values"])))
    )
    (one,) = found["statistics"].values()
    print(f"{amount}: {one.count} keys of dimension {size}, shrunk by {one.shrinkage:.3f}")
    return taken, found["update"]


def quality(model: TransformerBridge, facts: Sequence[locate.Fact], name: str, resamples: int) -> pd.DataFrame:
    """Of each score its mean under both amounts, the paired difference, and its interval over facts."""
    requests = [edit.EditRequest(fact) for fact in facts]
    plain = getattr(edit, name)()
    values = plain.values_for(model, requests, progress=True)
    scores = {amount: _scores(model, replace(plain, statistics=amount), requests, values) for amount in AMOUNTS}
    rows: dict[str, dict[str, float]] = {}
    for probe, short in _SCORES.items():
        pair: list[Any] = [scores[amount][probe] for amount in AMOUNTS]
        apart = (pair[0] - pair[1]).to_numpy()
        rows[short] = {amount: float(own.mean()) for amount, own in zip(AMOUNTS, pair, strict=True)}
        between = mean_interval(apart, resamples=resamples)
        rows[short] |= {"difference": float(between.mean), "from": float(between.low), "to": float(between.high)}
    return pd.DataFrame(rows).T * 100


def _scores(model: TransformerBridge, method: Any, requests: Sequence[edit.EditRequest], values: Any) -> pd.DataFrame:
    """The share of each kind of probe that succeeds, by fact."""
    updates = method.fit_each(model, requests, values=values, progress=True)
    rows = []
    for case, (request, update) in enumerate(zip(requests, updates, strict=True)):
        found: Any = edit.evaluate(model, update, [request], generate=False, progress=False).rows
        rows.append(found[found["model"] == "edited"].assign(case=case))
    table: Any = pd.concat(rows)
    return table.assign(success=table["success"].astype(float)).pivot_table("success", "case", "probe")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--config", choices=sorted(_CONFIGS), help="random weights of this shape, instead of a model")
    parser.add_argument("--only", choices=AMOUNTS, help="not both")
    parser.add_argument("--quality", type=int, metavar="N", help="how many shipped facts to judge by")
    parser.add_argument("--methods", nargs="+", default=["ROME"], help="with --quality: of those that take statistics")
    parser.add_argument("--resamples", type=int, default=9_999)
    arguments = parser.parse_args()
    loaded: list[TransformerBridge] = []
    name = arguments.config or arguments.model
    load = seconds(lambda: loaded.append(made(name) if arguments.config else locate.load_model(arguments.model)))
    (model,) = loaded
    print(f"{machine()}; {name}" + ", random weights" * bool(arguments.config), flush=True)
    if arguments.quality:
        facts = spread(locate.bundled_facts(known_to=arguments.model), arguments.quality)
        for method in arguments.methods:
            table = quality(model, facts, method, arguments.resamples)
            print(f"{method}, {len(facts)} facts, percent\n{table.round(1).to_string()}", flush=True)
        return
    updates: dict[str, edit.WeightUpdate] = {}
    for amount in [arguments.only] if arguments.only else AMOUNTS:
        taken, updates[amount] = first_edit(model, amount)
        whole = {"load": load, **taken}
        whole["whole"] = sum(whole.values())
        print(", ".join(f"{step} {time:.1f} s" for step, time in whole.items()), flush=True)
    if len(updates) > 1:
        deltas = [update.deltas[next(iter(update.deltas))].dense().flatten() for update in updates.values()]
        alike = float(torch.nn.functional.cosine_similarity(*deltas, dim=0))
        print(f"cosine of the two changes {alike:.3f}, norms {deltas[0].norm():.3f} and {deltas[1].norm():.3f}")


if __name__ == "__main__":
    main()
