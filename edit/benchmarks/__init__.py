"""Public data sets of edits, read into requests."""

from edit.benchmarks.counterfact import load_counterfact
from edit.benchmarks.references import load_reference_texts
from edit.benchmarks.zsre import load_zsre

__all__ = ["load_counterfact", "load_reference_texts", "load_zsre"]
