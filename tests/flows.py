"""A made-up flow of an edit, of any size."""

import numpy as np
import pandas as pd

from locate.figures.flow import LOGITS, Flow

TOKENS = ("The", " Eiffel", " Tower", " is", " located", " in", " the", " city", " of")


def made_up_flow(
    n_layers: int = 24, tokens: tuple[str, ...] = TOKENS, *, n_heads: int = 4, sign: float = 1.0, states: bool = True
) -> Flow:
    """An edit at the third token's MLP in layer 5 that later MLPs pass on, and heads move to the last token."""
    site, last, rows = (n_layers // 5, 2), len(tokens) - 1, []
    for layer in range(site[0], n_layers):
        depth = (layer - site[0]) / (n_layers - site[0])
        moved = 1 / (1 + np.exp(-12 * (depth - 0.5)))
        for position in (site[1], last):
            carried = 1.05 - moved if position == site[1] else moved
            wave = np.sin(2.1 * layer + position)
            found = [("mlp", None, 0.25 * (1 - depth) * (wave + 0.6) * (carried > 0.2))]
            found += [
                ("head", head, 0.3 * wave * np.cos(head * layer) * moved * (1 - moved) * 3 * (position == last))
                for head in range(n_heads)
            ]
            found += [("resid", None, carried)] if states else []
            rows += [(kind, head, layer, position, 6 * sign * share) for kind, head, share in found if share]
    nodes = pd.DataFrame(rows, columns=["kind", "head", "layer", "position", "effect"]).astype({"head": "Int64"})
    short = {"mlp": "m{layer}", "head": "a{layer}.h{head}", "resid": "r{layer}"}
    nodes["label"] = [short[row["kind"]].format(**row) for row in nodes.to_dict("records")]
    nodes.index = pd.Index([f"{label}@{place}" for label, place in zip(nodes["label"], nodes["position"], strict=True)])
    parts = nodes[nodes["kind"] != "resid"].sort_values("effect", key=abs, ascending=False)
    early, late = (parts[parts["position"] == place].head(4) for place in (site[1], last))
    arrows = [("site", name, row["effect"]) for name, row in early.iterrows() if row["layer"] > site[0]]
    arrows += [
        (one, other, 0.4 * after["effect"])
        for one, before in early.iterrows() for other, after in late.iterrows() if before["layer"] < after["layer"]
    ]  # fmt: skip
    arrows += [(name, LOGITS, row["effect"]) for name, row in late.iterrows()]
    return Flow(
        tokens=tokens, n_layers=n_layers, nodes=nodes, total=6.0 * sign, edited={"site": site},
        arrows=pd.DataFrame(arrows, columns=["start", "end", "weight"]), answers=(" Paris", " Rome"),
    )  # fmt: skip
