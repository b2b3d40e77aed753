"""Run folders: what is finished stays, what was not is done again, and nothing is mixed."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from locate import DataError, Fact, FactError
from locate.facts.keys import case_keys
from locate.store.folders import RunFolder
from locate.store.hashes import fingerprint

RUN = {"command": "trace", "model": {"name": "tiny", "fingerprint": "ab12"}, "options": {"window": 2, "kinds": ["mlp"]}}
FACT = Fact(prompt="{} is in", subject="Rome", target="Italy", id="rome")


def lines(folder):
    return (folder / "cases.jsonl").read_text().splitlines()


def write(run, key):
    path = run.path / "traces" / f"{key}.nc"
    path.parent.mkdir(exist_ok=True)
    path.write_text(key)
    return path


def test_a_run_remembers_its_cases(tmp_path):
    with RunFolder.open(tmp_path / "run", RUN) as run:
        assert run.pending(["a", "b", "c"]) == ["a", "b", "c"]
        run.record("a", {"clean": 0.5, "answer": "café\n"}, file=write(run, "a"))
        run.record_failure("b", FactError("The subject\ncovers no token."))
    with RunFolder.open(tmp_path / "run", RUN) as again:
        assert again.pending(["a", "b", "c"]) == ["c"]
        assert again.pending(["a", "b", "c"], retry_failed=True) == ["b", "c"]
        assert again.done["a"].found == {"clean": 0.5, "answer": "café\n"}
        assert again.done["a"].file == "traces/a.nc"
        assert again.failed["b"].error == "FactError: The subject\ncovers no token."
    assert len(lines(tmp_path / "run")) == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"format": 1, **RUN}


def test_a_case_that_failed_and_then_succeeds_is_done(tmp_path):
    with RunFolder.open(tmp_path, RUN) as run:
        run.record_failure("a", FactError("no"))
        run.record("a", {"clean": 1.0})
        assert set(run.done) == {"a"}
        assert not run.failed
    with RunFolder.open(tmp_path, RUN) as run:
        assert set(run.done) == {"a"}
        assert not run.failed


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_a_half_written_last_line_is_dropped(cut, tmp_path):
    with RunFolder.open(tmp_path, RUN) as run:
        run.record("a")
        whole = (tmp_path / "cases.jsonl").read_bytes()
        run.record("b")
    (line,) = (tmp_path / "cases.jsonl").read_bytes()[len(whole) :].splitlines(keepends=True)
    (tmp_path / "cases.jsonl").write_bytes(whole + line[:cut])
    with RunFolder.open(tmp_path, RUN) as run:
        assert run.pending(["a", "b"]) == ["b"]
        assert (tmp_path / "cases.jsonl").read_bytes() == whole
        run.record("b")
    with RunFolder.open(tmp_path, RUN) as run:
        assert set(run.done) == {"a", "b"}
    assert len(lines(tmp_path)) == 2


def test_a_line_cut_short_by_a_full_disk_does_not_spoil_the_next(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("No space left on device")

    with RunFolder.open(tmp_path, RUN) as run:
        run.record("a")
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                run.record("b")
        assert run.pending(["a", "b"]) == ["b"]
        run.record("c")
    assert [json.loads(line)["case"] for line in lines(tmp_path)] == ["a", "c"]


def killed_before_the_record(folder):
    run = RunFolder.open(folder, RUN)
    run.record("a", file=write(run, "a"))
    write(run, "b")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_killed_between_a_result_and_its_record_does_that_case_again(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_before_the_record, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with RunFolder.open(tmp_path, RUN) as run:
        assert (tmp_path / "traces" / "b.nc").exists()
        assert run.pending(["a", "b"]) == ["b"]


def test_a_case_whose_file_is_gone_is_done_again(tmp_path):
    with RunFolder.open(tmp_path, RUN) as run:
        path = write(run, "a")
        run.record("a", file=path)
        path.unlink()
        assert run.pending(["a"]) == ["a"]


def test_a_result_must_be_in_the_folder(tmp_path):
    outside = tmp_path / "outside.nc"
    outside.write_text("x")
    with RunFolder.open(tmp_path / "run", RUN) as run:
        with pytest.raises(DataError, match=r"The result of 'a' must be a file within .*run, found .*outside\.nc"):
            run.record("a", file=outside)
        with pytest.raises(DataError, match=r"must be a file within .*run, found .*none\.nc"):
            run.record("a", file=run.path / "none.nc")
        assert run.pending(["a"]) == ["a"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"options": {"window": 10, "kinds": ["mlp"]}}, "options.window was 2 and is 10 now"),
        ({"options": {"window": 2}}, 'options.kinds was ["mlp"] and is not given now'),
        ({"model": {"name": "other", "fingerprint": "cd34"}}, 'model.name was "tiny" and is "other" now; model.finger'),
        ({"facts": {"fingerprint": "e" * 64}}, 'facts.fingerprint was not given and is "eeee'),
    ],
)
def test_a_folder_of_another_run_is_refused(other, message, tmp_path):
    with RunFolder.open(tmp_path / "run", RUN) as run:
        run.record("a")
    with pytest.raises(DataError) as caught:
        RunFolder.open(tmp_path / "run", {**RUN, **other})
    assert f"run belongs to another run: {message}" in str(caught.value)
    assert "Give another folder" in str(caught.value)
    with RunFolder.open(tmp_path / "run", RUN) as run:  # nothing is locked or changed by the refusal
        assert set(run.done) == {"a"}


def test_two_runs_at_a_time_are_refused(tmp_path):
    with RunFolder.open(tmp_path, RUN), pytest.raises(DataError, match="is in use by a run that is still going"):
        RunFolder.open(tmp_path, RUN)
    RunFolder.open(tmp_path, RUN).close()


def test_damaged_folders_are_explained(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file is a file; a run needs a folder"):
        RunFolder.open(tmp_path / "file", RUN)
    folder = tmp_path / "run"
    with RunFolder.open(folder, RUN) as run:
        run.record("a")
        run.record("b")
    first, second = lines(folder)
    (folder / "cases.jsonl").write_text(f"{first[:-4]}\n{second}\n")
    with pytest.raises(DataError, match=r"cases\.jsonl, line 1: not the record of a case: .*Delete the line"):
        RunFolder.open(folder, RUN)
    (folder / "cases.jsonl").write_text(f'{first}\n["b"]\n')
    with pytest.raises(DataError, match=r"cases\.jsonl, line 2: not the record of a case"):
        RunFolder.open(folder, RUN)
    (folder / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json does not describe a run: .* Give another folder"):
        RunFolder.open(folder, RUN)
    (folder / "run.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="is a run of format 2; this version goes on with format 1"):
        RunFolder.open(folder, RUN)
    (folder / "run.json").unlink()
    with pytest.raises(DataError, match=r"has finished cases but no run\.json to say of what"):
        RunFolder.open(folder, RUN)


def test_keys_are_ids_or_subject_and_content():
    unnamed = replace(FACT, id=None)
    keys = case_keys([FACT, unnamed, unnamed, replace(FACT, id="../etc/Zoë"), replace(FACT, id="")])
    assert keys[0] == "rome"
    tail = fingerprint([unnamed])[:8]
    assert keys[1:3] == [f"Rome-{tail}", f"Rome-{tail}-2"]
    assert keys[3].startswith("etc-Zo-")
    assert keys[4].startswith("Rome-")
    assert all("/" not in key and len(key) <= 100 for key in keys)


def test_ids_that_name_the_same_file_are_refused():
    message = "Two facts have the ids 'rome' and 'Rome'. Ids name the files of results, so they must differ"
    with pytest.raises(DataError) as caught:
        case_keys([FACT, replace(FACT, id="other"), replace(FACT, id="Rome")])
    assert message in str(caught.value)


def test_the_names_of_facts_do_not_depend_on_what_stands_before_them():
    unnamed = [replace(FACT, id=None, target=target) for target in ("Italy", "Lazio", "Europe")]
    assert case_keys(unnamed)[1:] == case_keys(unnamed[1:])


def test_a_case_of_something_else_is_worked_on_again(tmp_path):
    with RunFolder.open(tmp_path, RUN) as run:
        run.record("kept", of="1")
        run.record("mended", of="1")
        run.record_failure("failed", DataError("x"), of="1")
        run.record("dropped", of="1")
    with RunFolder.open(tmp_path, RUN) as run:
        now = {"kept": "1", "mended": "2", "failed": "1", "new": "1"}
        assert run.pending(now) == ["mended", "new"]
        assert run.pending(now, retry_failed=True) == ["mended", "failed", "new"]
        assert run.changed(now) == ["mended"]
        assert run.dropped(now) == ["dropped"]


def test_the_fingerprint_is_of_the_content():
    assert fingerprint([FACT]) == fingerprint([replace(FACT)])
    assert fingerprint([FACT]) != fingerprint([replace(FACT, target="France")])
    assert fingerprint([FACT], ["other facts"]) != fingerprint([FACT])


def test_a_folder_in_which_nothing_was_finished_may_be_another_runs(tmp_path):
    RunFolder.open(tmp_path / "run", RUN).close()
    with (
        RunFolder.open(tmp_path / "run", {**RUN, "options": {}}) as run,
        RunFolder.open(run.path / "part", RUN) as part,
    ):
        part.record("a")
    # What a part of it has finished counts.
    with pytest.raises(DataError, match="belongs to another run"):
        RunFolder.open(tmp_path / "run", RUN)
