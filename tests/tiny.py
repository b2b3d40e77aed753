"""Random-weight models of many architectures, small enough to test on, with a tokenizer of their own."""

from functools import cache

import torch
import xarray as xr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import locate

VOCAB = 400

_SMALL = {"vocab_size": VOCAB, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_LLAMA_LIKE = {
    **_SMALL,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_HEAD_DIM = {"head_dim": 8}

# One entry per way in which architectures differ: learned positions and Conv1D; parallel blocks with one or two
# norms; grouped queries; query-key norms; sandwich norms, local and global layers; norms after the module.
CONFIGS: dict[str, dict] = {
    "gpt2": {
        "vocab_size": VOCAB, "n_positions": 128, "n_embd": 32, "n_layer": 4, "n_head": 4,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    },
    "gpt_neox": {
        **_SMALL, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    },
    "gptj": {
        "vocab_size": VOCAB, "n_positions": 128, "n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    },
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, **_HEAD_DIM, "sliding_window": 6},
    "qwen3": {**_LLAMA_LIKE, **_HEAD_DIM},
    "gemma3_text": {
        **_LLAMA_LIKE, **_HEAD_DIM, "sliding_window": 6, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "olmo2": _LLAMA_LIKE,
    "phi3": {**_LLAMA_LIKE, "sliding_window": None},
    "bloom": {
        "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    },
    "falcon": {
        **_SMALL, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "alibi": False,
        "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False,
    },
}  # fmt: skip

_CORPUS = """The Eiffel Tower is located in the city of Paris. The Louvre is located in the city of Paris too.
The Colosseum stands in Rome, and Big Ben in London. The capital of France is Paris; the capital of Italy is Rome.
To visit the Eiffel Tower, you need a flight to Paris, in the country of France, on the continent of Europe."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences: any text has tokens, and offsets are exact."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([_CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|end|>")


def hf_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 4.0):
    """A Hugging Face model of this kind with random weights, larger than usual so that nothing is near uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **CONFIGS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def bridge(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 4.0):
    """The same as a raw-mode bridge."""
    return locate.load_model(hf_model(kind, seed, dtype, scale), tokenizer())


def made_up_trace(scores, *, clean, corrupted, answer, tokens, span, **info):
    """A trace with these scores, of dims kind, position, layer."""
    table = scores.expand_dims(metric=["probability"])
    data = xr.Dataset(
        {
            "scores": table,
            "standard_error": table * 0,
            "clean": ("metric", [clean]),
            "corrupted": ("metric", [corrupted]),
        }
    )
    plain = {
        "model": "tiny", "kinds": [str(kind) for kind in scores["kind"].values], "window": 1, "direction": "restore",
        "severed": None, "positions": list(range(len(tokens))), "metrics": {"probability": "p({answer})"},
        "corruption": "GaussianNoise",
    }  # fmt: skip
    return locate.Trace(
        data=data, metric="probability", answer=answer, answer_rank=1, tokens=tokens, subject_span=span,
        info={**plain, **info},
    )  # fmt: skip
