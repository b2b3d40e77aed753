"""Second moments of the keys that a layer's MLP sees: the C in every locate-then-edit formula."""

from edit.statistics.collect import collect_statistics, key_statistics
from edit.statistics.files import load_statistics
from edit.statistics.moments import KeyStatistics, Part

__all__ = ["KeyStatistics", "Part", "collect_statistics", "key_statistics", "load_statistics"]
