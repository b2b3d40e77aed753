"""How faithful linear relations are, and whether they hold as causes, over relations of Hernandez et al. 2024.

    python -m benchmarks.relations [--data ../shared/data/lre] [--relations country_capital_city verb_past_tense …]

Maps are fitted after every few layers to examples that the model knows, and tried on other subjects that it knows; with
simpler maps and edits beside, and intervals of a bootstrap over subjects. A relation's best layer is chosen on the same
subjects, which favours it; one layer for all relations, the best on average, stands beside it. Published for GPT-J and
47 relations: faithful for more than 60% of the subjects in 48% of the relations.
"""

import argparse
from pathlib import Path

import numpy as np

import locate
from benchmarks.timing import machine, seconds
from locate.contrast.bootstrap import mean_interval
from locate.relations.linearity import LINEAR

_RELATIONS = (
    "country_capital_city", "country_language", "landmark_on_continent", "person_plays_pro_sport", "verb_past_tense",
    "adj_comparative",
)  # fmt: skip
_FAITHFUL = 0.6  # from which share on a relation counts as linear


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/lre"))
    parser.add_argument("--relations", nargs="+", default=list(_RELATIONS), help="by the names of their files, or all")
    parser.add_argument("--facts", type=int, default=50, help="of each relation, the first at most")
    parser.add_argument("--examples", type=int, default=5)
    parser.add_argument("--every", type=int, default=4, help="layers from one to the next that is tried")
    asked = parser.parse_args()
    model = locate.load_model(asked.model)
    layers = list(range(1, model.cfg.n_layers - 1, asked.every))
    print(f"{machine()}; {asked.model}; {asked.examples} examples; layers {layers}", flush=True)
    names = asked.relations
    if names == ["all"]:
        names = sorted(path.stem for path in asked.data.glob("*.json"))
    found: dict[str, locate.RelationLinearity] = {}
    for name in names:
        facts = locate.load_relation(asked.data / f"{name}.json").facts[: asked.facts]

        def sweep(name: str = name, facts: tuple[locate.Fact, ...] = facts) -> None:
            found[name] = locate.relation_linearity(model, facts, layers=layers, n=asked.examples, progress=False)

        try:
            took = seconds(sweep)
        except locate.FactError as error:
            print(f"{name}: left out. {error}", flush=True)
            continue
        _say(name, found[name], took)
    if found:
        _summarise(found)


def _say(name: str, one: locate.RelationLinearity, took: float) -> None:
    info, tried = one.info, one.data.sizes["subject"]
    print(f"{name}: {info['known']} of {info['given']} facts known, tried on {tried} subjects, {took:.0f} s")
    for measure in ("faithfulness", "causality"):
        layer, bounds = one.best(measure).layer, one.interval(measure)
        place = one.data["layer"].values.tolist().index(layer)
        ways = one.data["map" if measure == "faithfulness" else "edit"].values
        shares = [
            f"{way} {mean:.2f} [{low:.2f}, {high:.2f}]"
            for way, mean, low, high in zip(ways, *(bound[place] for bound in bounds), strict=True)
        ]
        print(f"  {measure:>12}, best at layer {layer:>2}: {', '.join(shares)}", flush=True)


def _summarise(found: dict[str, locate.RelationLinearity]) -> None:
    """Means over relations, with intervals of a bootstrap over them."""
    for measure, way in (("faithfulness", "map"), ("causality", "edit")):
        shares = np.stack([getattr(one, measure).sel({way: LINEAR}).values for one in found.values()])
        layers = next(iter(found.values())).data["layer"].values
        common = int(np.nanmean(shares, axis=0).argmax())
        for where, values in (
            ("each relation's best layer", np.nanmax(shares, axis=1)),
            (f"layer {layers[common]}", shares[:, common]),
        ):
            mean, low, high = (float(bound) for bound in mean_interval(values))
            share = 100 * float((values > _FAITHFUL).mean())
            print(
                f"{measure:>14} at {where}: mean of {len(values)} relations {mean:.2f} [{low:.2f}, {high:.2f}], "
                f"above {_FAITHFUL:.0%} in {share:.0f}% of them"
            )


if __name__ == "__main__":
    main()
