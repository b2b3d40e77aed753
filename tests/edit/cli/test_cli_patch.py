"""``locate-edit patch`` of one fact and of many."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import locate
from tests.edit.cli.conftest import said
from tests.edit.conftest import FACTS, UNMATCHED

ONE = ["--prompt", "{} is located in the city of", "--subject", "The Louvre", "--target", "Paris"]
HEADS = ["--sites", "attn_head_z"]


@pytest.fixture
def patch(locate_edit):
    return locate_edit("patch")


def test_a_file_gives_patches_and_their_mean(patch, facts_file, tmp_path):
    out = tmp_path / "run"
    result = patch("--facts", facts_file(), "--out", out, *HEADS, "--json")
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["done"] == 4
    assert {"run.json", "cases.jsonl", "patches", "mean.csv", "mean.png", "mean.pdf"} <= {
        path.name for path in out.iterdir()
    }
    several = [locate.load_patches(out / case["file"]) for case in summary["cases"]]
    assert [patches.metric for patches in several] == ["logit_diff"] * 4
    scores = np.stack([patches.scores.values for patches in several])
    mean = summary["mean_score"]
    assert mean["dims"] == ["layer", "head"]
    assert mean["facts"] == 4
    assert mean["head"] == [0, 1, 2, 3]
    np.testing.assert_allclose(mean["score"], scores.mean(0), rtol=1e-4)
    np.testing.assert_allclose(mean["standard_error"], scores.std(0, ddof=1) / 2, rtol=1e-3)
    table = pd.read_csv(out / "mean.csv")
    np.testing.assert_allclose(table["score"].to_numpy().reshape(4, 4), scores.mean(0), rtol=1e-4)
    assert not list((out / "patches").glob("*.png"))
    first = summary["cases"][0]
    assert first["case"] == "louvre"
    assert set(first["top"][0]) == {"layer", "head", "value", "score"}
    assert first["corrupt_prompt"] == "The Colosseum is located in the city of"


def test_scores_of_different_metrics_have_no_mean(patch, facts_file, tmp_path):
    facts = [{name: value for name, value in FACTS[0].items() if name != "target_new"}, *FACTS[1:]]
    result = patch("--facts", facts_file(facts), "--out", tmp_path / "run", *HEADS, "--json")
    assert "No mean: Scores of different metrics (probability of 1, logit_diff of 3) do not average" in said(result)
    assert json.loads(result.stdout)["mean_score"] is None
    assert not (tmp_path / "run" / "mean.csv").exists()


def test_a_mean_tells_how_often_a_site_was_confirmed(patch, facts_file, tmp_path):
    patch("--facts", facts_file(), "--out", tmp_path / "run", *HEADS, "--screen", "4")
    table = pd.read_csv(tmp_path / "run" / "mean.csv")
    assert table["confirmed"].sum() == pytest.approx(4)
    assert set(table["confirmed"] * 4) <= set(range(5))


def test_a_stopped_run_goes_on_without_patching_again(patch, facts_file, tmp_path, monkeypatch):
    made, real = [], locate.patch

    def counted(model, fact, corrupt, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(fact.subject)
        return real(model, fact, corrupt, **options)

    out, file = tmp_path / "run", facts_file()
    with monkeypatch.context() as patched:
        patched.setattr(locate, "patch", counted)
        result = patch("--facts", file, "--out", out, *HEADS, expect=130)
        assert "Stopped." in result.stderr
        assert made == ["The Louvre", "Big Ben"]
        made[:] = ["already", "stopped", "once"]
        result = patch("--facts", file, "--out", out, *HEADS)
        assert made[3:] == ["The Colosseum", "The Eiffel Tower"]
        assert "2 of 4 facts finished" in said(result)
        patch("--facts", file, "--out", out, *HEADS)
        assert len(made) == 5
    result = patch("--facts", file, "--out", out, "--sites", "attn_head_v", expect=2)
    assert 'belongs to another run: options.sites was "attn_head_z" and is "attn_head_v" now' in said(result)


def test_a_fact_that_fails_is_reported_and_the_others_kept(patch, facts_file, tmp_path):
    out, file = tmp_path / "run", facts_file([UNMATCHED, *FACTS[:2]])
    result = patch("--facts", file, "--out", out, *HEADS, "--json", expect=1)
    assert "Failed: 1 of 3 facts; the results of the others are kept." in said(result)
    assert "unmatched: FactError: TokenSwap needs 1 other subject of 120 tokens" in said(result)
    summary = json.loads(result.stdout)
    assert [one["case"] for one in summary["failed"]] == ["unmatched"]
    assert summary["mean_score"]["facts"] == 2


def test_equal_ends_have_a_value_and_no_score(patch, facts_file, tmp_path, monkeypatch):
    def equal(*arguments, **options):
        found = real(*arguments, **options)
        return replace(found, data=found.data.assign(corrupted=found.data["clean"]))

    real = locate.patch
    monkeypatch.setattr(locate, "patch", equal)
    assert ": value " in said(patch(*ONE, *HEADS, "--swap", "The Colosseum", "--out", tmp_path / "one"))
    result = patch("--facts", facts_file(), "--limit", "2", "--out", tmp_path / "several", *HEADS)
    assert "2 of 2 facts have equal ends, and no score that could be averaged" in said(result)


def test_positions_have_no_mean_unless_they_play_one_part(patch, facts_file, tmp_path):
    result = patch("--facts", facts_file(), "--limit", "2", "--out", tmp_path / "all", "--json")
    assert json.loads(result.stdout)["mean_score"] is None
    assert not (tmp_path / "all" / "mean.csv").exists()
    arguments = ["--facts", facts_file(), "--limit", "2", "--positions", "subject_last", "--out", tmp_path / "one"]
    result = patch(*arguments, "--json")
    assert json.loads(result.stdout)["mean_score"]["dims"] == ["layer"]
    assert "Largest mean scores, 2 facts" in said(patch(*arguments))


def test_figures_of_every_fact_only_where_asked(patch, facts_file, tmp_path):
    patch("--facts", facts_file(), "--limit", "2", "--out", tmp_path / "run", "--figures")
    names = {f"{name}.{kind}" for name in ("louvre", "big-ben") for kind in ("nc", "png", "pdf")}
    assert names == {path.name for path in (tmp_path / "run" / "patches").iterdir()}


def test_one_fact_gives_patches_and_their_figure(patch, tmp_path):
    result = patch(*ONE, "--target-new", "Rome", "--swap", "The Colosseum", "--out", tmp_path)
    assert "logit(Paris) − logit(Rome)" in said(result)
    assert result.stdout.split() == [str(tmp_path / "patches.nc")]
    assert {path.name for path in tmp_path.iterdir()} == {"patches.nc", "patches.png", "patches.pdf"}
    result = patch(*ONE, "--swap", "The Colosseum", "--out", tmp_path, "--json")
    found = json.loads(result.stdout)
    assert found["metric"] == "probability"
    assert set(found["top"][0]) == {"layer", "position", "token", "value", "score"}


def test_corrupt_prompts_of_all_forms_are_the_same(patch, tmp_path):
    other = json.dumps({"prompt": "{} is located in the city of", "subject": "The Colosseum", "target": "Rome"})
    forms = {
        "text": ["--corrupt", "The Colosseum is located in the city of"],
        "fact": ["--corrupt-fact", other],
        "swap": ["--swap", "The Colosseum"],
    }
    found = {}
    for name, arguments in forms.items():
        patch(*ONE, *arguments, "--metric", "probability", "--out", tmp_path / name)
        found[name] = locate.load_patches(tmp_path / name / "patches.nc")
    for name in ("fact", "swap"):
        np.testing.assert_allclose(found[name].values.values, found["text"].values.values, atol=1e-6)
    # A corrupt fact says what the other answer is.
    patch(*ONE, *forms["fact"], "--out", tmp_path / "usual")
    assert locate.load_patches(tmp_path / "usual" / "patches.nc").metric == "logit_diff"


def test_options_reach_the_patching(patch, tmp_path):
    options = ["--by", "layer,position,head", "--layers", "1-2", "--positions", "1,-1", "--direction", "break",
               "--units", "0-2", "--budget", "64", "--screen", "5", "--method", "atp", "--metric",
               "log_probability", "--metric", "probability"]  # fmt: skip
    patch(*ONE, *HEADS, "--swap", "The Colosseum", *options, "--out", tmp_path)
    patches = locate.load_patches(tmp_path / "patches.nc")
    assert dict(patches.scores.sizes) == {"layer": 2, "position": 2, "head": 3}
    assert patches.info["direction"] == "break"
    assert patches.metrics == ("log_probability", "probability")
    assert int(patches.data["confirmed"].sum()) == 5
    assert patches.info["method"] == "atp"
    patch(*ONE, *HEADS, "--corruption", "gaussian", "--samples", "2", "--precision", "bfloat16", "--out", tmp_path)
    info = locate.load_patches(tmp_path / "patches.nc").info
    assert (info["corruption"], info["samples"], info["precision"]) == ("GaussianNoise", 2, "bfloat16")


MISTAKES = {
    "two corruptions": (["--corrupt", "x", "--swap", "y"], "--corrupt, --corrupt-fact and the options of a corruption"),
    "other length": (["--corrupt", "Big Ben is located in the city of"], "tokens, found 8 and 9"),
    "own prompt": (["--corrupt", "The Louvre is located in the city of"], "the corrupted prompt are the same"),
    "method without screen": (["--method", "atp"], "--method is of the estimate that --screen chooses sites by"),
    "unknown method": (["--screen", "5", "--method", "atpp"], "There is no method"),
    "no such fact": (["--corrupt-fact", "none"], "--corrupt-fact: there is no file and no shipped fact 'none'"),
    "broken fact": (["--corrupt-fact", "{"], "--corrupt-fact: not readable as JSON"),
    "unknown site": (["--sites", "resid_prep"], "There is no site 'resid_prep' to patch. Did you mean resid_pre"),
    "unknown by": (["--by", "layer,head"], "by: resid_pre has no 'head' to tell sites apart"),
    "layer": (["--layers", "0-4"], "Layer 4 is out of range: the model has 4 layers, 0 to 3"),
    "layers": (["--layers", "first"], "--layers: expected numbers or ranges such as 0-3,7; found 'first'"),
    "range": (["--layers", "3-1"], "--layers: expected numbers or ranges such as 0-3,7; found '3-1'"),
    "screen": (["--screen", "2.5"], "--screen: give a whole number of sites or a share between 0 and 1, found 2.5"),
    "metric": (["--metric", "loss"], "There is no metric 'loss'; there are probability,"),
    "unmatched": (["--subject", UNMATCHED["subject"]], "TokenSwap needs 1 other subject"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(case, patch, tmp_path):
    arguments, message = MISTAKES[case]
    result = patch(*ONE, *arguments, "--out", tmp_path, expect=2)
    assert message in said(result)


def test_a_bad_record_is_named_with_its_file_line_and_field(patch, tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in (FACTS[0], {**FACTS[1], "subject": ""})))
    result = patch("--facts", file, "--out", tmp_path / "run", *HEADS, expect=1)
    assert "facts.jsonl: 1 record of 2 left out: line 2, record 2, subject: is empty" in said(result)


def test_two_prompts_written_out_show_their_subject(patch, tmp_path):
    prompts = ["--prompt", "The Louvre is located in the city of", "--corrupt", "The Big Ben is located in the city of"]
    given = [*HEADS, "--positions", "subject", "--target", "Paris", "--out"]
    patch(*prompts, *given, tmp_path / "two", expect=2)  # of other lengths
    prompts[3] = "The Colosseum is located in the city of"
    patch(*prompts, *given, tmp_path / "two")
    patch(*prompts, "--subject", "Louvre", *given, tmp_path / "named")
    two, named = (locate.load_patches(tmp_path / name / "patches.nc") for name in ("two", "named"))
    assert two.scores.sizes["position"] == 1
    np.testing.assert_array_equal(two.scores, named.scores)
    prompts[3] = "The great Louvre is located in the city of"
    assert "so that these show no subject. Give --subject" in said(patch(*prompts, *given, tmp_path, expect=2))


def test_more_subjects_to_swap_change_nothing_where_they_change_no_choice(patch, facts_file, tmp_path, monkeypatch):
    made, real = [], locate.patch
    monkeypatch.setattr(locate, "patch", lambda *given, **how: made.append(given[1].subject) or real(*given, **how))
    # Big Ben has another subject to be swapped for once the file has one of its relation and length.
    facts = [FACTS[0], *(one | {"relation": "x"} for one in (FACTS[1], FACTS[3]))]
    for most in (2, 3):
        patch("--facts", facts_file(facts[:most]), "--out", tmp_path / "run", *HEADS)
    assert made == ["The Louvre", "Big Ben", "Big Ben", "The Eiffel Tower"]
