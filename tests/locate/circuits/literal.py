"""Edges written out: whole passes with hooks, one edge at a time."""

import torch

from locate.sites.contributions import attention_contributions, contribution_hooks, contributions

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


def circuit(bridge, graph, kept, clean, theirs, metric):
    """The metric where every edge that is cut moves its reader's input, by hooks of its own on one whole pass.

    What writers write meanwhile is seen as they write it: a later reader takes what the pass has by then.
    """
    current = {}

    def wrote(name, value):
        current[name] = theirs[name] - value

    hooks = []
    anatomy = graph.anatomy

    def entering(layer):
        def hook(value, hook):
            current["stream"] = current["mid"] = value
            if layer == 0:
                wrote("embed", value)

        return hook

    def cut(reader):
        j = graph.readers.index(reader)
        return sum(
            current[one.name] for i, one in enumerate(graph.writers) if one.order < reader.order and not kept[i, j]
        )

    for layer, own in enumerate(anatomy.layers):
        block = bridge.blocks[layer]
        hooks.append((f"blocks.{layer}.hook_resid_pre", entering(layer)))
        for one in "qkv":
            readers = [r for r in graph.readers if r.layer == layer and r.input == one]

            def head(value, hook, readers=readers, one=one, block=block, layer=layer):
                value = value.clone()
                norm = reading(bridge, layer, "attn")
                module = getattr(block.attn, one).original_component
                for reader in readers:
                    made = module(norm(current["stream"] + cut(reader))).reshape(value.shape)
                    value[:, :, reader.head] = made[:, :, reader.head]
                return value

            hooks.append((f"blocks.{layer}.attn.hook_{one}", head))
        seen = {}

        def z(value, hook, seen=seen):
            seen["z"] = value

        def projected(value, hook, seen=seen, layer=layer):
            heads, _ = attention_contributions(bridge, layer, seen["z"], value)
            for head in range(heads.shape[2]):
                wrote(f"a{layer}.h{head}", heads[:, :, head])

        def attended(value, hook, own=own):
            if not own.parallel:
                current["mid"] = current["stream"] + value

        def mlp_in(value, hook, layer=layer):
            reader = next(r for r in graph.readers if r.name == f"m{layer}")
            return reading(bridge, layer, "mlp")(current["mid"] + cut(reader))

        def mlp_out(value, hook, layer=layer):
            wrote(f"m{layer}", value)

        hooks += [
            (f"blocks.{layer}.attn.hook_z", z), (f"blocks.{layer}.attn.o.hook_out", projected),
            (f"blocks.{layer}.hook_attn_out", attended), (f"blocks.{layer}.mlp.hook_in", mlp_in),
            (f"blocks.{layer}.hook_mlp_out", mlp_out),
        ]  # fmt: skip
    hooks.append(("ln_final.hook_in", lambda value, hook: value + cut(graph.readers[-1])))
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        return float(metric(bridge(clean[None])[:, -1])[0])
