"""What a user sees while a command works, and when it is stopped."""

import io
import json
import os
import signal
import sys
import time

import pytest
import torch
import typer
from tqdm import tqdm
from typer.testing import CliRunner

from edit.cli import app
from edit.cli.kit import models, speaking
from edit.cli.kit.output import end_on_request, readable_errors
from edit.cli.kit.tables import between, shown
from locate.model import bundled, threads
from locate.model.threads import Threads, measure_threads


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(speaking, "monotonic", clock := Clock())
    return clock


def test_a_bar_in_a_pipe_is_a_line_now_and_then(clock):
    written = io.StringIO()
    stream = speaking.Stream(written)
    bar = tqdm(total=9, desc="tracing", file=stream, mininterval=0, ncols=60)
    for _ in range(8):
        clock.now += 0.9
        bar.update()
    stream.write("Note: \n")
    inner = tqdm(total=1, desc="inside", file=stream, mininterval=0, position=1, leave=False)
    inner.update()
    inner.close()
    bar.update()
    bar.close()
    stream.write("a")
    stream.write("\n")
    lines = written.getvalue().split("\n")
    assert not set("\r\x1b") & set(written.getvalue())
    assert [line.partition("|")[0] for line in lines] == [
        "tracing:  33%", "tracing:  67%", "Note: ", "inside: 100%", "tracing: 100%", "a", "",
    ]  # fmt: skip


def test_a_bar_on_a_terminal_is_drawn_over_itself_and_messages_have_lines_of_their_own(clock):
    written = io.StringIO()
    written.isatty = lambda: True
    stream = speaking.Stream(written)
    for text in ("\r 0%|", "\r10%|", "Note: x\n", "\r20%|", "\n", "done\n"):
        stream.write(text)
    stream.status("drawing … 2 s")
    stream.settle()
    stream.settle()
    assert written.getvalue() == "\r 0%|\r10%|\nNote: x\n\r20%|\ndone\n\rdrawing … 2 s\n"


def test_nothing_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    with speaking.speaking(0.2) as voice:
        voice.doing = "loading a model"
        time.sleep(0.5)
        with tqdm(total=2, desc="fitting", delay=1):
            time.sleep(0.3)
    assert sys.stderr is written
    lines = written.getvalue().splitlines()
    assert lines[0] == "loading a model … 0 s"
    assert any(line.startswith("fitting:   0%|") for line in lines)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_says_how_to_go_on(number, code, capsys):
    def worked():
        with readable_errors() as console:
            console.kept = "What is finished is kept in runs/x, where the same command goes on."
            os.kill(os.getpid(), number)
            time.sleep(5)

    usual = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test that runs behind a shell may not have
    end_on_request()
    try:
        with pytest.raises(typer.Exit) as ended:
            worked()
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == "Stopped. What is finished is kept in runs/x, where the same command goes on.\n"


CROWDED = Threads(n=2, cores=2, load=8.6, together=0.052, alone=0.001)


def test_threads_that_wait_for_each_other_are_lowered_aloud_unless_they_were_chosen(monkeypatch, capsys):
    monkeypatch.setattr(threads, "measure_threads", lambda: CROWDED)
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    for chosen in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(chosen, raising=False)
    with readable_errors() as console:
        models.fit_threads(console)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        models.fit_threads(console)
    assert given == [1]
    assert "52 ms for a product that one takes 1 ms for; load 8.6 on 2 cores: another program" in (
        err := " ".join(capsys.readouterr().err.split())
    )
    assert "This command computes with 1 thread for now; with OMP_NUM_THREADS=2 it keeps all 2." in err


def test_threads_are_measured_and_left_as_they_were():
    n = torch.get_num_threads()
    found = measure_threads()
    assert torch.get_num_threads() == n == found.n
    assert min(found.together, found.alone) > 0
    assert not Threads(n=1, cores=1, load=None, together=9.0, alone=1.0).crowded
    assert not Threads(n=2, cores=2, load=None, together=0.6, alone=1.0).crowded
    assert (
        "1 thread takes 1000 ms for a product" in Threads(n=1, cores=1, load=None, together=1.0, alone=1.0).describe()
    )


def test_what_is_not_known_of_a_single_fact_is_a_dash():
    nan = float("nan")
    assert (shown(0.5), shown(nan)) == ("0.500", "–")
    assert (between(-1.0, 0.5, "+.1f"), between(nan, nan)) == ("-1.0 to +0.5", "–")


def test_doctor_says_whether_threads_wait(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "measure_threads", lambda: CROWDED)
    monkeypatch.setattr(bundled, "bundled_folder", lambda: tmp_path)
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert found["threads"] == CROWDED.describe()
    assert found["threads"].endswith("Set OMP_NUM_THREADS=1 in both.")
