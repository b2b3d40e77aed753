"""The words and numbers that calls and the command line share. Importing them costs nothing."""

from typing import Literal

# The model that needs no network; see ``locate.model.bundled``.
DEFAULT_MODEL = "smollm2-135m"
# The most tokens (rows × positions) in one pass.
DEFAULT_BUDGET = 16_384

Direction = Literal["restore", "break"]
PositionName = Literal["all", "subject", "subject_last", "last", "others"]
Precision = Literal["model", "bfloat16"]
