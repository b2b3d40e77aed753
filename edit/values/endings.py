"""What may follow an answer where it ends, so that an edit can teach the model to stop there."""

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.decode import end_tokens
from locate.facts.joining import continuation
from locate.facts.prompts import Prompt

# No word goes on after these, whatever comes then.
_MARKS = (*".,;:!?)\n", *"。，、；：！？）", *"،؛؟۔।")


def endings_of(model: TransformerBridge, prompt: Prompt, answer: str) -> Int[Tensor, "ending"]:
    """Ids of the tokens that end an answer: those that end a text, and marks that are one token after it.

    >>> prompt = locate.encode_fact(model, fact)
    >>> model.tokenizer.eos_token_id in endings_of(model, prompt, "Rome")
    True
    """
    tokenizer = model.tokenizer
    text = prompt.text + continuation(prompt.text, answer, joined=prompt.joined)
    base = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = set(end_tokens(model))
    for ids in tokenizer([text + mark for mark in _MARKS], add_special_tokens=False)["input_ids"]:
        if len(ids) == len(base) + 1 and ids[:-1] == base and ids[-1] != tokenizer.unk_token_id:
            found.add(ids[-1])
    return torch.tensor(sorted(found), dtype=torch.long)
