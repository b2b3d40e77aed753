"""Whether a second program computes on the same cores, so that threads wait for each other instead of computing."""

import os
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

# Of the product that is timed, and how often.
_SIZE, _TIMES = 384, 5
# Threads that share the work are at least as fast as one of them; where they wait for a core they are far slower.
_SLOWER = 1.5


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How fast a fixed matrix product is with all threads and with one.

    Attributes:
        n: threads of torch.
        cores: that this program may use.
        load: programs that computed at a time in the last minute, on average; None where the system does not tell.
        together: seconds of the product with all threads.
        alone: with one.
    """

    n: int
    cores: int
    load: float | None
    together: float
    alone: float

    @property
    def crowded(self) -> bool:
        """Whether more threads than one are slower than one.

        >>> Threads(n=2, cores=2, load=4.1, together=0.2, alone=0.01).crowded
        True
        """
        return self.n > 1 and self.together > _SLOWER * self.alone

    def describe(self) -> str:
        """What was found, and what to do where it is not well.

        >>> Threads(n=2, cores=2, load=1.0, together=0.006, alone=0.011).describe()
        '2 threads take 6 ms for a product that one takes 11 ms for; load 1.0 on 2 cores'
        """
        load = "" if self.load is None else f"; load {self.load:.1f} on {self.cores} cores"
        taken = f"{self.n} threads take {1e3 * self.together:.0f} ms"
        if self.n == 1:
            return f"1 thread takes {1e3 * self.alone:.0f} ms for a product{load}"
        found = f"{taken} for a product that one takes {1e3 * self.alone:.0f} ms for{load}"
        if not self.crowded:
            return found
        return (
            f"{found}: another program computes on these cores, and threads wait for it. Set OMP_NUM_THREADS=1 in both."
        )


def measure_threads() -> Threads:
    """Time the product, a few hundredths of a second where nothing else computes; threads are left as they were.

    >>> measure_threads().alone > 0
    True
    """
    n = torch.get_num_threads()
    together = _seconds()
    try:
        torch.set_num_threads(1)
        alone = _seconds()
    finally:
        torch.set_num_threads(n)
    return Threads(n=n, cores=_cores(), load=_load(), together=together, alone=alone)


def _seconds() -> float:
    factor = torch.ones(_SIZE, _SIZE, dtype=torch.float32)
    taken = []
    for _ in range(_TIMES + 1):
        begun = perf_counter()
        torch.mm(factor, factor)
        taken.append(perf_counter() - begun)
    return median(taken[1:])  # the first one starts the threads


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
