"""Editing methods, one file each: hyperparameters as fields, and ``fit(model, requests)``."""

from edit.methods.alphaedit import AlphaEdit
from edit.methods.base import EarlierEdits, Fitted, Written
from edit.methods.emmet import EMMET
from edit.methods.kn import KN
from edit.methods.locate_then_edit import LocateThenEdit
from edit.methods.memit import MEMIT
from edit.methods.pmet import PMET
from edit.methods.rome import ROME

__all__ = ["EMMET", "KN", "MEMIT", "PMET", "ROME", "AlphaEdit", "EarlierEdits", "Fitted", "LocateThenEdit", "Written"]
