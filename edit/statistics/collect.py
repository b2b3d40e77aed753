"""Collecting key statistics from text: several layers in one pass, over shards, and on from where a run stopped."""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from edit.hyperparameters import whole
from edit.statistics.accumulate import MomentSum
from edit.statistics.corpus import LENGTH, ROWS, SAMPLED, token_batches, tokenizer_identity
from edit.statistics.files import load_statistics
from edit.statistics.moments import STATISTICS, KeyStatistics, Part, kept_beside
from edit.statistics.shrinking import shrunk
from edit.statistics.text import KeptText
from locate.engine.rows import WHOLE_BUDGET, Budget
from locate.errors import DataError, LocateError
from locate.model.anatomy import check_layer
from locate.model.bundled import cache_folder
from locate.model.devices import input_device
from locate.model.running import running
from locate.model.weights import down_projection, model_fingerprint
from locate.sites.table import hook_name

_TOKENS_PER_KEY_DIMENSION = 20
# Writing what was reached may take this share of the time; wide layers take seconds each.
_SHARE_FOR_CHECKPOINTS = 0.05


def key_statistics(
    model: TransformerBridge,
    layer: int,
    *,
    corpus: str = SAMPLED,
    tokens: int | None = None,
    seed: int = 0,
    shrink: bool = False,
    cache: bool = True,
    progress: bool = True,
) -> KeyStatistics:
    """Collect E[k kᵀ] at a layer, or read it from the cache of an earlier call.

    The same as ``collect_statistics`` for one layer.

    >>> statistics = edit.key_statistics(model, layer=4)
    >>> statistics.second_moment.shape == (model.cfg.d_mlp, model.cfg.d_mlp)
    True
    """
    return collect_statistics(
        model, [layer], corpus=corpus, tokens=tokens, seed=seed, shrink=shrink, cache=cache, progress=progress
    )[check_layer(model, layer)]


