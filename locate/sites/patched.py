"""What activation patching can exchange, by name. Importing this costs nothing."""

# By name: the hook point within a block whose value is exchanged (None for the residual stream itself), the unit of
# which single ones are patched, and of the stream whether it is what enters the block (0) or what leaves it (1).
STATES: dict[str, tuple[str | None, str | None, int]] = {
    "resid_pre": (None, None, 0),
    "resid_mid": ("hook_attn_out", None, 0),
    "resid_post": (None, None, 1),
    "attn_out": ("hook_attn_out", None, 0),
    "mlp_out": ("hook_mlp_out", None, 0),
    "attn_head_z": ("attn.hook_z", "head", 0),
    "attn_head_q": ("attn.hook_q", "head", 0),
    "attn_head_k": ("attn.hook_k", "head", 0),
    "attn_head_v": ("attn.hook_v", "head", 0),
    # A head's result is its z through the output projection: patching one is patching the other.
    "attn_head_result": ("attn.hook_z", "head", 0),
    "attn_head_pattern": ("attn.hook_pattern", "head", 0),
    "mlp_neurons": ("mlp.hook_post", "neuron", 0),
}
PATCH_SITES = tuple(STATES)
