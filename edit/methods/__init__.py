"""Editing methods, one file each: hyperparameters as fields, and ``fit(model, requests)``."""

from edit.methods.rome import ROME

__all__ = ["ROME"]
