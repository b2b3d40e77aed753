"""Log-probabilities of targets after prompts, many at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.devices import input_device
from locate.engine.readout import only_logits_at
from locate.prompts import encode_target, encode_text

_BUDGET = 4096


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a target is after a prompt.

    Attributes:
        mean_logprob: mean log-probability per target token, teacher-forced, in nats.
        first_logprob: log-probability of the target's first token.
        rank: of the target's first token (1 is the model's first answer).
    """

    mean_logprob: float
    first_logprob: float
    rank: int


def score_targets(model: TransformerBridge, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """Score every (prompt, target) pair.

    Batching and padding change nothing but rounding: padding stands on the right, where causality hides it.

    >>> score_targets(model, [("The Eiffel Tower is located in the city of", "Paris")])[0].rank
    1
    """
    encoded = [(encode_text(model, prompt), encode_target(model, prompt, target)) for prompt, target in pairs]
    # What is run: the prompt and all but the target's last token. Targets of one token share their prompt's row.
    runs: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, target) in enumerate(encoded):
        runs.setdefault((*prompt.tolist(), *target[:-1].tolist()), []).append(index)
    rows = [torch.tensor(row) for row in runs]
    askers = list(runs.values())
    scores: dict[int, Score] = {}
    for batch in _batches([len(row) for row in rows]):
        asked = [(r, index) for r, row in enumerate(batch) for index in askers[row]]
        places = [(r, len(encoded[i][0]) - 1 + j) for r, i in asked for j in range(len(encoded[i][1]))]
        logprobs = _logprobs(model, [rows[row] for row in batch], places)
        start = 0
        for _, i in asked:
            target = encoded[i][1]
            own = logprobs[start : start + len(target)]
            start += len(target)
            tokenwise = own.gather(1, target[:, None].to(own.device))[:, 0]
            rank = int((own[0] > own[0, target[0]]).sum()) + 1
            scores[i] = Score(mean_logprob=float(tokenwise.mean()), first_logprob=float(tokenwise[0]), rank=rank)
    return [scores[index] for index in range(len(pairs))]


def next_token_logprobs(model: TransformerBridge, prompts: Sequence[str]) -> Float[Tensor, "prompt vocab"]:
    """Log-probabilities of the token after each prompt, on the CPU.

    >>> next_token_logprobs(model, ["The capital of France is"]).shape
    torch.Size([1, 49152])
    """
    encoded = [encode_text(model, prompt) for prompt in prompts]
    result = torch.empty(len(prompts), model.cfg.d_vocab)
    for batch in _batches([len(tokens) for tokens in encoded]):
        rows = [encoded[i] for i in batch]
        result[batch] = _logprobs(model, rows, [(r, len(row) - 1) for r, row in enumerate(rows)]).cpu()
    return result


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of similar length, each within the token budget."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= _BUDGET:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _logprobs(
    model: TransformerBridge, rows: Sequence[Int[Tensor, "_"]], places: Sequence[tuple[int, int]]
) -> Float[Tensor, "place vocab"]:
    length = max(len(row) for row in rows)
    tokens = torch.stack([F.pad(row, (0, length - len(row)), value=model.tokenizer.pad_token_id or 0) for row in rows])
    at = torch.tensor(places)
    device = input_device(model)
    with torch.no_grad(), only_logits_at(model, at[:, 0], at[:, 1]):
        return model(tokens.to(device))[0].float().log_softmax(-1)
