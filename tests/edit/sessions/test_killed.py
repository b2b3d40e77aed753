"""A session whose process is killed by ``kill -9``: what it said to have edited is there, and goes on from there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edit
import locate
from edit.values.objective import ValueObjective
from locate.model.weights import down_projection
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]
WORK = """
import sys
import edit
from tests.edit.sessions.test_killed import METHOD, REQUESTS
from tests import tiny

with edit.EditSession(tiny.bridge("llama"), METHOD(sys.argv[2]), folder=sys.argv[1]) as session:
    for request in REQUESTS:
        session.edit(request, progress=False)
        print(request.fact.id, flush=True)
"""
REQUESTS = [
    edit.EditRequest(locate.Fact(prompt="{} is in", subject=name, target="Paris", id=f"f{place}"), "Rome")
    for place, name in enumerate(["The Louvre", "Big Ben", "London", "Europe", "The Colosseum", "The city", "France"])
]


def METHOD(corpus):
    objective = ValueObjective(steps=2, stop="loss", loss_threshold=-1.0)
    return edit.MEMIT(layers=(1, 2), objective=objective, prefixes=(), corpus=corpus, statistics_tokens=1500)


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_session_loses_and_repeats_nothing(after, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "session"
    command = [sys.executable, "-c", WORK, str(folder), corpus]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        said = []
        for line in process.stdout:
            said += line.split()
            if len(said) == after:
                process.kill()
    assert process.returncode == -9
    assert len(said) >= after

    def weight(session_folder):
        model = tiny.bridge("llama")
        with edit.EditSession(model, METHOD(corpus), folder=session_folder) as session:
            found = [request.fact.id for request in session.requests]
            for request in REQUESTS[len(found) :]:
                session.edit(request, progress=False)
            assert session.requests == REQUESTS
            return found, down_projection(model, 2).parameter.detach().clone()

    found, after_the_kill = weight(folder)
    assert found == [f"f{place}" for place in range(len(found))]
    assert found[: len(said)] == said
    assert len(found) - len(said) in (0, 1)  # the last may be on disk without having been said
    torch.testing.assert_close(after_the_kill, weight(tmp_path / "whole")[1], atol=1e-5, rtol=1e-5)
