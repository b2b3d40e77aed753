"""Each test has a budget of time, held when tests are collected and when they run; the slowest are printed.

A test that needs more is marked ``slow("why")`` and left out of ``make test``, or, where one stands for many,
``budget(seconds, "why")``. Time is what the process and its children spent computing, measured against the speed of the
machine. Neither makes it a property of the code alone (a busy core computes at half its speed), so a test over its
budget is named at the end, and fails only where it takes several times as much.
"""

import os
import time
from collections import Counter

import pytest

BUDGET = 20.0  # seconds on a machine of the reference speed
REFERENCE = 65.0  # GFLOP/s of a product of two matrices of 2,048 rows
RUNAWAY = 4  # times its budget, where a test fails
SHOWN = 10


def pytest_addoption(parser):
    parser.addoption(
        "--budget", type=float, default=BUDGET, metavar="SECONDS",
        help=f"of a test that is not slow, on a machine of {REFERENCE:g} GFLOP/s; 0 for none (default: {BUDGET:g})",
    )  # fmt: skip


def pytest_configure(config):
    config.pluginmanager.register(Budget(config.getoption("budget")), "budget of time")


def clocks() -> tuple[float, float]:
    """Seconds of the wall clock, and of computing in this process and the children that it waited for."""
    waited = os.times()
    return time.perf_counter(), time.process_time() + waited.children_user + waited.children_system


def since(start: tuple[float, float]) -> float:
    """Seconds since these clocks: the smaller, since one counts waiting for a core and the other counts each thread."""
    return min(now - then for now, then in zip(clocks(), start, strict=True))


def speed() -> float:
    """GFLOP/s of this machine, the best of a few tries."""
    import torch

    matrix = torch.randn(2048, 2048)
    tries = []
    for _ in range(4):
        start = clocks()
        matrix @ matrix
        tries.append(since(start))
    return 2 * 2048**3 / 1e9 / max(min(tries[1:]), 1e-3)


class Budget:
    """Holds tests to their budget and remembers what they took."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.speed: float | None = None
        self.spent: dict[str, float] = Counter()  # by test, for the summary
        self.shared: dict[str, float] = {}  # by fixture that several tests share
        self.now = 0.0  # of the test that runs
        self.lent = 0.0  # of that, on fixtures that others share
        self.over: list[str] = []  # what each test over its budget took, for the summary

    def limit(self, item=None) -> float:
        """Seconds that a test has on this machine; none counts as one without marks."""
        if self.speed is None:
            self.speed = speed()
        own = item.get_closest_marker("budget") if item else None
        seconds = own.args[0] if own and self.seconds else self.seconds
        # Products get faster from machine to machine than the rest of a test does.
        return seconds * max(0.5, REFERENCE / self.speed)

    def _over(self, spent: float, item) -> float:
        """How many times its budget a test took."""
        if spent > self.limit(item):  # on a machine that others use by now it may be slower than it was
            self.speed = min(self.speed or REFERENCE, speed())
        return spent / self.limit(item)

    @pytest.hookimpl(tryfirst=True)  # before any are left out
    def pytest_collection_modifyitems(self, items):
        for item in items:
            for name, form in (("slow", '"…"'), ("budget", 'seconds, "…"')):
                for mark in item.iter_markers(name):
                    if not (mark.args and isinstance(mark.args[-1], str) and mark.args[-1].strip()):
                        raise pytest.UsageError(f"{item.nodeid} is marked {name} and says not why: {name}({form}).")
            if "smollm" in getattr(item, "fixturenames", ()) and item.get_closest_marker("real_model") is None:
                raise pytest.UsageError(f"{item.nodeid} uses the default model and is not marked real_model.")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        start, lent = clocks(), self.lent
        result = yield
        if fixturedef.scope != "function":
            spent = since(start) - (self.lent - lent)
            self.lent += spent
            name = f"fixture {fixturedef.argname} of {fixturedef.baseid or 'all'}"
            self.shared[name] = self.shared.get(name, 0.0) + spent
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        self.now = self.lent = 0.0
        return (yield from self._counted())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        return (yield from self._counted())

    def _counted(self):
        start = clocks()
        try:
            return (yield)
        finally:
            self.now += since(start)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when != "call":
            return report
        spent = self.now - self.lent
        report.spent, report.shared, self.shared = spent, self.shared, {}
        slow = item.get_closest_marker("slow") is not None
        if report.passed and self.seconds and not slow and (over := self._over(spent, item)) > 1:
            report.over = (
                f"{item.nodeid} took {spent:.1f} s, its budget is {self.limit(item):.1f} s on this machine "
                f'({self.speed:.0f} GFLOP/s). Make it faster, or mark it slow("why").'
            )
            if over > RUNAWAY:
                report.outcome, report.longrepr = "failed", report.over
        return report

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.spent[report.nodeid] += getattr(report, "spent", 0.0)
            self.over += [report.over] if hasattr(report, "over") else []
            for name, spent in getattr(report, "shared", {}).items():
                self.spent[name] += spent

    def pytest_terminal_summary(self, terminalreporter):
        if not self.spent:
            return
        terminalreporter.section(f"slowest of {sum(self.spent.values()):.3g} s of computing")
        for name, seconds in sorted(self.spent.items(), key=lambda item: -item[1])[:SHOWN]:
            terminalreporter.write_line(f"{seconds:7.2f} s  {name}")
        if self.over:
            terminalreporter.section("over their budget")
            for line in self.over:
                terminalreporter.write_line(line)
