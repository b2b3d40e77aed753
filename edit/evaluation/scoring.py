"""Log-probabilities of targets after prompts, many at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.readout import only_logits_at
from locate.engine.rows import WHOLE_BUDGET, Budget, Extent, padded, passes
from locate.errors import NumericsError
from locate.facts.prompts import encode_target, encode_text
from locate.model.context import check_room
from locate.model.devices import input_device
from locate.model.running import running

Pair = tuple[str, str] | tuple[str, str, bool]
See = Callable[[list[str], Float[Tensor, "prompt vocab"], Float[Tensor, "prompt d_model"]], None]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a target is after a prompt.

    Attributes:
        mean_logprob: mean log-probability per target token, teacher-forced, in nats.
        first_logprob: log-probability of the target's first token.
        rank: of the target's first token (1 is the model's first answer).
        tokens: the target's.
        predicted: the model's first choice in place of each, given the prompt and the target's tokens before it.
        later: log-probability and rank of each further token, given those before it.

    >>> Score(mean_logprob=-1.0, first_logprob=-1.0, rank=1, tokens=(5, 6), predicted=(5, 7)).token_accuracy
    0.5
    """

    mean_logprob: float
    first_logprob: float
    rank: int
    tokens: tuple[int, ...]
    predicted: tuple[int, ...]
    later: tuple[tuple[float, int], ...] = ()

    def of_token(self, place: int) -> tuple[float, int]:
        """Log-probability and rank of one of the target's tokens, given those before it.

        >>> Score(mean_logprob=-1.5, first_logprob=-1.0, rank=1, tokens=(5,), predicted=(5,)).of_token(0)
        (-1.0, 1)
        """
        return (self.first_logprob, self.rank) if place == 0 else self.later[place - 1]

    @property
    def token_accuracy(self) -> float:
        """Share of the target's tokens that the model predicts, teacher-forced."""
        return agreement(self.tokens, self.predicted)


def agreement(tokens: Sequence[int], others: Sequence[int]) -> float:
    """Share of places at which two sequences of one length have the same token.

    >>> agreement((1, 2, 3, 4), (1, 2, 3, 5))
    0.75
    """
    return sum(one == other for one, other in zip(tokens, others, strict=True)) / len(tokens)


def score_targets(
    model: TransformerBridge, pairs: Sequence[Pair], *, see: See | None = None, progress: bool = False
) -> list[Score]:
    """Score every (prompt, target) pair; with a third member, True for targets that follow exactly as they are given.

    Batching and padding change nothing but rounding: padding stands on the right, where causality hides it.

    Args:
        model: a raw-mode bridge.
        pairs: prompts with targets.
        see: receives, batch by batch and each prompt once, prompts, log-probabilities of the token after
            them, and the last block's output at their last token.
        progress: whether to show a bar.

    Raises:
        FactError: a prompt or target cannot be used, or is too long for the model.
        NumericsError: the model's predictions are not finite.

    >>> score_targets(model, [("The Eiffel Tower is located in the city of", "Paris")])[0].rank
    1
    """
    encoded = [encode_pair(model, pair[0], pair[1], len(pair) == 3 and pair[2]) for pair in pairs]
    # What is run: the prompt and all but the target's last token.
    runs: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, target) in enumerate(encoded):
        runs.setdefault((*prompt.tolist(), *target[:-1].tolist()), []).append(index)
    runs = _merged(runs)
    rows, askers = [torch.tensor(row) for row in runs], list(runs.values())
    scores: dict[int, Score] = {}
    seen: set[str] = set()
    extents = [
        Extent(length=len(row), readouts=len({len(encoded[i][0]) + j for i in own for j in range(len(encoded[i][1]))}))
        for row, own in zip(rows, askers, strict=True)
    ]
    batches = passes(extents, Budget.of(model, WHOLE_BUDGET))
    for batch in tqdm(batches, "scores", disable=not progress, delay=1):
        asked = [(r, index) for r, row in enumerate(batch) for index in askers[row]]
        # Targets of one prompt share the place of their first token.
        places: dict[tuple[int, int], int] = {}
        own = {
            i: [places.setdefault((r, len(encoded[i][0]) - 1 + j), len(places)) for j in range(len(encoded[i][1]))]
            for r, i in asked
        }
        logprobs, residuals = _read(model, [rows[row] for row in batch], list(places))
        if broken := next((pairs[i][0] for i, at in own.items() if logprobs[at].isnan().any()), None):
            raise NumericsError(
                f"The model's predictions after {broken!r} are not finite: its weights or an edit of them are broken, "
                "or its precision is too low. Take the edit back, or load the model in bfloat16 or float32."
            )
        best = logprobs.argmax(-1).tolist()
        scores |= {i: _score(logprobs, encoded[i][1], at, best) for i, at in own.items()}
        first = {pairs[i][0]: at[0] for i, at in own.items() if pairs[i][0] not in seen}
        if see is not None and first:
            see(list(first), logprobs[list(first.values())], residuals[list(first.values())])
        seen |= first.keys()
    return [scores[index] for index in range(len(pairs))]


