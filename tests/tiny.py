"""Random-weight models of many architectures, small enough to test on, with a tokenizer of their own."""

import json
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import locate
from locate.model.anatomy import Anatomy, LayerAnatomy
from locate.model.bundled import bundled_folder
from locate.sites.graph import _find

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

# What most rooms are not tried on: a multiplier of what blocks add, and several MLPs in one.
OTHER_CONFIGS: dict[str, dict] = {
    "granite": {
        **_LLAMA_LIKE, "residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
    },
    "mixtral": {**_LLAMA_LIKE, **_HEAD_DIM, "num_local_experts": 4},
}  # fmt: skip

# What reaches blocks beside the stream, or is kept beside keys and values: embeddings of the token for each layer and
# keys and values of earlier layers; the states of convolutions and recurrences; a norm that runs twice.
_BY_TURNS = {"layer_types": ["linear_attention", "full_attention"] * 2}
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
BESIDE_CONFIGS: dict[str, dict] = {
    "gemma4_text": {
        **_LLAMA_LIKE, **_HEAD_DIM, "global_head_dim": 8, "sliding_window": 6, "vocab_size_per_layer_input": VOCAB,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
    },
    "lfm2": {
        **_LLAMA_LIKE, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False,
    },
    "qwen3_5_text": {**_LLAMA_LIKE, **_HEAD_DIM, **_BY_TURNS, **_LINEAR},
    "qwen3_next": {
        **_LLAMA_LIKE, **_HEAD_DIM, **_BY_TURNS, **_LINEAR, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "falcon_h1": {
        **_LLAMA_LIKE, **_HEAD_DIM, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 8, "mamba_chunk_size": 8,
    },
    "nanochat": _LLAMA_LIKE,
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
    config = AutoConfig.for_model(kind, **{**CONFIGS, **OTHER_CONFIGS, **BESIDE_CONFIGS}[kind])
    return enlarged(AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager"), scale)


@torch.no_grad()
def enlarged(model, scale: float):
    """A model with its matrices multiplied, in evaluation mode."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(scale)
    return model.eval()


def bridge(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 4.0):
    """The same as a raw-mode bridge."""
    return locate.load_model(hf_model(kind, seed, dtype, scale), tokenizer())


def stand_in(folder: Path) -> Path:
    """A folder with a small model of random weights in place of the default one: its architecture and its tokens.

    What is shown on the default model runs on it in a fraction of the time, with other numbers. It has the tokens
    that the shipped facts and the documentation are made of, and no others.
    """
    real, root = bundled_folder(), Path(__file__).resolve().parents[1]
    tokenizer = AutoTokenizer.from_pretrained(real)
    # Without fields that no shipped fact has, so that a new one leaves the vocabulary as it is.
    facts = [{name: value for name, value in asdict(fact).items() if value != ()} for fact in locate.bundled_facts()]
    shown = [json.dumps(facts, ensure_ascii=False)]
    shown.append((root / "README.md").read_text())
    for path in (root / "notebooks").glob("*.ipynb"):
        shown += ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    texts = {text for one in shown for text in re.findall(r'"([^"\n]*)"', one)}
    used = {token for text in texts for start in ("", " ") for token in tokenizer.tokenize(start + text)}
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["model"] = _without_unused(raw["model"], used)
    raw["added_tokens"] = raw["added_tokens"][:3]  # the end of a text, and of a turn
    kept = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    kept.chat_template = tokenizer.chat_template
    kept.save_pretrained(folder)
    torch.manual_seed(0)
    small = {
        "hidden_size": 36,
        "intermediate_size": 96,
        "num_hidden_layers": 9,
        "head_dim": 4,
        "vocab_size": len(kept),
    }
    config = AutoConfig.from_pretrained(real, **small, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # many a token ends the text, so that what it says is short
        for end in ("<|endoftext|>", "Ċ"):
            model.get_input_embeddings().weight[kept.convert_tokens_to_ids(end)] *= 6
    model.save_pretrained(folder)
    return folder


def _without_unused(bpe: dict, used: set[str]) -> dict:
    """The model of a tokenizer with these tokens, single bytes, and what they are merged from."""
    parts = {"".join(pair): pair for pair in reversed(bpe["merges"])}
    kept: set[str] = set()
    ahead = [*used, *(token for token in bpe["vocab"] if token not in parts)]
    while ahead:
        token = ahead.pop()
        if token not in kept:
            kept.add(token)
            ahead += parts.get(token, ())
    vocab = {token: place for place, token in enumerate(sorted(kept, key=bpe["vocab"].__getitem__))}
    merges = [pair for pair in bpe["merges"] if "".join(pair) in kept and kept.issuperset(pair)]
    return {**bpe, "vocab": vocab, "merges": merges}


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


def made_up_graph(n_layers=3, **layer):
    """The graph of a model that there is not: of six heads on three key-value heads, or with other layers."""
    alike = {
        "n_heads": 6, "n_kv_heads": 3, "d_head": 4, "has_mlp": True, "parallel": False, "norm_after_attention": False,
        "norm_after_mlp": False, "multiplier": 1.0, "one_down_projection": True, "adds_up": True,
    }  # fmt: skip
    return _find(Anatomy(layers=(LayerAnatomy(**{**alike, **layer}),) * n_layers))


def made_up_circuit(graph, *, seed=0, model_print="tiny", **info):
    """A circuit of all edges of a graph: a few large scores, many small ones, of either sign."""
    scores = np.random.default_rng(seed).standard_normal(graph.edges().shape) ** 5 / 100
    plain = {"model": "tiny", "method": "made up", "metric": "logit difference", **info}
    return locate.Circuit.of(graph, scores, standard_error=abs(scores) / 10, model_print=model_print, info=plain)
