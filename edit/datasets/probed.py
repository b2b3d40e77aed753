"""Benchmarks of what an edit brings about, read into edits with their probes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from transformer_lens.model_bridge import TransformerBridge

from edit.datasets.counterfact import load_counterfact
from edit.datasets.knowedit import read_knowedit
from edit.datasets.mquake import read_mquake
from edit.datasets.reading import ProbedEdit, Reading
from edit.datasets.records import load_records
from edit.datasets.ripple import read_ripple
from edit.datasets.zsre import load_zsre
from edit.requests.probes import probes_for
from locate.errors import DataError, listed, tell

Benchmark = Literal["knowedit", "mquake", "rippleedits", "counterfact", "zsre"]

_READERS: dict[str, Callable[[int, Any, Reading], ProbedEdit | None]] = {
    "knowedit": read_knowedit, "mquake": read_mquake, "rippleedits": read_ripple,
}  # fmt: skip


def load_probed_edits(
    path: str | Path, benchmark: Benchmark | str, *, model: TransformerBridge | None = None, limit: int | None = None
) -> list[ProbedEdit]:
    """Read a benchmark's edits, each with its probes.

    What cannot be asked is left out, with a warning that counts it by reason: prompts without an answer, or whose
    answer the edit does not change. Old answers that are not published stay open, and ``propagate`` asks the model for
    them; with ``model`` that is done now. Edits whose present object is not published need ``model``.

    Args:
        path: the JSON file, in its published form.
        benchmark: ``"knowedit"`` (each of its files), ``"mquake"``, ``"rippleedits"``, ``"counterfact"``, ``"zsre"``.
        model: a raw-mode bridge, unedited, whose own answers are the old ones where none are published.
        limit: read the first records only.

    Raises:
        DataError: the file is missing or not of that form, or a record is bad: the message names the file, the
            record's index and the field. Or nothing can be asked.

    >>> record = {"subject": "Rome", "prompt": "Rome is in", "target_new": "Spain", "ground_truth": "Italy",
    ...           "locality": {"Relation_Specificity": [{"prompt": "Rome was founded by", "ground_truth": "Romulus"}]}}
    >>> _ = Path("knowedit.json").write_text(str([record]).replace("'", '"'))
    >>> for requests, probes in load_probed_edits("knowedit.json", "knowedit"):
    ...     print(requests[0].describe(), [probe.role for probe in probes])
    Rome is in: Italy → Spain ['edit', 'same subject']
    """
    if benchmark not in get_args(Benchmark):
        raise DataError(f"benchmark: must be one of {', '.join(get_args(Benchmark))}, found {benchmark!r}.")
    reading = Reading(model=model)
    if benchmark in _READERS:
        read = _READERS[benchmark]
        found = [one for one in load_records(path, lambda index, record: read(index, record, reading), limit) if one]
    else:
        load = load_counterfact if benchmark == "counterfact" else load_zsre
        found = [ProbedEdit((request,), probes_for(request)) for request in load(path, limit=limit)]
    found = [reading.complete(one) for one in found]
    reasons = listed([f"{count} {reason}" for reason, count in reading.skipped.most_common()], 10)
    if not found:
        raise DataError(f"{path}: no record can be asked. Left out were:\n{reasons}")
    if reasons:
        tell(f"{path}: left out\n{reasons}")
    return found