def collect_statistics(
    model: TransformerBridge,
    layers: Sequence[int],
    *,
    corpus: str = SAMPLED,
    tokens: int | None = None,
    seed: int = 0,
    shrink: bool = False,
    shard: tuple[int, int] = (0, 1),
    cache: bool = True,
    folder: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> dict[int, KeyStatistics]:
    """Collect E[k kᵀ] at several layers in one pass over the text, or read it from the cache of earlier calls.

    Blocks above the highest layer do not run, except where the model writes the text itself. With the cache, a
    collection that was stopped goes on from its last checkpoint, and ends with the same numbers.

    Args:
        model: a raw-mode bridge.
        layers: whose MLPs' keys to collect.
        corpus: ``"sampled"`` from the model, a text file, or a ``datasets`` name.
        tokens: how many keys, in whole batches, of which a small number of sampled keys needs only a part; by default
            20 times their dimension.
        seed: of sampled text.
        shrink: whether to shrink them towards their diagonal, by as much as these keys are few (see
            ``KeyStatistics.shrinkage``): four keys for each of their dimensions then do for most methods.
        shard: (i, n) takes only every n-th batch from the i-th on (0 to n − 1) of what would be taken; the n
            shards, collected anywhere, merge to the whole.
        cache: whether to keep the results, and what a stopped run had reached, on disk.
        folder: where; by default in the user's cache folder.
        checkpoint_seconds: how often to note what was reached (less often where writing takes long).
        progress: whether to show a bar on anything longer than a second.

    Returns:
        The statistics by layer, counted from the first.

    Raises:
        SiteError: the model has no such layer.
        ModelError: a layer has no single down-projection.
        DataError: the corpus cannot be read, or is too short.
        NumericsError: some keys are not finite.

    >>> found = edit.collect_statistics(model, [4], tokens=30000)
    >>> found[4].count
    32768
    """
    seed = whole("seed", seed)
    tokens = None if tokens is None else whole("tokens", tokens)
    shard = whole("shard", shard[0]), whole("shard", shard[1])
    _check_options(layers, tokens, shard, shrink)
    chosen = list(dict.fromkeys(check_layer(model, layer) for layer in layers))
    identity = f"{_identity(corpus)}, tokenizer {tokenizer_identity(model)}"
    rows = _rows(tokens) if corpus == SAMPLED and tokens is not None else ROWS
    text = _Text(corpus=corpus, identity=identity, seed=seed, rows=rows, index=shard[0], of=shard[1])
    fingerprint = model_fingerprint(model)
    place = cache_folder() / "statistics" if folder is None else Path(folder).expanduser()
    found: dict[int, KeyStatistics] = {}
    jobs: list[_Job] = []
    for layer in chosen:
        down = down_projection(model, layer)
        size = down.key_size
        batches = text.batches(tokens or _TOKENS_PER_KEY_DIMENSION * size)
        path = place / f"{text.digest(fingerprint, layer, batches, shrink)}.safetensors" if cache else None
        unfinished = None if path is None else path.with_name(f"{path.stem}.partial.safetensors")
        moments = MomentSum(layer=layer, size=size, wanted=text.share(batches), path=unfinished, shrinks=shrink)
        if path is not None and path.is_file():
            found[layer] = kept_beside(load_statistics(path), path)
            moments.forget()
        else:
            moments.resume()
            dtype = str(down.parameter.dtype).removeprefix("torch.")
            jobs.append(_Job(moments=moments, dtype=dtype, path=path))
    if jobs:
        texts = place / "text" / text.folder(fingerprint) if cache else None
        _accumulate(model, [job.moments for job in jobs], text, texts, checkpoint_seconds, progress)
    for job in jobs:
        moments = job.moments
        text.check_enough(moments)
        mean = moments.finished()
        by = moments.shrinkage(mean)
        statistics = found[moments.layer] = KeyStatistics(
            second_moment=shrunk(mean, by) if shrink else mean, count=moments.count, layer=moments.layer,
            corpus=corpus, seed=seed, fingerprint=fingerprint, dtype=job.dtype, parts=(text.part,), shrinkage=by,
        )  # fmt: skip
        moments.release()
        if job.path is not None:
            kept_beside(statistics, job.path).save(job.path)
            moments.forget()
    text.warn_if_short(tokens, found)
    return {layer: found[layer] for layer in chosen}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A layer whose statistics are to be collected, and where they go."""

    moments: MomentSum
    dtype: str
    path: Path | None


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Which text is read: every ``of``-th batch of ``rows`` sequences of a corpus, from batch ``index`` on."""

    corpus: str
    identity: str
    seed: int
    rows: int
    index: int
    of: int

    @property
    def part(self) -> Part:
        return Part(f"{self.identity}, seed {self.seed}" if self.corpus == SAMPLED else self.identity, *self.shard)

    @property
    def shard(self) -> tuple[int, int]:
        return self.index, self.of

    def batches(self, tokens: int) -> int:
        """How many batches all shards have together."""
        return -(-tokens // (self.rows * LENGTH))

    def share(self, batches: int) -> int:
        """How many of them are this shard's."""
        share = len(range(self.index, batches, self.of))
        if not share:
            raise DataError(
                f"Shard {self.index}/{self.of} is empty: the text is {batches} batches of {self.rows * LENGTH} tokens. "
                "Use fewer shards, or more tokens."
            )
        return share

    def digest(self, fingerprint: str, layer: int, batches: int, shrink: bool) -> str:
        """Names everything that the statistics depend on."""
        text = f"{self.identity}|{batches} of {self.rows}x{LENGTH}|{self.seed}|{self.index}/{self.of}"
        text += "|shrunk" * shrink
        return hashlib.sha256(f"{fingerprint}|{layer}|{text}|{STATISTICS.version}".encode()).hexdigest()[:32]

    def folder(self, fingerprint: str) -> str:
        """Names what sampled text depends on besides its seed."""
        return hashlib.sha256(f"{fingerprint}|{self.identity}".encode()).hexdigest()[:32]

    def read(
        self, model: TransformerBridge, begin: int, end: int, folder: Path | None, progress: bool
    ) -> Iterator[torch.Tensor]:
        """The shard's batches from ``begin`` to ``end``; those that the model writes are all written first."""
        first = self.index + begin * self.of
        options: Any = {"length": LENGTH, "rows": self.rows, "seed": self.seed, "step": self.of}
        if self.corpus != SAMPLED:
            return islice(token_batches(model, self.corpus, first=first, **options), end - begin)
        size = self.rows * LENGTH
        with tqdm(
            desc="text for key statistics", total=(end - begin) * size, unit="token", disable=not progress, delay=1
        ) as bar:

            def written(number: int) -> Iterator[torch.Tensor]:
                return token_batches(model, SAMPLED, first=number, tick=bar.update, **options)

            if folder is None:
                batches = written(first)
            else:
                kept = KeptText(folder=folder, name=f"{self.seed}-{self.rows}x{LENGTH}")
                batches = kept.batches(written, first, self.of, bar.update)
            return iter([*islice(batches, end - begin)])

    def warn_if_short(self, tokens: int | None, found: Mapping[int, KeyStatistics]) -> None:
        """Say so where the whole text gave fewer keys than were asked for."""
        fewest = min(found.values(), key=lambda one: one.count)
        wanted = tokens or _TOKENS_PER_KEY_DIMENSION * len(fewest.second_moment)
        if self.of == 1 and fewest.count < wanted:
            warnings.warn(
                f"The corpus {self.corpus!r} ended early: the key statistics of layer {fewest.layer} have "
                f"{fewest.count} of the {wanted} keys asked for. Give a longer text, or ask for fewer.",
                stacklevel=3,
            )

    def check_enough(self, moments: MomentSum) -> None:
        """Refuse what a corpus that ended early gave. A shard may be small, because others are added to it."""
        if self.of > 1 and not moments.count:
            raise DataError(
                f"The corpus {self.corpus!r} ended before shard {self.index}/{self.of}. Use fewer shards: it is cut "
                f"into batches of {self.rows * LENGTH} tokens."
            )
        if self.of == 1 and moments.count < moments.size:
            raise DataError(
                f"The corpus {self.corpus!r} gave only {moments.count} keys; the statistics of layer {moments.layer} "
                f"need at least {moments.size}, better ten times as many."
            )


def _rows(tokens: int) -> int:
    """Sequences in a batch: those that give so many tokens, to the next power of two, and no more than usual."""
    return min(ROWS, 1 << max(0, -(-tokens // LENGTH) - 1).bit_length())


def _accumulate(
    model: TransformerBridge, sums: Sequence[MomentSum], text: _Text, folder: Path | None, checkpoint_seconds: float,
    progress: bool,
) -> None:  # fmt: skip
    """Run the text through the model until every sum has the batches it wants, or the text ends."""
    begin, end = min(one.done for one in sums), max(one.wanted for one in sums)
    batches = text.read(model, begin, end, folder, progress)
    layers = [one.layer for one in sums]
    name = f"key statistics, layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
    last = time.monotonic()
    pause = checkpoint_seconds
    batch_tokens = text.rows * LENGTH
    with tqdm(
        desc=name, initial=begin * batch_tokens, total=end * batch_tokens, unit="token", disable=not progress, delay=1
    ) as bar:
        for done in range(begin, end):
            batch = next(batches, None)
            if batch is None:
                break
            # Runs that were stopped may have left their layers at different batches.
            active = [one for one in sums if one.done <= done < one.wanted]
            _run(model, batch, active, bar)
            for one in active:
                one.end_batch(text.index + done * text.of)
            if time.monotonic() - last >= pause and done + 1 < end:
                start = time.monotonic()
                for one in sums:
                    one.save()
                last = time.monotonic()
                pause = max(checkpoint_seconds, (last - start) / _SHARE_FOR_CHECKPOINTS)


def _run(model: TransformerBridge, batch: torch.Tensor, active: Sequence[MomentSum], bar: tqdm) -> None:
    if not active:
        return
    highest = max(one.layer for one in active)
    hooks = [(hook_name("down_in", one.layer), _adder(one, last=one.layer == highest)) for one in active]
    device, begun = input_device(model), bar.n
    for part in batch.split(Budget.of(model, WHOLE_BUDGET).rows(batch.shape[1])):
        # A pass of a wide model takes long: each block is a part of it.
        passed = partial(_tick, bar, begun, part.numel() / (highest + 1))
        ticks = [(hook_name("resid", layer), partial(passed, layer + 1)) for layer in range(highest)]
        with running(model), model.hooks(fwd_hooks=[*hooks, *ticks]):
            model(part.to(device), stop_at_layer=highest + 1)
        begun += part.numel()
        bar.update(begun - bar.n)


def _tick(bar: tqdm, begun: int, each: float, blocks: int, _value: object, hook: object) -> None:
    """A hook that moves a bar to where some blocks of a pass leave it."""
    bar.update(begun + round(each * blocks) - bar.n)


def _adder(moments: MomentSum, *, last: bool) -> Callable[..., None]:
    """A hook that adds the keys at once, so that those of only one layer are in memory."""

    def add(value: torch.Tensor, hook: object) -> None:
        moments.add(value.detach())
        if last:
            # The bridge's own way to stop, within the highest block: its output is not needed.
            raise StopAtLayerException(value)

    return add


def _check_options(layers: Sequence[int], tokens: int | None, shard: tuple[int, int], shrink: bool) -> None:
    if not layers:
        raise LocateError("There are no layers to collect key statistics of; give at least one.")
    if tokens is not None and tokens < 1:
        raise LocateError(f"tokens must be at least 1, found {tokens}. Leave it out for 20 per key dimension.")
    index, of = shard
    if not 0 <= index < of:
        raise LocateError(f"shard must be (i, n) with i from 0 to n − 1, found ({index}, {of}).")
    if shrink and of > 1:
        raise LocateError(
            f"Shards add up only as they are: shrink=True does not go with shard=({index}, {of}). Leave one of both."
        )


def _identity(corpus: str) -> str:
    where = Path(corpus).expanduser()
    # A text file counts by what it says, not by where it lies.
    if corpus != SAMPLED and where.is_file():
        with where.open("rb") as file:
            return f"text {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return corpus
