"""What the checks found of each type, and the page that shows it."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from locate import LocateError
from tests.architectures.checks import CHECKS, Tried

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"

Outcome = dict[str, str]

_HEAD = """# Architectures

<!-- make architectures writes this page; tests/architectures holds every line of it. -->

{n_types} types of models as transformers {transformers} has them, tried on small ones with random weights through
TransformerLens {transformer_lens}. {n_loaded} of them load. Every tick is a comparison with whole passes of the plain
model, or of the bridge under hooks; a number is a reason below, for which something is refused. No type crashes
or gives another number: the test that holds this page would fail.

| column | what was compared |
| --- | --- |
| run | the logits, with those of plain transformers; *resumed*: only what a change can reach is run again |
| trace | restoring the stream in every layer under noise, at and around the subject, with whole plain passes |
| attn, mlp | restoring what attention and MLP add, in windows of layers |
| cut | all of the one token that differs, from any layer on, gives the other run; the stream does, unless said |
| patch | every kind of site that `patch` knows, at two tokens, in all layers |
| neurons | integrated gradients, with differences of whole passes |
| ROME | v* is written exactly, and the weights come back bit for bit |
| export | the exported folder in plain transformers, with the edited model |
| propagate | the last state carries all of an edit's effect, and a state what a literal exchange says |
| contributions | heads, biases and MLP sum to what a layer adds |
| lens | heads and MLPs (or layers) sum to the difference of two logits of the plain model, to 1e-4 of their spread |
| circuit | all edges of a circuit give the one run, none the other, and every edge has a score |

"""


def outcome(kind: str) -> Outcome:
    """What each check says of a type: nothing, a remark, or why it is refused."""
    tried = Tried(kind)
    try:
        known = type(tried.model.original_model).__name__
    except LocateError as error:
        return {"load": f"refused: {_general(error, type(tried.plain).__name__)}"}
    found = {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            found[name] = check(tried)
        except LocateError as error:
            found[name] = f"refused: {_general(error, known)}"
        except Exception as error:
            error.add_note(f"{kind}: {name}")
            raise
    return found


def _general(error: LocateError, model: str) -> str:
    """A message without what it says of one model and layer, and without guesses at what was meant."""
    text = str(error).replace(model, "the model").partition(" Did you mean")[0]
    text = re.sub(r"\bblocks\.\d+\.", "blocks.N.", re.sub(r"\b([Ll])ayer \d+", r"\1ayer N", text))
    return text[0].upper() + text[1:]


def page(kept: dict[str, Any]) -> str:
    """The document."""
    results: dict[str, Outcome] = kept["types"]
    reasons: list[str] = []

    def number(reason: str) -> int:
        if reason not in reasons:
            reasons.append(reason)
        return 1 + reasons.index(reason)

    def cell(text: str) -> str:
        if text.startswith("refused: "):
            return f"({number(text.removeprefix('refused: '))})"
        return text if text.startswith("not tried") else f"✓ {text}".rstrip()

    lines = [f"| type | {' | '.join(CHECKS)} |", f"| --- |{' --- |' * len(CHECKS)}"]
    for kind, found in results.items():
        if set(found) == set(CHECKS):
            cells = [cell(found[name]) for name in CHECKS]
        else:
            cells = [cell(*found.values()), *[""] * (len(CHECKS) - 1)]
        lines.append(f"| {kind.replace(':', ': ')} | {' | '.join(cells)} |")
    loaded = sum("load" not in found for found in results.values())
    head = _HEAD.format(n_types=len(results), n_loaded=loaded, **kept["versions"])
    why = [f"{index}. {reason}" for index, reason in enumerate(reasons, 1)]
    return "\n".join([head + "\n".join(lines), "", "Why something is refused:", "", *why, ""])


def read() -> dict[str, Any]:
    """What was found when the page was written, and with which versions."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def write(types: dict[str, Outcome]) -> None:
    """Keep what was found, and the page of it."""
    versions = {name: version(name.replace("_", "-")) for name in ("transformers", "transformer_lens")}
    kept = {"versions": versions, "types": types}
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
