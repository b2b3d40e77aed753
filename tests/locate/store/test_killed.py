"""Processes killed by ``kill -9`` while they record: what was said to be recorded is there, and nothing twice."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from locate.store.folders import RunFolder

ROOT = Path(__file__).resolve().parents[3]
CASES = [f"case-{i}" for i in range(400)]
WORK = """
import sys
from pathlib import Path
from locate.store.folders import RunFolder
from locate.store.files import whole_file

cases = [f"case-{i}" for i in range(400)]
with RunFolder.open(sys.argv[1], {"command": "work"}) as run:
    for case in run.pending(cases):
        file = run.path / "results" / f"{case}.txt"
        with whole_file(file) as partial:
            partial.write_bytes(case.encode() * 2000)
        run.record(case, {"length": len(case)}, file=file)
        print(case, flush=True)
"""


def killed(folder: Path, after: int) -> list[str]:
    """Work until that many cases are said to be recorded, then kill; the cases that were said to be."""
    command = [sys.executable, "-c", WORK, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        said = [process.stdout.readline().strip() for _ in range(after)]
        process.kill()
        said += process.stdout.read().split("\n")[:-1]  # what it said meanwhile
    assert process.returncode == -9
    return said


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_loses_and_repeats_nothing(seed, tmp_path):
    draw = random.Random(seed)
    recorded: list[str] = []
    for _ in range(3):
        recorded += killed(tmp_path, draw.randrange(1, 60))
        with RunFolder.open(tmp_path, {"command": "work"}) as run:
            # The last may be on disk without having been said.
            assert set(recorded) <= set(run.done)
            assert len(run.done) - len(recorded) in (0, 1)
            recorded = list(run.done)
            assert run.pending(CASES) == [case for case in CASES if case not in run.done]
            for case, record in run.done.items():
                assert (tmp_path / record.file).read_text() == case * 2000
    assert len(set(recorded)) == len(recorded) < len(CASES)
    with RunFolder.open(tmp_path, {"command": "work"}) as run:
        for case in run.pending(CASES):
            run.record(case, {"length": len(case)})
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert sorted(line["case"] for line in lines) == sorted(CASES)
