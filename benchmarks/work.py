"""Counting matrix products: how much work was done, how fast products of those shapes can run, how little would do."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.sweep import window_layers

Shape = tuple[int, int, int, int]  # batch, rows, inner, columns
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0}


class CountedProducts(TorchDispatchMode):
    """While active, counts matrix products by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[Shape, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = _PRODUCTS.get(func.name().split(".")[0])
        if first is not None:
            a, b = args[first], args[first + 1]
            batch = a.shape[0] if a.ndim == 3 else 1
            self.shapes[(batch, a.shape[-2], a.shape[-1], b.shape[-1]), a.dtype] += 1
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> float:
        """Floating-point operations of all products."""
        return float(sum(count * _operations(shape) for (shape, _), count in self.shapes.items()))


def counted(work: Callable[[], object]) -> CountedProducts:
    """The products that a piece of work makes."""
    with CountedProducts() as products:
        work()
    return products


def seconds_alone(products: CountedProducts, repeats: int = 3) -> float:
    """How long the same products take with nothing between them (the best of some repeats of each shape)."""
    total = 0.0
    for ((batch, rows, inner, columns), dtype), count in products.shapes.items():
        # A weight is stored by its output: a product with it reads it transposed.
        a, b = torch.randn(batch, rows, inner).to(dtype), torch.randn(batch, columns, inner).to(dtype).transpose(1, 2)
        a, b = (a[0], b[0]) if batch == 1 else (a, b)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            torch.matmul(a, b)
            times.append(time.perf_counter() - start)
        total += count * min(times)
    return total


def least_operations(model: TransformerBridge, kind: str, length: int, start: int, samples: int, window: int) -> float:
    """The operations that causality leaves for a trace: what depends on a patch, and nothing else.

    Per site and sample: blocks after the patch, positions from it on; of the last block only what the last position
    needs; the unembedding once. Modules whose output is pinned do not run. Windows that begin at the first layer
    share their beginning. The clean and the corrupted run are counted once.
    """
    cfg = model.cfg
    n, d, width, heads, d_head = cfg.n_layers, cfg.d_model, int(cfg.d_mlp or 0), cfg.n_heads, cfg.d_head
    groups = getattr(cfg, "n_key_value_heads", None) or heads
    gated = any("gate" in name for name, _ in model.blocks[0].named_modules())
    q, kv, o, mlp = d * heads * d_head, 2 * d * groups * d_head, heads * d_head * d, (3 if gated else 2) * d * width
    readout = d * cfg.d_vocab

    def attention(queries: range) -> int:
        return sum(2 * heads * d_head * (query + 1) for query in queries)

    def block(layer: int, first: int, q_first: int | None = None) -> int:
        """Multiplications of a block whose states change from position ``first`` on."""
        if layer == n - 1:
            return kv * (length - first) + q + o + mlp + attention(range(length - 1, length))
        queries = range(first, length)
        return (q + kv + o + mlp) * len(queries) + attention(queries)

    def rest(layer: int, first: int) -> int:
        return sum(block(one, first) for one in range(layer, n)) + readout

    def pinned(layer: int, first: int) -> int:
        """A block within a window, whose module's output at ``first`` is pinned."""
        spared = mlp if kind == "mlp" else q + o + attention(range(first, first + 1))
        if layer == n - 1 and first < length - 1:
            return block(layer, first)  # nothing but keys and values was computed there anyway
        return block(layer, first) - spared

    total = 0
    whole = sum(block(layer, 0) for layer in range(n)) + readout
    for first in range(start, length):
        if kind == "resid":
            total += sum(rest(layer + 1, first) for layer in range(n))
            continue
        spans = [window_layers(layer, window, n) for layer in range(n)]
        shared = max((span.stop for span in spans if span.start == 0), default=0)
        # In its first block a window changes that module's output alone; of attention, the MLP reads it.
        opening = mlp if kind == "attn" else 0
        total += opening + sum(pinned(layer, first) for layer in range(1, shared))
        for span in spans:
            if span.start > 0:
                total += opening + sum(pinned(layer, first) for layer in range(span.start + 1, span.stop))
            total += rest(span.stop, first)
    return 2.0 * (samples * total + (samples + 1) * whole)


def _operations(shape: Shape) -> int:
    batch, rows, inner, columns = shape
    return 2 * batch * rows * inner * columns
