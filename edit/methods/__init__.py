"""Editing methods, one file each: hyperparameters as fields, and ``fit(model, requests)``."""

from edit.methods.base import EarlierEdits, EditingMethod, Fitted, Job, Written
from edit.methods.finetuning.finetuning import FineTuning
from edit.methods.rewriting.alphaedit import AlphaEdit
from edit.methods.rewriting.emmet import EMMET
from edit.methods.rewriting.kn import KN
from edit.methods.rewriting.locate_then_edit import LocateThenEdit
from edit.methods.rewriting.memit import MEMIT
from edit.methods.rewriting.pmet import PMET
from edit.methods.rewriting.rome import ROME

__all__ = [
    "EMMET",
    "KN",
    "MEMIT",
    "PMET",
    "ROME",
    "AlphaEdit",
    "EarlierEdits",
    "EditingMethod",
    "FineTuning",
    "Fitted",
    "Job",
    "LocateThenEdit",
    "Written",
]
