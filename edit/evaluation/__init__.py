"""Judging an edit."""

from edit.evaluation.evaluate import Evaluation, evaluate, evaluate_each

__all__ = ["Evaluation", "evaluate", "evaluate_each"]
