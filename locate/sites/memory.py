"""Where an MLP's memory is read and written: the input and output of its down-projection.

The projection's own hook points are used, and not the module's, because some architectures normalise
or add to the module's output afterwards.
"""

from locate.sites.site import hook_name


def key_hook(layer: int) -> str:
    """Hook point of the key k, the down-projection's input.

    >>> key_hook(5)
    'blocks.5.mlp.out.hook_in'
    """
    return f"blocks.{layer}.mlp.out.hook_in"


def value_hook(layer: int) -> str:
    """Hook point of the value v = W k, the down-projection's output.

    >>> value_hook(5)
    'blocks.5.mlp.out.hook_out'
    """
    return f"blocks.{layer}.mlp.out.hook_out"


def contribution_hook(layer: int) -> str:
    """Hook point of what the MLP adds to the residual stream: v itself, or v after a norm of its own.

    >>> contribution_hook(5)
    'blocks.5.hook_mlp_out'
    """
    return hook_name("mlp", layer)
