"""``locate-edit trace`` over one fact and over many."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import locate
from edit.cli import app
from tests.edit.cli.conftest import said
from tests.edit.conftest import FACTS, UNMATCHED

runner = CliRunner()
ONE = ["--prompt", "{} is located in the city of", "--subject", "The Louvre", "--target", "Paris"]
QUICK = ["--window", "2", "--corruption", "swap"]


@pytest.fixture
def trace(locate_edit):
    return locate_edit("trace")


@pytest.fixture
def calls(monkeypatch):
    """The subjects that were traced, call by call."""
    made, real = [], locate.causal_trace

    def counted(model, fact, **options):
        made.append([one.subject for one in fact])
        return real(model, fact, **options)

    monkeypatch.setattr(locate, "causal_trace", counted)
    return made


def test_a_file_gives_traces_averages_and_a_summary(trace, facts_file, tmp_path):
    out = tmp_path / "run"
    result = trace("--facts", facts_file(), "--out", out, *QUICK, "--json")
    summary = json.loads(result.stdout)  # and nothing else on stdout
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["done"] == 4
    assert summary["failed"] == []
    names = [case["case"] for case in summary["cases"]]
    assert names[:3] == ["louvre", "big-ben", "colosseum"]
    assert names[3].startswith("The-Eiffel-Tower-")
    assert {path.name for path in (out / "traces").iterdir()} == {f"{name}.nc" for name in names}
    figures = {f"{name}.{kind}" for name in ("average", "average_lines") for kind in ("png", "pdf")}
    expected = {"run.json", "cases.jsonl", "summary.json", "traces", "average.nc", "average.csv", *figures}
    assert expected <= {path.name for path in out.iterdir()}
    average = locate.load_average(out / "average.nc")
    assert average.n_facts == 4
    assert len(pd.read_csv(out / "average.csv")) == average.effect.size
    peak = summary["average"]["probability"]["peaks"]["mlp"]["last subject token"]
    layer, effect, low, high = average.peak("mlp", "last subject token")
    assert peak == {
        "layer": layer,
        "effect": pytest.approx(effect),
        "low": pytest.approx(low),
        "high": pytest.approx(high),
    }
    assert "middle subject tokens" in summary["average"]["probability"]["peaks"]["mlp"]


def test_a_case_of_a_file_is_traced_as_by_itself(trace, facts_file, tmp_path):
    trace("--facts", facts_file(), "--out", tmp_path / "many", "--window", "2", "--samples", "2")
    trace("--fact", json.dumps(FACTS[2]), "--out", tmp_path / "one", "--window", "2", "--samples", "2")
    many = locate.load_trace(tmp_path / "many" / "traces" / "colosseum.nc")
    one = locate.load_trace(tmp_path / "one" / "trace.nc")
    np.testing.assert_allclose(many.scores.values, one.scores.values, atol=1e-6)
    assert many.info["id"] == "colosseum"


def test_a_stopped_run_goes_on_without_tracing_again(trace, facts_file, calls, tmp_path, monkeypatch):
    whole, out, file = tmp_path / "whole", tmp_path / "run", facts_file()
    trace("--facts", file, "--out", whole, *QUICK)
    assert sorted(calls) == [["Big Ben", "The Eiffel Tower"], ["The Louvre", "The Colosseum"]]
    counted = locate.causal_trace
    calls.clear()

    def stopped(model, fact, **options):
        if calls:
            raise KeyboardInterrupt
        return counted(model, fact, **options)

    with monkeypatch.context() as patched:
        patched.setattr(locate, "causal_trace", stopped)
        result = trace("--facts", file, "--out", out, *QUICK, expect=130)
    assert f"Stopped. What is finished is kept in {out}, where the same command goes on." in said(result)
    assert not (out / "summary.json").exists()
    assert len((out / "cases.jsonl").read_text().splitlines()) == 2
    first = calls.copy()
    calls.clear()
    result = trace("--facts", file, "--out", out, *QUICK)
    assert f"Going on in {out}: 2 of 4 facts finished." in said(result)
    assert len(calls) == 1
    assert sorted(first + calls) == [["Big Ben", "The Eiffel Tower"], ["The Louvre", "The Colosseum"]]
    assert (out / "summary.json").read_text() == (whole / "summary.json").read_text()
    calls.clear()
    trace("--facts", file, "--out", out, *QUICK)
    assert not calls


@pytest.mark.slow("the command runs many times in this file")
def test_a_result_that_was_lost_is_made_again(trace, facts_file, calls, tmp_path):
    out, file = tmp_path / "run", facts_file()
    trace("--facts", file, "--out", out, *QUICK)
    (out / "traces" / "louvre.nc").unlink()
    calls.clear()
    trace("--facts", file, "--out", out, *QUICK)
    assert calls == [["The Louvre"]]
    assert (out / "traces" / "louvre.nc").exists()


def test_one_bad_fact_is_the_only_one_that_fails(trace, facts_file, calls, tmp_path):
    lacking = {name: value for name, value in FACTS[0].items() if name != "target_new"} | {"id": "lacking"}
    out, file = tmp_path / "run", facts_file([*FACTS, lacking])
    arguments = ["--facts", file, "--out", out, "--metric", "logit_diff", *QUICK]
    result = trace(*arguments, "--json", expect=1)
    reason = (
        "LocateError: A logit difference needs a second answer, and 'The Louvre is located in the city of' has no "
        'target_new. Name both: logit_diff("Paris", "Rome").'
    )
    assert "Failed: 1 of 5 facts; the results of the others are kept." in said(result)
    assert f"lacking: {reason}" in said(result)
    summary = json.loads(result.stdout)
    assert summary["failed"] == [{"case": "lacking", "error": reason}]
    assert summary["done"] == 4
    assert summary["average"]["logit_diff"]["facts"] == 4
    # It was asked together with the two of its length, and those alone once more.
    assert sorted(calls, key=len)[-1] == ["The Louvre", "The Colosseum", "The Louvre"]
    calls.clear()
    trace(*arguments, expect=1)
    assert not calls  # not tried again unless asked
    trace(*arguments, "--retry-failed", expect=1)
    assert calls == [["The Louvre"]]


def test_a_subject_without_another_of_its_length_fails_alone(trace, facts_file, tmp_path):
    out = tmp_path / "run"
    result = trace("--facts", facts_file([*FACTS, UNMATCHED]), "--out", out, *QUICK, expect=1)
    assert "unmatched: FactError: TokenSwap needs 1 other subject" in said(result)
    assert locate.load_average(out / "average.nc").n_facts == 4


def test_a_folder_of_another_run_is_refused(trace, facts_file, tmp_path):
    out, file = tmp_path / "run", facts_file()
    trace("--facts", file, "--limit", "1", "--out", out, *QUICK)
    result = trace("--facts", file, "--limit", "1", "--out", out, *QUICK, "--metric", "rank", expect=2)
    assert 'run belongs to another run: options.metric was ["probability"] and is ["rank"] now. Give another' in said(
        result
    )


@pytest.mark.slow("the command runs many times in this file")
def test_another_model_of_the_same_name_is_another_run(facts_file, model_folder, tmp_path):
    from tests import tiny

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    arguments = ["trace", "--model", str(folder), "--facts", facts_file(), "--out", str(tmp_path / "run"), *QUICK]
    assert runner.invoke(app, arguments).exit_code == 0
    tiny.hf_model("llama", seed=1).save_pretrained(folder)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "belongs to another run: model.fingerprint was" in said(result)


@pytest.mark.slow("the command runs many times in this file")
def test_figures_of_every_fact_only_where_asked(trace, facts_file, tmp_path):
    out, file = tmp_path / "run", facts_file()
    arguments = ["--facts", file, "--limit", "2", "--out", out, "--kinds", "mlp,attn_head", *QUICK]
    trace(*arguments)
    assert not list((out / "traces").glob("*.png"))
    trace(*arguments, "--figures")
    names = {
        f"{name}{part}.{kind}" for name in ("louvre", "big-ben") for part in ("", "_heads") for kind in ("png", "pdf")
    }
    assert names | {"louvre.nc", "big-ben.nc"} == {path.name for path in (out / "traces").iterdir()}
    single = tmp_path / "single"
    trace("--facts", file, "--limit", "1", "--out", single, *QUICK)
    assert (single / "traces" / "louvre.pdf").exists()
    assert not (single / "average.nc").exists()


@pytest.mark.slow("the command runs many times in this file")
def test_heads_are_averaged_by_role_too(trace, facts_file, tmp_path):
    out = tmp_path / "run"
    result = trace("--facts", facts_file(), "--out", out, "--kinds", "attn_head", *QUICK, "--json")
    peaks = json.loads(result.stdout)["average"]["probability"]["peaks"]
    assert set(peaks) == {"attn_head"}
    assert set(peaks["attn_head"]["last token"]) == {"layer", "head", "effect", "low", "high"}
    assert (out / "average_heads_last_token.png").exists()
    assert "head" in (out / "average.csv").read_text().splitlines()[0].split(",")
    assert {"layer", "head", "position", "token"} == set(json.loads(result.stdout)["cases"][0]["best"]["attn_head"])


@pytest.mark.slow("the command runs many times in this file")
def test_several_metrics_give_several_averages(trace, facts_file, tmp_path):
    out = tmp_path / "run"
    trace("--facts", facts_file(), "--out", out, *QUICK, "--metric", "logit_diff", "--metric", "probability")
    assert locate.load_average(out / "average.nc").metric == "logit_diff"
    assert locate.load_average(out / "average_probability.nc").metric == "probability"
    assert (out / "average_probability_lines.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--corruption", "uniform", "--samples", "2"],
        ["--corruption", "zero", "--direction", "break"],
        ["--corruption", "mean", "--positions", "subject_last"],
        ["--corruption", "resample", "--samples", "2", "--positions", "-1"],
        ["--corruption", "multivariate", "--samples", "2", "--scale", "2"],
        ["--swap", "The Colosseum", "--severed", "mlp"],
        ["--samples", "2", "--precision", "bfloat16", "--kinds", "resid"],
        ["--std", "1", "--scale", "0.5", "--budget", "64"],
        ["--std", "facts", "--corruption", "uniform", "--positions", "subject_last,-1"],
    ],
    ids=lambda options: " ".join(options),
)
def test_options_reach_the_trace(options, trace, facts_file, model_folder, tmp_path):
    out = tmp_path / "run"
    # The reference facts are those of the whole file, whatever the limit.
    trace("--facts", facts_file(), "--limit", "1", "--out", out, "--window", "2", *options)
    info = locate.load_trace(out / "traces" / "louvre.nc").info
    given = dict(zip(options[::2], options[1::2], strict=True))
    classes = {"uniform": "UniformNoise", "zero": "ZeroEmbedding", "mean": "MeanEmbedding",
               "resample": "ResampledEmbedding", "multivariate": "MultivariateNoise"}  # fmt: skip
    usual = "TokenSwap" if "--swap" in given else "GaussianNoise"
    assert info["corruption"] == classes.get(given.get("--corruption", ""), usual)
    assert info["direction"] == given.get("--direction", "restore")
    assert info["severed"] == given.get("--severed")
    assert info["precision"] == given.get("--precision", "model")
    assert info["positions"] == {"subject_last": [1], "-1": [7], "subject_last,-1": [1, 7]}.get(
        given.get("--positions", ""), list(range(8))
    )
    if "--std" in given:
        over_all = locate.embedding_std(locate.load_model(model_folder), locate.load_facts(facts_file()))
        assert info["std"] == pytest.approx(1.0 if given["--std"] == "1" else over_all)
    if info["corruption"] in ("MeanEmbedding", "ResampledEmbedding", "MultivariateNoise"):
        assert info["reference"].startswith("4 facts (")


def test_one_fact_gives_a_trace_and_its_figure(trace, tmp_path):
    arguments = [*ONE, "--out", tmp_path, "--window", "2", "--samples", "2", "--kinds", "resid,attn_head"]
    result = trace(*arguments)
    assert "p(Paris)" in result.stderr
    assert "answer: ' Paris'" in result.stderr
    assert "attn_head: layer" in result.stderr
    assert result.stdout.split() == [str(tmp_path / "trace.nc")]
    names = {"trace.nc", "trace.png", "trace.pdf", "trace_heads.png", "trace_heads.pdf"}
    assert names == {path.name for path in tmp_path.iterdir()}
    both = json.loads(trace(*arguments, "--metric", "rank", "--metric", "probability", "--json").stdout)
    assert both["metric"] == "rank"
    assert set(both["other_metrics"]["probability"]) == {"metric", "clean", "corrupted", "best"}
    assert "rank of Paris" in (said_of := said(trace(*arguments, "--metric", "probability", "--metric", "rank")))
    assert "p(Paris)" in said_of
    trace(*arguments, "--metric", "rank")  # a single fact's results are replaced
    assert locate.load_trace(tmp_path / "trace.nc").metric == "rank"


def test_an_answer_may_follow_without_a_space(trace, tmp_path):
    result = trace(*ONE, "--joined", "--kinds", "resid", "--positions", "last", "--samples", "1", "--out", tmp_path)
    assert "answer: 'Pa|ris'" in result.stderr


def test_the_shipped_facts_of_a_relation(trace, tmp_path):
    result = trace("--shipped", "--relation", "landmark_city", "--limit", "2", "--out", tmp_path / "run", *QUICK)
    assert "is not noted, so all are taken" in said(result)
    assert len(list((tmp_path / "run" / "traces").glob("*.nc"))) == 2


def test_a_bad_record_is_left_out_aloud_and_runs_once_it_is_mended(trace, facts_file, calls, tmp_path):
    broken = FACTS[1] | {"targt": "London"}
    arguments = ["--out", tmp_path / "run", "--window", "2", "--corruption", "zero", "--json"]
    result = trace("--facts", facts_file([FACTS[0], broken, FACTS[2]]), *arguments, expect=1)
    place = "line 1, record 2, targt: Unexpected keyword argument"
    assert f"cities.json: 1 record of 3 left out: {place}" in said(result)
    assert "Left out: 1 bad record of the file. Mend it there, and the same command goes on" in said(result)
    summary = json.loads(result.stdout)
    assert (summary["done"], summary["bad_records"], summary["facts"]) == (2, [place], {"count": 2})
    calls.clear()
    # Mended, with another fact more, one that is others' now, and one less.
    mended = [FACTS[3], FACTS[1], FACTS[2] | {"target": "Athens"}]
    result = trace("--facts", facts_file(mended), *arguments)
    assert sorted(itertools.chain(*calls)) == ["Big Ben", "The Colosseum", "The Eiffel Tower"]
    assert "1 fact changed since" in said(result)
    assert "run has results of 1 fact that this command does not name, which stay there and do not count: louvre" in (
        said(result)
    )
    assert [case["case"] for case in json.loads(result.stdout)["cases"]][1:] == ["big-ben", "colosseum"]
    calls.clear()
    result = trace("--facts", facts_file([FACTS[0], *mended]), *arguments)
    assert calls == [], "the first one is there from before"


def test_a_file_of_bad_records_alone_is_refused(trace, facts_file, tmp_path):
    result = trace("--facts", facts_file([FACTS[1] | {"targt": "London"}]), "--out", tmp_path / "run", expect=2)
    assert "cities.json: 1 problem in 1 record: line 1, record 1, targt: Unexpected keyword argument" in said(result)
    assert not (tmp_path / "run").exists()


def test_what_the_corruption_draws_from_the_file_is_of_each_record(trace, facts_file, calls, tmp_path):
    quick = ["--kinds", "resid", "--positions", "last", "--samples", "1"]
    arguments = ["--out", tmp_path / "run", "--corruption", "resample", *quick]
    trace("--facts", facts_file(FACTS[:2]), *arguments)
    calls.clear()
    trace("--facts", facts_file(FACTS[:3]), *arguments)
    assert sorted(itertools.chain(*calls)) == ["Big Ben", "The Colosseum", "The Louvre"], "embeddings of other facts"


MISTAKES = {
    "no file": (["--facts", "none.json"], "There is no facts file 'none.json'"),
    "two sources": (["--facts", "FILE", "--shipped"], "--facts and --shipped exclude each other"),
    "one and many": ([*ONE, "--facts", "FILE"], "A single fact and several exclude each other"),
    "joined twice": (["--fact", "FILE", "--joined"], "--joined goes with --prompt, --subject and --target"),
    "limit of one": ([*ONE, "--limit", "2"], "--relation and --limit choose among several facts"),
    "unknown relation": (["--facts", "FILE", "--relation", "x"], "no fact has the relation 'x'. Known: city."),
    "unknown kind": (["--facts", "FILE", "--kinds", "mpl"], "There is no kind of site 'mpl'. Did you mean mlp?"),
    "a kind twice": (["--facts", "FILE", "--kinds", "mlp,mlp"], "--kinds: give one or more names"),
    "wide window": (["--facts", "FILE", "--window", "9"], "A window of 9 layers does not fit: the model has 4"),
    "unknown metric": (["--facts", "FILE", "--metric", "p"], "There is no metric 'p'; there are probability,"),
    "severed kinds": (["--facts", "FILE", "--severed", "mlp", "--kinds", "mlp"], "--severed goes with --kinds resid"),
    "positions": (["--facts", "FILE", "--positions", "first"], "--positions: expected all, subject, subject_last,"),
    "indices": (["--facts", "FILE", "--positions", "1,x"], "or indices such as 0-3,-1; found 'x'"),
    "unit of noise": (["--facts", "FILE", "--std", "x"], "--std: give a positive number, or facts; found 'x'"),
    "unit of a swap": (["--facts", "FILE", "--swap", "x", "--std", "1"], "--std has no meaning for --corruption swap"),
    "scale of zeros": (
        ["--facts", "FILE", "--corruption", "zero", "--scale", "2"],
        "--scale has no meaning for --corru",
    ),
    "swap of noise": (["--facts", "FILE", "--corruption", "gaussian", "--swap", "x"], "--swap has no meaning for"),
    "no samples": (["--facts", "FILE", "--samples", "0"], "needs at least one sample"),
    "out is a file": (["--facts", "FILE", "--out", "FILE"], "is a file; a run needs a folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(case, trace, facts_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[case]
    file = facts_file()
    result = trace(*[file if argument == "FILE" else argument for argument in arguments], expect=2)
    assert message in said(result)


@pytest.mark.parametrize("arguments", [["--corruption", "noise"], ["--limit", "0"], ["--severed", "resid"]])
def test_values_that_an_option_does_not_take_are_bad_usage(arguments, trace, facts_file):
    result = trace("--facts", facts_file(), *arguments, expect=2)
    assert f"Invalid value for '{arguments[0]}'" in said(result)
