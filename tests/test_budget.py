"""The budget of the tests, held against tests that are made up."""

from pathlib import Path

import pytest

from tests import budget

ROOT = Path(__file__).resolve().parents[1]
WORK = """
import time
import pytest

def work(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
"""
CONFTEST = """
import tests.budget
tests.budget.speed = lambda: 65.0

def pytest_configure(config):
    for name in ("slow", "real_model", "budget"):
        config.addinivalue_line("markers", name)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(tests, *options):
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(WORK + tests)
        return pytester.runpytest_inprocess("-p", "tests.budget", "-p", "no:cacheprovider", *options)

    return run


FIVE = """
def test_quick(): pass
def test_long(): work(0.3)
def test_runaway(): work(1.2)
@pytest.mark.slow("of its own accord")
def test_slow(): work(0.3)
@pytest.mark.budget(10, "stands for many")
def test_many(): work(0.3)
"""


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")])
def test_a_test_over_its_budget_is_named_and_one_far_over_it_fails(run, options):
    result = run(FIVE, "--budget", "0.2", *options)
    result.assert_outcomes(passed=4, failed=1)
    said = "took {} s, its budget is 0.2 s on this machine (65 GFLOP/s). Make it faster, or*"
    result.stdout.fnmatch_lines([
        "*FAILURES*",
        f"*::test_runaway {said.format('1.*')}",
        "*slowest of * s of computing*",
        "   1.?? s  *::test_runaway",
        "   0.3? s  *::test_*",
        "   0.3? s  *::test_*",
        "   0.0? s  *::test_quick",
        "*over their budget*",
        f"*::test_long {said.format('0.3*')}",
        f"*::test_runaway {said.format('1.*')}",
    ])  # fmt: skip


def test_the_budget_is_scaled_by_the_speed_of_the_machine(monkeypatch):
    """On no machine it is less than half."""
    limits = []
    for found in (65.0, 32.5, 100.0, 6500.0):
        monkeypatch.setattr(budget, "speed", lambda found=found: found)
        limits.append(budget.Budget(20.0).limit())
    assert limits == [20.0, 40.0, 13.0, 10.0]
    monkeypatch.undo()
    assert 1 < budget.speed() < 1e5


def test_waiting_and_what_tests_share_count_for_no_single_test(run):
    shared = """
@pytest.fixture(scope="module")
def shared(): work(0.3)
@pytest.fixture
def own(): work(0.3)
def test_first(shared): pass
def test_waits(shared): time.sleep(0.3)
def test_own(own): pass
"""
    result = run(shared, "--budget", "0.2")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["   0.3? s  fixture shared of *", "*over their budget*", "*::test_own took 0.3*"])
    result.stdout.no_fnmatch_line("*::test_first took*")
    result.stdout.no_fnmatch_line("*::test_waits took*")


def test_children_count(run):
    child = """
import subprocess, sys
BUSY = "import time\\nwhile time.process_time() < 0.4: pass"
def test_child(): subprocess.run([sys.executable, "-c", BUSY], check=True)
"""
    run(child, "--budget", "0.2").stdout.fnmatch_lines(["*::test_child took*, its budget is 0.2 s*"])


@pytest.mark.parametrize("mark", ["slow", "slow('  ')", "budget(3)"])
def test_slow_tests_must_say_why(run, mark):
    result = run(f"@pytest.mark.{mark}\ndef test_one(): pass\n", "-m", "not slow")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*::test_one is marked {mark[:4]}* and says not why: *"])


def test_the_default_model_needs_its_mark(run):
    tests = "@pytest.fixture\ndef smollm(): pass\n{mark}def test_one(smollm): pass\n"
    result = run(tests.format(mark=""))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_one uses the default model and is not marked real_model."])
    run(tests.format(mark="@pytest.mark.real_model\n"), "--budget", "0").assert_outcomes(passed=1)
