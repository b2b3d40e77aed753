"""Paired prompts: questions with one answer, and the same about another subject with another answer.

>>> pairs = locate.tasks.ioi(model, 4)
>>> clean, corrupt = pairs[0]
>>> (clean.target, corrupt.target) == (corrupt.subject, clean.subject)
True
"""

from locate.tasks.agreement import subject_verb_agreement
from locate.tasks.names import gender_pronoun, ioi
from locate.tasks.paired import Group, PairedPrompts
from locate.tasks.recall import factual_recall
from locate.tasks.years import greater_than

__all__ = [
    "Group",
    "PairedPrompts",
    "factual_recall",
    "gender_pronoun",
    "greater_than",
    "ioi",
    "subject_verb_agreement",
]
