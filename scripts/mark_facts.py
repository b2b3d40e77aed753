"""Write into data/facts.json the rank that each fact's answer has in a model.

    python scripts/mark_facts.py [--model NAME] [--check]

With --check nothing is written; the exit code says whether the marks are up to date.
"""

import argparse
import json
import sys
from pathlib import Path

import locate
from edit.evaluation.scoring import score_targets

FACTS = Path(__file__).resolve().parents[1] / "data" / "facts.json"


def main() -> int:
    """Mark or check all facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    facts = locate.load_facts(FACTS)
    model = locate.load_model(arguments.model)
    ranks = [score.rank for score in score_targets(model, [(fact.text, fact.target) for fact in facts])]
    changed = [fact.id for fact, rank in zip(facts, ranks, strict=True) if fact.ranks.get(arguments.model) != rank]
    first = sum(rank == 1 for rank in ranks)
    print(f"{arguments.model} answers {first} of {len(facts)} facts first; {len(changed)} marks differ: {changed[:10]}")
    if arguments.check:
        return int(bool(changed))
    records = json.loads(FACTS.read_text(encoding="utf-8"))
    for record, rank in zip(records, ranks, strict=True):
        record.setdefault("ranks", {})[arguments.model] = rank
    FACTS.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
