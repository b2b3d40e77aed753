"""Scores of edges, and a circuit's faithfulness, against TransformerLens' own, in turns in one run.

    python -m benchmarks.edges [--layers 12] [--heads 12] [--width 768] [--tokens 12] [--kind gpt2] [--repeats 3]

On a multi-head model of random weights, since TransformerLens' functions refuse grouped queries; nothing is downloaded.
The convention is one: (a_u(clean) − a_u(corrupt)) · ∂m/∂in_v with the gradient at the corrupted run, so that here the
corrupted prompt is the one that is given first. TransformerLens tells edges apart by position, within which all lie;
their sum over positions is compared, in the mean over the pairs of a call. Its ``faithfulness`` cuts by position as
well, so that a circuit is given to it with each of its edges at every position. Beside each circuit it runs the circuit
without the edges of each of the four classes of readers, five passes in all; both that ratio and the one for a single
of its passes are printed.
``embed`` is the token's embedding there, and with the position's here: prompts of a pair differ in the first alone.
"""

import argparse
from statistics import median
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import attribution_patching as theirs
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import locate
from benchmarks.timing import alternate, machine
from locate.model.bundled import bundled_folder

_READ_BY = {"q_input": "q", "k_input": "k", "v_input": "v"}
_SIZES = {
    "gpt2": ("n_embd", "n_layer", "n_head"), "llama": ("hidden_size", "num_hidden_layers", "num_attention_heads"),
}  # fmt: skip


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(_SIZES), default="gpt2")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=8, help="given in one call to both; edges' scores are means")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--circuits", type=int, default=20, help="how many of ours are run for one of theirs")
    arguments = parser.parse_args()
    model = _random(arguments)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(arguments.vocabulary, (arguments.pairs, arguments.tokens), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 1:3] = (corrupt[:, 1:3] + 1) % arguments.vocabulary
    shape = f"{arguments.layers} layers × {arguments.heads} heads, width {arguments.width}, {arguments.tokens} tokens"
    print(f"{machine()}; random {arguments.kind} of {shape}")
    for pairs in sorted({1, arguments.pairs}):
        _scores(model, clean[:pairs], corrupt[:pairs], arguments.repeats)
    _faithfulness(model, clean[0], corrupt[0], arguments.repeats, arguments.circuits)


def _random(arguments: argparse.Namespace) -> TransformerBridge:
    torch.manual_seed(0)
    given = dict(zip(_SIZES[arguments.kind], (arguments.width, arguments.layers, arguments.heads), strict=True))
    config = AutoConfig.for_model(
        arguments.kind, **given, vocab_size=arguments.vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():  # or patterns would be uniform
        for one in made.parameters():
            if one.ndim > 1:
                one.mul_(3)
    return locate.load_model(made, AutoTokenizer.from_pretrained(bundled_folder()))


def _metric(logits: torch.Tensor) -> torch.Tensor:
    return (logits[:, 7] - logits[:, 9]).float()


def _of_theirs(logits: torch.Tensor) -> torch.Tensor:
    return _metric(logits[:, -1])[0]


def _named(node: theirs.Node) -> str:
    """Our name of their node."""
    if node.kind in ("embed", "logits"):
        return node.kind
    if node.head is None:
        return f"m{node.layer}"
    return ".".join([f"a{node.layer}", f"h{node.head}", *([_READ_BY[node.kind]] if node.kind in _READ_BY else [])])


def _scores(model: TransformerBridge, clean: torch.Tensor, corrupt: torch.Tensor, repeats: int) -> None:
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = locate.find_circuit(
            model, list(corrupt), list(clean), method="eap", metric=_metric, progress=False
        )

    def other() -> None:
        config = theirs.EdgeAttributionConfig(granularity="edge")
        found["theirs"] = theirs.attribution_patch(model, clean, corrupt, _of_theirs, config)

    ours()  # warm up
    fast, slow, ratios = alternate(ours, other, repeats)
    scores = found["ours"].scores
    rows, columns = ({str(name): at for at, name in enumerate(scores[dim].values)} for dim in ("writer", "reader"))
    summed = np.zeros(scores.shape)
    for (writer, reader), score in found["theirs"].edge_scores.items():
        summed[rows[_named(writer)], columns[_named(reader)]] += score
    difference = np.abs(scores.values - summed)[np.isfinite(scores.values)].max()
    print(
        f"scores of {int(scores.notnull().sum())} edges, {len(clean)} pairs: here {fast:.3f} s, "
        f"attribution_patch {slow:.2f} s, ratio {median(ratios):.1f} (each turn: "
        f"{', '.join(f'{one:.1f}' for one in ratios)}; asked: 20), largest difference "
        f"{difference / np.abs(summed).max():.1e} of the largest score (asked: 1e-5)",
        flush=True,
    )


def _faithfulness(
    model: TransformerBridge, clean: torch.Tensor, corrupt: torch.Tensor, repeats: int, n_circuits: int
) -> None:
    circuit = locate.find_circuit(model, clean, corrupt, method="eap", metric=_metric, progress=False)
    sizes = sorted({max(1, round(circuit.n_possible * (at + 1) / (n_circuits + 1))) for at in range(n_circuits)})
    kept = {(writer, reader) for writer, reader, _ in circuit.top(sizes[len(sizes) // 2], "threshold").edges}
    config = theirs.EdgeAttributionConfig(granularity="edge")
    every = theirs.attribution_patch(model, clean[None], corrupt[None], _of_theirs, config).edge_scores
    edges = [edge for edge in every if (_named(edge[0]), _named(edge[1])) in kept]
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = circuit.faithfulness(
            model, clean, corrupt, sizes=sizes, how="threshold", metric=_metric, progress=False
        )

    def other() -> None:
        found["theirs"] = theirs.faithfulness(model, clean[None], corrupt[None], _of_theirs, edges)

    ours()  # warm up
    fast, slow, ratios = alternate(ours, other, repeats)
    ratio = median(ratios) * len(sizes)
    passes = 1 + len({theirs._edge_class(edge) for edge in edges})
    difference = abs(float(found["ours"].curve[len(sizes) // 2]) - found["theirs"].recovered)
    print(
        f"faithfulness: {len(sizes)} circuits here {fast:.3f} s, one of {len(kept)} edges by theirs {slow:.2f} s, "
        f"ratio for one circuit {ratio:.0f} (asked: 100), {ratio / passes:.0f} for one of its {passes} passes; f here "
        f"{float(found['ours'].curve[len(sizes) // 2]):.5f}, there {found['theirs'].recovered:.5f}, difference "
        f"{difference:.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
