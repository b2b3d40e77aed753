"""The command line: what it does, and what it says to a user's mistake."""

import html
import json
import re

import pytest
from typer.testing import CliRunner

import locate
from edit.cli import app
from edit.report.config import read_config

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCATE_EDIT_CACHE", str(tmp_path / "cache"))


FACT = ["--prompt", "{} is located in the city of", "--subject", "The Louvre", "--target", "Paris"]


def test_demo_writes_the_whole_folder(model_folder, corpus, tmp_path):
    out = tmp_path / "out"
    config = tmp_path / "run.toml"
    config.write_text(
        f'model = "{model_folder}"\ncorpus = "{corpus}"\nlayer = 1\nsamples = 2\nwindow = 2\n[fact]\n'
        'prompt = "{} is located in the city of"\n'
        'subject = "The Louvre"\ntarget = "Paris"\ntarget_new = "Rome"\nneighbours = ["Big Ben is in"]\n'
    )
    result = runner.invoke(app, ["demo", "--config", str(config), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    expected = {
        "trace.nc",
        "patches.nc",
        "neurons.nc",
        "update.safetensors",
        "evaluation.csv",
        "propagation.nc",
        "summary.json",
        "report.html",
    }
    figures = {f"{name}.{kind}" for name in ("trace", "propagation", "footprint") for kind in ("png", "pdf")}
    assert expected | figures <= {path.name for path in out.iterdir()}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["request"] == "The Louvre is located in the city of: Paris → Rome"
    assert summary["edit"]["layers"] == [1]
    assert json.loads(result.stdout.strip().splitlines()[-1]) == summary
    where = summary["where"]
    trace, patches = locate.load_trace(out / "trace.nc"), locate.load_patches(out / "patches.nc")
    best = trace.best("mlp")
    assert where["trace"]["site"] == {
        "kind": "mlp", "layer": best.layer, "position": best.position, "token": trace.tokens[best.position],
    }  # fmt: skip
    assert where["trace"]["score"] == pytest.approx(float(trace.scores.sel(kind="mlp").max("layer")[best.position]))
    assert (where["patches"]["site"]["layer"], where["patches"]["site"]["position"]) == (
        patches.best().layer,
        patches.best().position,
    )
    top = patches.to_dataframe().set_index(["layer", "position"])["value"]
    assert where["patches"]["score"] == pytest.approx(top[(patches.best().layer, patches.best().position)])
    neurons = locate.load_neurons(out / "neurons.nc")
    assert where["neurons"]["site"] == {
        "kind": "neuron",
        "layer": neurons.best().layer,
        "neuron": neurons.best().neuron,
    }
    assert where["neurons"]["score"] == pytest.approx(float(neurons.scores.max()))
    assert "in 5 steps, mean over 1 prompt" in where["neurons"]["meaning"]
    assert where["edited"] == {"layers": [1], "why": "this layer was asked for"}
    page = (out / "report.html").read_text()
    for one in ("trace", "patches", "neurons"):
        assert where[one]["meaning"] in html.unescape(page)
    # The page says what gives it again, and refers to what lies beside it.
    assert read_config(out / "config.json").plain() == {
        **read_config(config).plain(), "out": str(out), "target_new": "Rome",
    }  # fmt: skip
    assert '"subject": "The Louvre"' in html.unescape(page)
    assert {name for name in re.findall(r'href="([^"]+)"', page)} <= {path.name for path in out.iterdir()}
    assert f"neuron {neurons.best().neuron}</td>" in page
    assert "this layer was asked for" in page
    assert "The Louvre" in page
    loaded = re.sub(r"base64,[^\"]*", "", page)  # letters of a picture may spell anything
    assert "http" not in loaded.replace("http-equiv", "")  # nothing is loaded from anywhere
    assert page.count("data:image/png;base64,") == 4
    # What is too wide for a small screen scrolls by itself, and the page does not.
    tables = re.findall(r'(<div class="scrolls" .*>\n)?<table>\s*<tr>(.*)</tr>', page)
    assert [bool(box) for box, _ in tables] == [head.count("<th") > 4 for _, head in tables]
    assert len(tables) == 6
    assert summary["evaluation"]["missed"]["edited"] == 100  # of a model of random weights
    assert "short of the new answer" in page


def test_trace_prints_json(model_folder, tmp_path):
    out = tmp_path / "trace"
    result = runner.invoke(
        app, ["trace", *FACT, "--model", model_folder, "--window", "2", "--samples", "2", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert (out / "trace.nc").exists()
    assert set(json.loads(result.stdout.strip().splitlines()[-1])["best"]) == {"resid", "mlp", "attn"}


def test_edit_saves_an_update_and_exports(model_folder, tmp_path):
    out, export = tmp_path / "u.safetensors", tmp_path / "edited"
    result = runner.invoke(
        app,
        [
            "edit",
            *FACT,
            "--target-new",
            "Rome",
            "--model",
            model_folder,
            "--layer",
            "1",
            "--out",
            str(out),
            "--export",
            str(export),
        ],
    )
    assert result.exit_code == 0, result.output
    assert out.exists()
    assert (export / "config.json").exists()


MISTAKES = {
    "half a fact": (["demo", "--prompt", "{} is"], "--subject and --target missing"),
    "two braces": (["demo", "--prompt", "{} {}", "--subject", "y", "--target", "z"], "needs exactly one {}"),
    "no subject": (
        ["demo", "--prompt", "x", "--subject", "y", "--target", "z"],
        "'y' does not occur in the prompt 'x'",
    ),
    "bad seed": (["trace", *FACT, "--seed", "-1"], "needs a seed from 0"),
    "a folder as config": (["demo", "--config", "."], "Is a directory"),
    "unknown fact": (["demo", "--fact", "no-such-fact"], "no shipped fact 'no-such-fact'"),
    "broken JSON": (["demo", "--fact", "{oops"], "not readable as JSON"),
    "missing file": (["demo", "--fact", "none.json"], "There is no facts file"),
    "no config": (["demo", "--config", "none.toml"], "There is no config file"),
    "same target": (["demo", "--target-new", "Paris"], "is the present answer"),
    "no target": (["edit", *FACT], "needs a new object: give --target-new TEXT"),
    "two facts": (["demo", *FACT, "--fact", "louvre-city"], "--fact given as well"),
    "bad noise": (["trace", *FACT, "--noise", "0"], "needs a positive scale"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(case, model_folder):
    arguments, message = MISTAKES[case]
    model = [] if "--model" in arguments else ["--model", model_folder]
    result = runner.invoke(app, [*arguments, *model])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "There is no model folder"),
        (["--layer", "9"], "Layer 9 is out of range: the model has 4 layers"),
    ],
)
def test_bad_models_and_layers_are_explained(arguments, message, model_folder):
    model = [] if "--model" in arguments else ["--model", model_folder]
    result = runner.invoke(app, ["edit", *FACT, "--target-new", "Rome", *arguments, *model])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_an_unknown_setting_is_named(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("layers = 3\n")
    result = runner.invoke(app, ["demo", "--config", str(config)])
    assert result.exit_code == 2
    assert "layers: Extra inputs are not permitted" in " ".join(result.output.split())
