"""Timing two ways of doing the same thing, so that a noisy machine does not decide."""

import os
import platform
import time
from collections.abc import Callable
from statistics import median

import torch


def machine() -> str:
    """The machine's kind: what a reader needs to judge a figure by."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads"
    return f"{cores}, {device}, torch {torch.__version__}"


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(fast: Callable[[], object], slow: Callable[[], object], repeats: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, timed in turns, and the ratio slow ∕ fast of each turn."""
    pairs = [(seconds(fast), seconds(slow)) for _ in range(repeats)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), [b / a for a, b in pairs]