def encode_pair(
    model: TransformerBridge, prompt: str, target: str, joined: bool = False
) -> tuple[Int[Tensor, "position"], Int[Tensor, "token"]]:
    """Prompt and target as tokens that fit into the model's context together.

    Raises:
        FactError: they do not, or one of them cannot be used.

    >>> [len(part) for part in encode_pair(model, "The capital of France is", "Paris")]
    [5, 1]
    """
    text, answer = encode_text(model, prompt), encode_target(model, prompt, target, joined=joined)
    check_room(model, len(text) + len(answer) - 1, prompt, beside="its target" if len(answer) > 1 else "")
    return text, answer


def _score(logprobs: Float[Tensor, "place vocab"], target: Tensor, at: list[int], best: list[int]) -> Score:
    own, tokens = logprobs[at], target.to(logprobs.device)[:, None]
    tokenwise = own.gather(1, tokens)
    # Equals are counted in the order of the vocabulary, so that exactly one token is first.
    ahead = (own == tokenwise) & (torch.arange(own.shape[1], device=own.device) < tokens)
    ranks = ((own > tokenwise).sum(1) + ahead.sum(1) + 1).tolist()
    each = tokenwise[:, 0]
    return Score(
        mean_logprob=float(each.mean()), first_logprob=float(each[0]), rank=ranks[0], tokens=tuple(target.tolist()),
        predicted=tuple(best[place] for place in at), later=tuple(zip(each.tolist()[1:], ranks[1:], strict=True)),
    )  # fmt: skip


def _merged(runs: Mapping[tuple[int, ...], list[int]]) -> dict[tuple[int, ...], list[int]]:
    """A run that is the beginning of another is read from that one, where causality hides what comes after."""
    merged: dict[tuple[int, ...], list[int]] = {}
    longest: tuple[int, ...] = ()
    # Backwards in lexicographic order, every run comes right after those that begin with it.
    for run in sorted(runs, reverse=True):
        longest = longest if longest[: len(run)] == run else run
        merged.setdefault(longest, []).extend(runs[run])
    return merged


def _read(
    model: TransformerBridge, rows: Sequence[Int[Tensor, "_"]], places: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "place vocab"], Float[Tensor, "place d_model"]]:
    at = torch.tensor(places)
    residuals: list[Tensor] = []

    def keep(_module: object, args: tuple[Tensor, ...]) -> None:
        residuals.append(args[0][at[:, 0].to(args[0].device), at[:, 1].to(args[0].device)])

    handle = model.ln_final.register_forward_pre_hook(keep)
    try:
        with running(model), only_logits_at(model, at[:, 0], at[:, 1]):
            logits = model(padded(rows).to(input_device(model)))[0]
    finally:
        handle.remove()
    return logits.float().log_softmax(-1), residuals[0]
