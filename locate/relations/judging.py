"""How faithful maps are on subjects that they were not fitted to, and whether what they say of causes holds."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import Branch
from locate.names import DEFAULT_BUDGET
from locate.relations.asking import Asked, Part
from locate.relations.maps import MAPS, Estimate

# What is added to a subject's state s so that the model says what it says of another, s'; o and o' are their objects'.
EDITS = ("linear relation", "identity", "subject swap")


class Verdict(NamedTuple):
    """1 where it is as it should be, 0 where not; NaN for a subject without another that is answered otherwise.

    Of each subject the token that the model says, and the number of the other subject; −1 where there is none.
    """

    faithful: Float[np.ndarray, "layer map subject"]
    causal: Float[np.ndarray, "layer edit subject"]
    answers: list[int]
    others: list[int]


def judge(
    model: TransformerBridge, asked: Asked, estimates: Mapping[int, Estimate], to_layer: int, *, beta: float, rank: int,
    seed: int = 0, budget: int = DEFAULT_BUDGET, progress: bool = True,
) -> Verdict:  # fmt: skip
    """Try maps and edits on questions.

    A map is faithful where the rest of the model reads from its output what it reads from its own state. An edit is
    right where the model then says of a subject what it says of another, which is drawn among those that it answers
    otherwise.

    >>> asked = Asked.of(model, capitals[5:7], capitals[:3])
    >>> found = judge(model, asked, {7: linear.estimate}, linear.to_layer, beta=1.0, rank=9, progress=False)
    >>> found.faithful.shape
    (1, 4, 2)
    """
    layers, n, width = list(estimates), len(asked.facts), int(model.cfg.d_model)
    dtype = estimates[layers[0]].bias.dtype
    subjects, objects = torch.zeros(len(layers), n, width, dtype=dtype), torch.zeros(n, width, dtype=dtype)
    answers = torch.zeros(n, dtype=torch.long)
    faithful = np.full((len(layers), len(MAPS), n), np.nan)
    causal = np.full((len(layers), len(EDITS), n), np.nan)
    with tqdm(total=2 * n, desc="subjects", disable=not progress, delay=1) as bar:
        for part in asked.parts(model, budget):
            own = part.questions
            answers[own], objects[own] = part.run.logits.argmax(-1).cpu(), part.objects(to_layer).to(objects)
            subjects[:, own] = torch.stack([part.subjects(layer).to(subjects) for layer in layers])
            outputs = [
                make(one, beta)(states)
                for one, states in zip(estimates.values(), subjects[:, own], strict=True) for make in MAPS.values()
            ]  # fmt: skip
            said = _read(part, part.last, [to_layer], torch.stack(outputs)[None])[0]
            faithful[:, :, own.numpy()] = rearrange(said == answers[own], "(l m) row -> l m row", m=len(MAPS)).numpy()
            bar.update(len(own))
        others = _others(answers.tolist(), seed)
        inverses = [one.inverse(rank) for one in estimates.values()]
        for part in asked.parts(model, budget):
            rows = torch.tensor([row for row, own in enumerate(part.questions.tolist()) if own in others])
            if len(rows):
                own = part.questions[rows]
                other = torch.tensor([others[index] for index in own.tolist()])
                change = objects[other] - objects[own]
                shifts = [
                    torch.stack([change @ inverse.T, change, states[other] - states[own]])
                    for inverse, states in zip(inverses, subjects, strict=True)
                ]  # as EDITS
                said = _read(part, part.position, layers, subjects[:, None, own] + torch.stack(shifts), rows)
                causal[:, :, own.numpy()] = (said == answers[other]).numpy()
            bar.update(len(part.questions))
    return Verdict(faithful, causal, answers.tolist(), [others.get(place, -1) for place in range(n)])


def _read(
    part: Part, position: int, layers: Sequence[int], states: Float[Tensor, "layer way row d_model"],
    rows: Int[Tensor, "row"] | None = None,
) -> Int[Tensor, "layer way row"]:  # fmt: skip
    """The next token that the model says with other states after some layers, at one position of some of the rows."""
    frozen = (torch.arange(len(part.questions)) if rows is None else rows).repeat(states.shape[1])
    branches = []
    for layer, own in zip(layers, states, strict=True):
        residual = part.run.residuals[layer + 1]
        entering = residual[frozen.to(residual.device), position:]  # a copy
        entering[:, 0] = rearrange(own, "way row d_model -> (way row) d_model").to(entering)
        branches.append(Branch(layer=layer + 1, rows=frozen, states=entering))
    said = part.run.resume(position, branches, measure=lambda logits, _: logits.argmax(-1))
    return rearrange(said.cpu(), "(layer way row) -> layer way row", layer=len(layers), way=states.shape[1])


def _others(answers: Sequence[int], seed: int) -> dict[int, int]:
    """For each question another one, by chance, that is answered otherwise, where there is one."""
    drawn = random.Random(seed)
    several = {own: [one for one, said in enumerate(answers) if said != answer] for own, answer in enumerate(answers)}
    return {own: drawn.choice(those) for own, those in several.items() if those}
