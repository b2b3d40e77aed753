"""A trace behind a long prompt, whose beginning runs once, against the same trace with every row run whole.

    python -m benchmarks.long [--before 810] [--samples 10] [--last]

Both are residual traces of one fact at two positions, the subject's last token and the prompt's last: clean and
corrupted runs, then the same sweep over all layers. Prints the processor's time for both parts, as other work on the
machine lengthens the wall time, the memory above the model's, and the largest difference of any score.
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle

import torch
from transformer_lens.model_bridge import TransformerBridge

import locate
from benchmarks.timing import machine
from benchmarks.tracing import peak
from locate.contrast.corruption import run_corrupted
from locate.contrast.pairs import make_pairs
from locate.contrast.sweep import sweep
from locate.engine import freeze
from locate.facts.questions import Questions


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--before", type=int, default=810, help="tokens before the subject, at least")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--last", action="store_true", help="only the last position, for a quick look")
    arguments = parser.parse_args()
    model = locate.load_model(arguments.model)
    noise = locate.GaussianNoise(samples=arguments.samples)
    fact = _behind(model, arguments.before)
    prompt = locate.encode_fact(model, fact)
    (start, end), length = prompt.subject_span, len(prompt.tokens)
    print(f"{machine()}; {arguments.model}; {start} of {length} tokens before the subject; {noise.samples} samples")
    locate.Contrast.of(model, locate.bundled_facts()[0], noise)  # warm up
    # First the one that takes less, as the allocator keeps what a trace has used, and would hide what the next takes.
    scores = [
        _measured(name, make, [length - 1] if arguments.last else [end - 1, length - 1])
        for name, make in (
            ("shared", lambda: locate.Contrast.of(model, fact, noise)),
            ("whole", lambda: _whole(model, fact, noise)),
        )
    ]
    difference = float((scores[0] - scores[1]).abs().max())
    print(f"largest difference of a score: {difference:.1e}, of scores up to {float(scores[1].max()):.2f}")


def _behind(model: TransformerBridge, before: int) -> locate.Fact:
    """A shipped fact, with others told before it."""
    fact, *others = locate.bundled_facts()
    told = cycle(word for one in others for word in f"{one.text} {one.target}.".split())
    words: list[str] = []
    while True:
        words.append(next(told))
        longer = locate.Fact(prompt=f"{' '.join(words)} {fact.prompt}", subject=fact.subject, target=fact.target)
        if len(words) > before // 2 and locate.encode_fact(model, longer).subject_span[0] >= before:
            return longer


def _whole(model: TransformerBridge, fact: locate.Fact, noise: locate.GaussianNoise) -> locate.Contrast:
    """The literal twin of ``Contrast.of``: all rows from their first token on."""
    (pair,) = make_pairs(model, fact, noise)
    clean = freeze(model, pair.clean.tokens[None])
    tokens, hooks = run_corrupted([pair.corrupted], [pair.clean])
    corrupted = freeze(model, tokens, hooks=hooks)
    questions = Questions(
        model=model, prompts=(pair.clean,), answers=torch.tensor([pair.answer]), clean=clean.logits, whole=(),
        targets_new=(None,),
    )  # fmt: skip
    return locate.Contrast.between(corrupted, clean, questions, first=pair.first)


def _measured(name: str, make: Callable[[], locate.Contrast], positions: list[int]) -> torch.Tensor:
    """The scores of a trace, with its cost printed."""
    found: dict[str, torch.Tensor] = {}

    def trace() -> None:
        start = time.process_time()
        contrast = make()
        made = time.process_time()
        found["scores"] = sweep(contrast, ["resid"], contrast.measure("probability"), positions=positions)
        print(
            f"{name:>7}: runs {made - start:.1f} s, sweep {time.process_time() - made:.1f} s of computing", flush=True
        )

    took, memory = peak(trace)
    print(f"{name:>7}: {took:.1f} s in all, peak memory {memory / 2**30:.2f} GiB above the model's", flush=True)
    return found["scores"].float().cpu()


if __name__ == "__main__":
    main()
