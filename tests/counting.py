"""How much blocks really run."""


def counted(model, work):
    """What work returns, and how many tokens it has run through each block."""
    counts = [0] * len(model.blocks)

    def count(layer):
        def hook(_module, _args, output):
            states = output[0] if isinstance(output, tuple) else output
            counts[layer] += states.shape[0] * states.shape[1]

        return hook

    handles = [block.register_forward_hook(count(layer)) for layer, block in enumerate(model.blocks)]
    try:
        return work(), counts
    finally:
        for handle in handles:
            handle.remove()
