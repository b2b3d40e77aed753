"""What the documentation shows works: README snippets and docstring examples."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import edit
import locate

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.real_model, pytest.mark.slow]


def test_readme_snippets_run(tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(snippets) >= 3
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), scope)
    assert (tmp_path / "runs" / "eiffel.nc").exists()
    assert (tmp_path / "runs" / "edited" / "config.json").exists()


@pytest.fixture(scope="module")
def names(smollm):
    """What the docstring examples take as given."""
    facts = locate.bundled_facts(known_to="smollm2-135m")
    fact = facts[0]
    request = edit.EditRequest(fact)
    update = edit.ROME(layer=4).fit(smollm, [request], progress=False)
    swap, quiet = locate.TokenSwap(), {"progress": False}
    traces = locate.causal_trace(smollm, facts[:2], corruption=swap, positions="subject", **quiet)
    return {
        "model": smollm, "facts": facts, "fact": fact, "request": request, "update": update,
        "edit": edit, "locate": locate,
        "trace": locate.causal_trace(smollm, fact, corruption=locate.GaussianNoise(samples=2), **quiet),
        "evaluation": edit.evaluate(smollm, update, [request], **quiet),
        "traces": traces, "average": locate.average_traces(traces),
        "patches": locate.patch(smollm, fact, swap, positions="subject", **quiet),
        "screened": locate.patch(smollm, fact, swap, positions="subject", screen=9, **quiet),
        "neurons": locate.knowledge_neurons(smollm, fact, **quiet),
        "knocked": locate.attention_knockout(smollm, fact, **quiet),
        "flow": edit.propagate(smollm, update, request, mediate=("edit",), progress=False),
    }  # fmt: skip


def modules() -> list[str]:
    paths = [*(ROOT / "locate").rglob("*.py"), *(ROOT / "edit").rglob("*.py")]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names["trace"].save("t.nc")
    names["update"].save("rome.safetensors")
    for saved in ("average", "patches", "knocked"):
        names[saved].save(f"{saved}.nc")
    (tmp_path / "my_facts.json").write_text('{"prompt": "{} is in", "subject": "Rome", "target": "Italy"}')
    module = importlib.import_module(name)
    scope = {**vars(module), **names, "folder": tmp_path / "folder"}
    failed = []
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(module, name, globs=scope):
        result = runner.run(test, out=failed.append)
        assert result.failed == 0, "".join(failed)
