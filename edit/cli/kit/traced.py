"""Many facts, each edited by itself at its own traced layer, in a folder where a run that was stopped goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edit
from edit.cli.kit.output import Outcome
from edit.cli.kit.tables import means_table
from edit.methods import EditingMethod
from locate.errors import listed
from locate.store.files import save_json, to_plain


def edit_traced(model: Any, method: EditingMethod, requests: Sequence[edit.EditRequest], folder: Path) -> Outcome:
    """Trace, edit and evaluate each; the folder gets a row for each edit, and what they do on average.

    Raises:
        DataError: the folder is another run's.
    """
    found = edit.study(model, requests, method, layer="traced", parts=None, folder=folder, retry_failed=True)
    found.save(folder / "study.nc")
    found.to_dataframe().to_csv(folder / "edits.csv", index=False)
    table: Any = found.table().droplevel("method", axis=1)
    failed = found.failed
    summary = to_plain({
        "method": method.name, "edits": len(requests) - len(failed),
        "failed": failed.to_dict("records"), "layers": found.to_dataframe().set_index("fact")["layer"].to_dict(),
        "measures": table.to_dict(orient="index"),
    })  # fmt: skip
    file = save_json(folder / "summary.json", summary)
    shown = means_table(table, f"{len(requests)} facts, each at its traced layer", ".3g")
    told = listed([f"{one['fact']}: {one['error']}" for one in failed.to_dict("records")])
    failure = f"Failed: {len(failed)} of {len(requests)} facts; the others are kept.\n{told}" if len(failed) else None
    return Outcome(value=summary, shown=[shown], results=[file], failed=failure)
