"""Judging an edit."""

from edit.datasets.texts import ReferenceTexts
from edit.evaluation.baseline import Baseline, baseline
from edit.evaluation.evaluate import evaluate, evaluate_each
from edit.evaluation.results import Evaluation

__all__ = ["Baseline", "Evaluation", "ReferenceTexts", "baseline", "evaluate", "evaluate_each"]
