"""Judging an edit."""

from edit.evaluation.baseline import Baseline, baseline
from edit.evaluation.evaluate import Evaluation, evaluate, evaluate_each
from edit.evaluation.references import ReferenceTexts

__all__ = ["Baseline", "Evaluation", "ReferenceTexts", "baseline", "evaluate", "evaluate_each"]
