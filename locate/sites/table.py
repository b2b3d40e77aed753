"""One table of the places in a model: what they are called, where they are read, and what their values look like.

A new kind of place is a new row here, which a test then reads on all architectures. Importing this costs nothing.
"""

from dataclasses import dataclass

from locate.errors import SiteError, suggest


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of place.

    Attributes:
        name: as users type it.
        title: what it is, in words.
        hook: the hook point, within a block where there is one in each layer.
        axes: of the value, by name.
        others: other names for it.
        layered: whether every layer has one.
        added: whether it is what is added to the stream, after a norm or a multiplier that the block puts between.
    """

    name: str
    title: str
    hook: str
    axes: str
    others: tuple[str, ...] = ()
    layered: bool = True
    added: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All its names."""
        return (self.name, *self.others)

    @property
    def dims(self) -> tuple[str, ...]:
        """The axes of the value."""
        return tuple(self.axes.split())

    @property
    def by_position(self) -> bool:
        """Whether there is a value for each position, and not for each pair of them."""
        return "position" in self.dims

    @property
    def unit(self) -> str | None:
        """What single ones of can be told apart at a position: ``head``, ``kv_head`` or ``neuron``."""
        return next((dim for dim in self.dims if dim in _UNITS), None)

    @property
    def unit_axis(self) -> int:
        """The axis of the units."""
        return next(axis for axis, dim in enumerate(self.dims) if dim in _UNITS)

    def at(self, layer: int | None = None) -> str:
        """The hook point's full name.

        Raises:
            SiteError: a layer is missing, or given for a place that stands outside the layers.
        """
        if self.layered == (layer is None):
            raise SiteError(
                f"{self.name}: every layer has one; say which." if self.layered else f"{self.name} is in no layer."
            )
        return f"blocks.{layer}.{self.hook}" if self.layered else self.hook


_UNITS = ("head", "kv_head", "neuron")
_STATE = "row position d_model"

TABLE: tuple[Row, ...] = (
    Row(name="embed", title="token embedding", hook="embed.hook_out", axes=_STATE, layered=False),
    Row(
        name="resid_pre", title="residual stream before the block", hook="hook_resid_pre", axes=_STATE,
        others=("hook_resid_pre",),
    ),
    # In some models a token brings more than the stream: embeddings for each layer, keys and values of earlier layers.
    Row(name="block_in", title="all that a token brings to the block", hook="hook_in", axes=_STATE),
    Row(name="attn_in", title="attention input", hook="attn.hook_in", axes=_STATE),
    Row(name="attn_head_q", title="query", hook="attn.hook_q", axes="row position head d_head"),
    Row(name="attn_head_k", title="key", hook="attn.hook_k", axes="row position kv_head d_head"),
    Row(name="attn_head_v", title="value", hook="attn.hook_v", axes="row position kv_head d_head"),
    Row(
        name="attn_head_scores", title="attention scores", hook="attn.hook_attn_scores", axes="row head query key",
        others=("attn_scores",),
    ),
    Row(
        name="attn_head_pattern", title="attention pattern", hook="attn.hook_pattern", axes="row head query key",
        others=("attn_pattern",),
    ),
    # A head's result is its z through the output projection: patching one is patching the other.
    Row(
        name="attn_head_z", title="head output", hook="attn.hook_z", axes="row position head d_head",
        others=("attn_head", "attn_head_result"),
    ),
    Row(name="attn_proj_out", title="attention's output projection", hook="attn.o.hook_out", axes=_STATE),
    Row(name="attn_out", title="attention output", hook="hook_attn_out", axes=_STATE, others=("attn",), added=True),
    # Only where attention comes before the MLP. It shows what the MLP's norm reads: the sum has another reader.
    Row(
        name="resid_mid", title="residual stream before the MLP", hook="hook_resid_mid", axes=_STATE,
        others=("hook_resid_mid",),
    ),
    Row(name="mlp_in", title="MLP input", hook="mlp.hook_in", axes=_STATE),
    # By the down-projection's own hook points, and not the module's: some architectures normalise or add to the
    # module's output afterwards, and the activations of a mixture of experts are its output.
    Row(
        name="mlp_neurons", title="MLP neuron", hook="mlp.out.hook_in", axes="row position neuron",
        others=("neuron", "down_in"),
    ),
    Row(name="down_out", title="down-projection's output", hook="mlp.out.hook_out", axes=_STATE),
    Row(name="mlp_out", title="MLP output", hook="hook_mlp_out", axes=_STATE, others=("mlp",), added=True),
    Row(
        name="resid_post", title="residual stream after the block", hook="hook_resid_post", axes=_STATE,
        others=("resid", "hook_resid_post"),
    ),
    Row(name="final_in", title="final residual stream", hook="ln_final.hook_in", axes=_STATE, layered=False),
    # Before a scale or cap that the architecture puts on its logits afterwards.
    Row(name="logits", title="logits", hook="unembed.hook_out", axes="row position vocab", layered=False),
)  # fmt: skip

# What activation patching can exchange: whatever has a value for each position, and the patterns of single heads.
PATCH_SITES = tuple(row.name for row in TABLE if row.layered and (row.by_position or row.name == "attn_head_pattern"))
_BY_NAME = {name: row for row in TABLE for name in row.names}


def site_row(name: str) -> Row:
    """The row of a kind of place, by any of its names.

    Raises:
        SiteError: there is no such kind; the nearest names are suggested.

    >>> site_row("mlp").name, site_row("attn_head_k").unit
    ('mlp_out', 'kv_head')
    """
    if name not in _BY_NAME:
        raise SiteError(f"There is no kind of site {name!r}. {suggest(name, _BY_NAME)}")
    return _BY_NAME[name]


def site_title(name: str) -> str:
    """A kind of place in words; what is no kind of place, such as a hook point, as it is.

    >>> site_title("attn_head_z"), site_title("mlp.hook_in")
    ('head output', 'mlp.hook_in')
    """
    return _BY_NAME[name].title if name in _BY_NAME else name


def hook_name(kind: str, layer: int | None = None) -> str:
    """The TransformerLens hook point of a kind of state, in a layer where each has one.

    Raises:
        SiteError: there is no such kind; or a layer is missing, or given for a place that stands outside the layers.

    >>> hook_name("resid", 3), hook_name("final_in")
    ('blocks.3.hook_resid_post', 'ln_final.hook_in')
    """
    return site_row(kind).at(layer)
