"""Judging an edit."""

from edit.evaluation.baseline import Baseline, baseline
from edit.evaluation.evaluate import Evaluation, evaluate, evaluate_each

__all__ = ["Baseline", "Evaluation", "baseline", "evaluate", "evaluate_each"]
