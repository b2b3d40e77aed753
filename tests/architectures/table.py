"""One tiny configuration for each type of model that is tried; ``docs/architectures.md`` has what comes out."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from tests import tiny

_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_SMALL = {"vocab_size": tiny.VOCAB, "max_position_embeddings": 128, **_ENDS}
_PLAIN = {**_SMALL, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_SLIDING = {**_HEADED, "sliding_window": 6}
_GPT = {"vocab_size": tiny.VOCAB, "n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4, **_ENDS}
_SEEN = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 3, **_ENDS}
_OPT = {
    **_SMALL, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
}  # fmt: skip
_GEMMA = {**_SLIDING, "query_pre_attn_scalar": 8}
_TURNS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_LATENT = {
    **_PLAIN, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_SCANS = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_SCALED = {
    **_GROUPED, "residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
    "attention_multiplier": 0.2,
}  # fmt: skip
_GEMMA4 = {
    **_GEMMA, "num_hidden_layers": 4, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": tiny.VOCAB, "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
_FALCON = {
    **_SMALL, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False,
    "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False,
}  # fmt: skip

# A type of the library's, or a variant of one after a colon.
TYPES: dict[str, dict] = {
    # One MLP in every layer.
    "apertus": _GROUPED,
    "arcee": _HEADED,
    "bert": {**_PLAIN, "is_decoder": True},
    "bitnet": _GROUPED,
    "bloom": {"vocab_size": tiny.VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4, **_ENDS},
    "codegen": {**_GPT, "n_ctx": 128, "rotary_dim": 4},
    "cohere": {**_GROUPED, "logit_scale": 0.5},
    "cohere2": {**_SLIDING, "logit_scale": 0.5, **_TURNS},
    "ernie4_5": _HEADED,
    "exaone4": {**_SLIDING, "sliding_window_pattern": 2, **_TURNS},
    "falcon": _FALCON,
    "falcon:alibi": {**_FALCON, "alibi": True, "parallel_attn": False, "bias": True},
    "falcon:two norms": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma": _HEADED,
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, **_TURNS},
    "gemma4_text": {**_GEMMA4, "hidden_size_per_layer_input": 0},
    "gemma4_text:inputs of each layer": _GEMMA4,
    "gemma4_text:shared keys and values": {**_GEMMA4, "num_kv_shared_layers": 2},
    "glm": {**_HEADED, "partial_rotary_factor": 0.5},
    "glm4": {**_HEADED, "partial_rotary_factor": 0.5},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        **_SMALL, "hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "num_heads": 4, "window_size": 6,
        "attention_types": [[["global", "local"], 2]],
    },
    "gpt_neox": _PLAIN,
    "gpt_neox:one after the other": {**_PLAIN, "use_parallel_residual": False},
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite": _SCALED,
    "hunyuan_v1_dense": _HEADED,
    "internlm3": _HEADED,
    "jais2": _GROUPED,
    "llama": _GROUPED,
    "ministral3": _HEADED,
    "mistral": _SLIDING,
    "modernbert-decoder": {**_PLAIN, "local_attention": 8, "global_attn_every_n_layers": 2},
    "mpt": {
        "vocab_size": tiny.VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, "expansion_ratio": 2,
        **_ENDS,
    },
    "nanochat": _GROUPED,
    "nemotron": _HEADED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": {**_GROUPED, "sliding_window": 6, **_TURNS},
    "openai-gpt": _GPT,
    "opt": _OPT,
    "opt:embeddings projected": {**_OPT, "word_embed_proj_dim": 16},
    "opt:norms after, embeddings projected": {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "phi": {**_PLAIN, "partial_rotary_factor": 0.5},
    "phi3": {**_GROUPED, "sliding_window": None},
    "qwen2": _GROUPED,
    "qwen3": _HEADED,
    "seed_oss": _HEADED,
    "smollm3": {**_GROUPED, "no_rope_layer_interval": 2},
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED,
    "vaultgemma": {**_GEMMA, **_TURNS},
    "xglm": {
        "vocab_size": tiny.VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4,
        "max_position_embeddings": 128, **_ENDS,
    },
    "youtu": _LATENT,
    # Mixtures of experts, some with dense layers among them.
    "afmoe": {**_SLIDING, **_EXPERTS, "num_dense_layers": 1, "global_attn_every_n_layers": 2},
    "deepseek_v2": {**_LATENT, **_ROUTED, "topk_method": "greedy", "head_dim": 8},
    "deepseek_v3": {**_LATENT, **_ROUTED, "n_group": 2},
    "ernie4_5_moe": {
        **_GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "flex_olmo": {**_GROUPED, **_EXPERTS},
    "glm4_moe": {**_HEADED, **_ROUTED},
    "glm4_moe_lite": {**_LATENT, **_ROUTED},
    "gpt_oss": {**_SLIDING, **_LOCAL},
    "granitemoe": {**_SCALED, **_LOCAL},
    "jetmoe": {
        **_SMALL, **_LOCAL, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "kv_channels": 8,
        "num_key_value_heads": 2,
    },
    "laguna": {**_HEADED, **_EXPERTS},
    "llama4_text": {
        **_HEADED, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2, "attention_chunk_size": 6, "no_rope_layer_interval": 2,
    },
    "minimax_m2": {**_HEADED, **_LOCAL},
    "mixtral": {**_HEADED, "num_local_experts": 4},
    "olmoe": {**_GROUPED, **_EXPERTS},
    "qwen2_moe": {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**_HEADED, **_EXPERTS},
    # Layers that keep a state in place of keys and values, alone or among layers of attention.
    "bamba": {**_GROUPED, **_SCANS, "attn_layer_indices": [1]},
    "falcon_h1": {
        **_HEADED, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
    },
    "falcon_mamba": {**_SEEN, "state_size": 4},
    "granitemoehybrid": {
        **_SCALED, **_LOCAL, **_SCANS, "shared_intermediate_size": 48, "position_embedding_type": "rope",
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "jamba": {
        **_GROUPED, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "lfm2_moe": {**_GROUPED, **_EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba": {**_SEEN, "state_size": 4},
    "mamba2": {**_SEEN, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {
        **_HEADED, "hybrid_override_pattern": "M*-", "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8,
        "n_groups": 1,
    },
    "olmo_hybrid": {**_GROUPED, **_DELTA, "linear_num_key_heads": 4},
    "qwen3_5_text": {**_HEADED, **_DELTA},
    "qwen3_next": {**_HEADED, **_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "recurrent_gemma": {
        **_HEADED, "lru_width": 32, "attention_window_size": 6, "block_types": ["recurrent", "attention", "recurrent"],
    },
    "rwkv": {**_SEEN, "context_length": 128, "attention_hidden_size": 32},
    "zamba2": {
        **_GROUPED, "mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 16, "hybrid_layer_ids": [1],
        "layers_block_type": ["mamba", "hybrid", "mamba"], "num_mem_blocks": 1, "attention_head_dim": 16,
        "adapter_rank": 4,
    },
    # Unknown to TransformerLens.
    "biogpt": _PLAIN,
    "diffllama": _GROUPED,
    "helium": _HEADED,
    "persimmon": _PLAIN,
    "phimoe": {**_GROUPED, "num_local_experts": 4},
}  # fmt: skip


# How much larger than usual weights are, so that nothing is near uniform: where too little reaches the answer, more.
_SCALE = 8.0
_SCALES = {
    "glm4": 16.0, "granite": 16.0, "granitemoe": 16.0, "jetmoe": 16.0, "modernbert-decoder": 16.0, "nanochat": 16.0,
    "bamba": 16.0, "nemotron_h": 32.0, "qwen3_next": 16.0, "opt": 32.0, "youtu": 2.0,
}  # fmt: skip


def hf_model(kind: str):
    """A model of this type with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.partition(":")[0], **TYPES[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return tiny.enlarged(model, _SCALES.get(kind, _SCALE))


def bridge(kind: str):
    """The same as a raw-mode bridge."""
    return locate.load_model(hf_model(kind), tiny.tokenizer())
