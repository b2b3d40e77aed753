"""Try types of models, by default all, and write docs/architectures.md: ``python -m tests.architectures [TYPE …]``."""

import sys
import traceback
import warnings

from tests.architectures.document import RESULTS, outcome, read, write
from tests.architectures.table import TYPES


def main(chosen: list[str]) -> int:
    """Try them; what is wrong is shown, and keeps the line that it had."""
    found = read()["types"] if RESULTS.exists() else {}
    wrong = []
    for kind in chosen or TYPES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[kind] = outcome(kind)
        except Exception:
            traceback.print_exc()
            wrong.append(kind)
        else:
            print(kind, *(f"{name}: {text}" for name, text in found[kind].items() if text), sep="\n    ", flush=True)
    write({kind: found[kind] for kind in TYPES if kind in found})
    print(f"{len(found)} types; wrong: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
