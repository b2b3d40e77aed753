"""The statistics themselves: C = E[k kᵀ], its inverse, its eigenvectors and the directions that hold little of it."""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from edit.statistics.factorised import Factorised
from locate.errors import DataError, LocateError, NumericsError
from locate.model.weights import fingerprint
from locate.store.tensors import Kind, read_tensors, tensor_sum, write_tensors

STATISTICS = Kind(name="statistics", noun="key statistics", version=2, remedy="collect them again", digest=tensor_sum)
_EIGENVECTORS = replace(STATISTICS, name="eigenvectors", noun="eigenvectors of key statistics")


class Part(NamedTuple):
    """A share of a corpus: every ``of``-th batch of ``source``, from batch ``index`` on.

    >>> Part("sampled, seed 0", 0, 2).overlaps(Part("sampled, seed 0", 1, 2))
    False
    """

    source: str
    index: int
    of: int

    def overlaps(self, other: "Part") -> bool:
        """Whether some batches belong to both."""
        return self.source == other.source and (self.index - other.index) % math.gcd(self.of, other.of) == 0


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyStatistics:
    """The uncentred second moment C = E[k kᵀ] of the keys at one layer.

    Attributes:
        second_moment: float64, symmetric.
        count: how many keys were averaged.
        layer: whose down-projection they enter.
        corpus: where the text came from.
        seed: of sampled text.
        fingerprint: of the model they were collected on.
        dtype: of that model's weights, such as ``"bfloat16"``.
        parts: the shares of corpora that were averaged, where that is known.
        shrinkage: λ, where ``second_moment`` is (1 − λ)C + λ·diag(C) of the keys' own C, as quick statistics are.

    >>> statistics = edit.key_statistics(model, layer=4)
    >>> statistics.solve(torch.ones(model.cfg.d_mlp, 1)).shape == (model.cfg.d_mlp, 1)
    True
    """

    second_moment: Float[Tensor, "d_mlp d_mlp"]
    count: int
    layer: int
    corpus: str
    seed: int
    fingerprint: str
    dtype: str = "float32"
    parts: tuple[Part, ...] = ()
    shrinkage: float = 0.0
    # What was computed once: the Cholesky factor, the eigenvalues and eigenvectors, and the file to keep them in.
    _kept: dict[str, Any] = field(init=False, default_factory=dict, repr=False)

    @property
    def mean_energy(self) -> float:
        """E[kᵢ²] over keys and their dimensions."""
        return float(self.second_moment.diagonal().mean())

    def solve(self, keys: Float[Tensor, "d_mlp n"], *, ridge: float = 0.0) -> Float[Tensor, "d_mlp n"]:
        """(C + ridge·I)⁻¹ applied to columns of keys, in float64 through a Cholesky factor that is kept.

        Raises:
            NumericsError: C is singular, because too few keys were collected or some neurons never fired.
        """
        if self._kept.get("ridge") != ridge:
            self.check_rank()
            matrix = self.second_moment
            if ridge:
                matrix = matrix.clone()
                matrix.diagonal().add_(ridge)
            what = f"The key statistics of layer {self.layer} are"
            self._kept.update(factor=Factorised.of(matrix, what, self._keys), ridge=ridge)
        return self._kept["factor"].solve(keys)

    def eigen(self) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_mlp d_mlp"]]:
        """Eigenvalues in ascending order, and their eigenvectors as columns.

        They are computed once. Statistics from the cache keep them in a file beside their own, because wide
        models take minutes for them.

        Raises:
            NumericsError: C is not finite.

        >>> values, vectors = edit.key_statistics(model, layer=4).eigen()
        >>> values.shape == (model.cfg.d_mlp,), vectors.shape == (model.cfg.d_mlp, model.cfg.d_mlp)
        (True, True)
        """
        if "eigen" not in self._kept:
            self._check_finite()
            path: Path | None = self._kept.get("eigen_path")
            found = None if path is None else _read_eigen(path, self.second_moment)
            if found is None:
                try:
                    values, vectors = torch.linalg.eigh(self.second_moment)
                except RuntimeError as error:
                    raise NumericsError(
                        f"The eigenvectors of the key statistics of layer {self.layer} were not found ({error}). "
                        "Collect the statistics again, from more text."
                    ) from error
                found = values, vectors
                if path is not None:
                    # Without the file (a full disk, a folder that is read only) they are only not there next time.
                    with suppress(OSError, SafetensorError):
                        _write_eigen(path, self.second_moment, *found)
            self._kept["eigen"] = found
        return self._kept["eigen"]

    def null_space(self, *, energy: float | None = None, threshold: float | None = None) -> Float[Tensor, "d_mlp rank"]:
        """An orthonormal basis of the directions in which the keys have little: eigenvectors with small eigenvalues.

        A change that reads only these directions hardly shows on other text (AlphaEdit). Give one of both:

        Args:
            energy: the most that all of these directions may hold together, as a share of the trace of C.
            threshold: eigenvalues below it count as small. The publication uses 2e-2, but how large eigenvalues
                are depends on the model.

        Raises:
            LocateError: neither or both are given, or a number that makes no sense.
            NumericsError: too few keys to tell which directions are small, or none or all of them are.

        >>> basis = edit.key_statistics(model, layer=4).null_space(energy=0.01)
        >>> projector = basis @ basis.T
        """
        if (energy is None) == (threshold is None):
            raise LocateError(
                f"Give either energy or threshold to null_space, found energy={energy}, threshold={threshold}."
            )
        if energy is not None and not 0 < energy < 1:
            raise LocateError(f"energy is a share of the trace and must lie between 0 and 1, found {energy}.")
        if threshold is not None and not (threshold > 0 and math.isfinite(threshold)):
            raise LocateError(f"threshold must be a positive number, found {threshold}.")
        size = len(self.second_moment)
        self.check_rank()
        values, vectors = self.eigen()
        # Rounding can leave the smallest a little below zero.
        values = values.clamp(min=0)
        small = values < threshold if threshold is not None else values.cumsum(0) <= (energy or 0) * values.sum()
        rank = int(small.sum())
        smallest, largest = float(values[0]), float(values[-1])
        if rank == 0:
            share = smallest / float(values.sum()) if largest else 0.0
            raise NumericsError(
                f"The null space of the key statistics of layer {self.layer} is empty: the smallest of {size} "
                f"eigenvalues is {smallest:.3g}, {share:.3g} of the trace. Give "
                f"{f'a threshold above {smallest:.3g}' if energy is None else f'an energy above {share:.3g}'}."
            )
        if rank == size:
            raise NumericsError(
                f"All {size} eigenvalues of the key statistics of layer {self.layer} count as small: the largest is "
                f"{largest:.3g}. Nothing would be left to protect. Give a smaller threshold, or energy=0.01."
            )
        return vectors[:, :rank].contiguous()

    def merge(self, *others: "KeyStatistics") -> "KeyStatistics":
        """The statistics of all these keys together, as if they had been collected at once.

        Raises:
            DataError: they are of another layer, model or dimension, or some keys would count twice.

        >>> known = {"layer": 4, "corpus": "a.txt", "seed": 0, "fingerprint": "f"}
        >>> moments = torch.eye(2, dtype=torch.float64), 5 * torch.eye(2, dtype=torch.float64)
        >>> shards = [KeyStatistics(second_moment=c, count=n, **known) for c, n in zip(moments, (1, 3))]
        >>> shards[0].merge(shards[1]).second_moment
        tensor([[4., 0.],
                [0., 4.]], dtype=torch.float64)
        """
        everything = (self, *others)
        for other in others:
            self._check_mergeable(other)
        parts: list[Part] = []
        for part in (part for one in everything for part in one.parts):
            if any(part.overlaps(other) for other in parts):
                raise DataError(
                    f"Shard {part.index}/{part.of} of {part.source} shares text with another of the statistics, which "
                    "would count twice. Merge each shard once, and shards of one division."
                )
            parts.append(part)
        count = sum(one.count for one in everything)
        total = torch.zeros_like(self.second_moment)
        for one in everything:
            total.add_(one.second_moment, alpha=one.count)
        return KeyStatistics(
            second_moment=total.div_(count), count=count, layer=self.layer, seed=self.seed,
            corpus=" + ".join(dict.fromkeys(one.corpus for one in everything)),
            fingerprint=self.fingerprint, dtype=self.dtype, parts=_completed(parts),
        )  # fmt: skip

    def __add__(self, other: "KeyStatistics") -> "KeyStatistics":
        return self.merge(other) if isinstance(other, KeyStatistics) else NotImplemented

    def save(self, path: str | Path) -> Path:
        """Write the statistics to a safetensors file, whole or not at all."""
        names = ("count", "layer", "corpus", "seed", "fingerprint", "dtype", "parts", "shrinkage")
        described = {name: getattr(self, name) for name in names}
        return write_tensors(path, STATISTICS, {"second_moment": self.second_moment}, described)

    def _check_mergeable(self, other: "KeyStatistics") -> None:
        if self.shrinkage or other.shrinkage:
            raise DataError(
                "Key statistics that were shrunk do not add up: each is pulled to its own diagonal, by as much as it "
                "has few keys. Merge those that were collected without shrink=True."
            )
        mine, its = len(self.second_moment), len(other.second_moment)
        for what, one, two in (
            ("layers", self.layer, other.layer),
            ("keys of dimensions", mine, its),
            ("models with the fingerprints", self.fingerprint[:12], other.fingerprint[:12]),
        ):
            if one != two:
                raise DataError(
                    f"Key statistics of different {what} do not add up: found {one} and {two}. "
                    "Merge only statistics of one layer of one model."
                )

    def check_rank(self) -> None:
        """Whether there are as many keys as they have dimensions; with fewer C alone is singular.

        Raises:
            NumericsError: there are fewer, or C is not finite.
        """
        self._check_finite()
        size = len(self.second_moment)
        if self.count < size:
            raise NumericsError(
                f"The key statistics of layer {self.layer} are singular: {self._keys} are too few. Collect more: at "
                f"least {2 * size}, better {10 * size}."
            )

    def _check_finite(self) -> None:
        if not torch.isfinite(self.second_moment).all():
            raise NumericsError(
                f"The key statistics of layer {self.layer} are not finite. Collect them again, on a model whose "
                "outputs are."
            )

    @property
    def _keys(self) -> str:
        return f"{self.count} keys of dimension {len(self.second_moment)} from {self.corpus!r}"


def kept_beside(statistics: KeyStatistics, path: Path) -> KeyStatistics:
    """The same statistics, which from now on keep their eigenvectors in a file beside ``path``."""
    statistics._kept["eigen_path"] = path.with_name(f"{path.stem}.eigen.safetensors")
    return statistics


def _completed(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts, with all shards of a division written as the whole."""
    found = list(parts)
    for source, of in dict.fromkeys((part.source, part.of) for part in found):
        group = [part for part in found if (part.source, part.of) == (source, of)]
        if len(group) == of > 1:
            place = found.index(group[0])
            found = [part for part in found if part not in group]
            found.insert(place, Part(source, 0, 1))
    return tuple(found)


def _read_eigen(path: Path, moment: Tensor) -> tuple[Tensor, Tensor] | None:
    try:
        tensors, described = read_tensors(path, _EIGENVECTORS)
        if described["of"] != fingerprint(moment):
            return None
        return tensors["values"], tensors["vectors"]
    except (DataError, KeyError):
        return None


def _write_eigen(path: Path, moment: Tensor, values: Tensor, vectors: Tensor) -> None:
    tensors = {"values": values, "vectors": vectors}
    write_tensors(path, _EIGENVECTORS, tensors, {"of": fingerprint(moment)})
