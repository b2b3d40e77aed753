"""Edges written out: whole passes with hooks, one edge at a time."""

import torch

from locate.sites.contributions import contribution_hooks, contributions

N_QUERY = {"q": "q", "k": "k", "v": "v"}


def watched(model, tokens, names, hooks=()):
    seen = {}

    def look(name):
        def hook(value, hook):
            seen[name] = value.detach().clone()

        return hook

    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, *((name, look(name)) for name in names)]):
        logits = model(tokens)
    return logits, seen


def added(model, tokens):
    """What each writer adds in a plain pass, by name."""
    layers = range(model.cfg.n_layers)
    _, seen = watched(model, tokens, [*contribution_hooks(model, layers), "blocks.0.hook_resid_pre"])
    found = {"embed": seen["blocks.0.hook_resid_pre"]}
    for layer in layers:
        own = contributions(model, layer, seen)
        for head in range(own.heads.shape[2]):
            found[f"a{layer}.h{head}"] = own.heads[:, :, head]
        if own.mlp is not None:
            found[f"m{layer}"] = own.mlp
    return found


def reading(model, layer, part):
    """The norm before attention or the MLP, by the block's structure."""
    block = model.blocks[layer]
    names = ("ln1",) if part == "attn" else ("ln2", "ln1") if not hasattr(block, "ln1_post") else ("ln2",)
    norm = next((getattr(block, name) for name in names if hasattr(block, name)), None)
    return (lambda x: x) if norm is None else norm.original_component


def edge_hooks(model, reader, moved, parallel):
    """Hooks that add a vector to what one reader reads of the stream, and to nothing else."""
    if reader.name == "logits":
        return [("ln_final.hook_in", lambda value, hook: value + moved)]
    layer, state = reader.layer, {}

    def entering(value, hook):
        state["stream"] = value.detach()

    def attended(value, hook):
        state["stream"] = state["stream"] + value.detach()

    hooks = [(f"blocks.{layer}.hook_resid_pre", entering)]
    part = "attn" if reader.input else "mlp"
    norm = reading(model, layer, part)

    def changed(value, hook):
        before, after = norm(state["stream"]), norm(state["stream"] + moved)
        if part == "mlp":
            return value + (after - before)
        module = getattr(model.blocks[layer].attn, reader.input).original_component
        shift = (module(after) - module(before)).reshape(value.shape)
        value = value.clone()
        value[:, :, reader.head] += shift[:, :, reader.head]
        return value

    if part == "attn":
        return [*hooks, (f"blocks.{layer}.attn.hook_{reader.input}", changed)]
    if not parallel:
        hooks.append((f"blocks.{layer}.hook_attn_out", attended))
    return [*hooks, (f"blocks.{layer}.mlp.hook_in", changed)]
