"""Public data sets of edits, read into requests."""

from edit.datasets.counterfact import load_counterfact
from edit.datasets.references import load_reference_texts
from edit.datasets.zsre import load_zsre

__all__ = ["load_counterfact", "load_reference_texts", "load_zsre"]
