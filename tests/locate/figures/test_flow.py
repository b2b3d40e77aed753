"""The flow map, on a made-up flow: for print, and for a page, also in a browser."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import FancyArrowPatch

from locate.errors import LocateError
from locate.figures.flow_html import flow_html
from locate.figures.flow_map import flow_figure
from tests.browser import CHROMIUM, opened
from tests.figures import check_fits
from tests.flows import made_up_flow

SHORT = ("See", " the", " Tower", " Spider-Man <b>&", " in")
# As a report's page is.
PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>flow</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"></head><body>{}</body></html>'
)


def fragment(**options) -> str:
    flows = {
        (probe, direction): made_up_flow(12, tokens, sign=sign)
        for probe, tokens in (("The Tower", made_up_flow().tokens), ("See it", SHORT))
        for direction, sign in (("gained", 1), ("lost", -1))
    }
    return flow_html(flows, title="Paris → Rome", **options)


def test_shares_and_places_are_those_of_the_nodes():
    flow = made_up_flow(12, n_heads=3)
    places = flow.places
    np.testing.assert_allclose(places["share"] * flow.total, places["effect"].astype(float))
    cell = places[(places["kind"] == "head") & (places["layer"] == 6)].sort_values("head")
    assert cell["x"].is_monotonic_increasing
    assert cell["x"].between(5.5, 6.5).all()
    mlp, state = places.loc["m6@2"], places.loc["r6@2"]
    assert (mlp["x"], state["x"], state["y"]) == (6, 6, 2)
    assert mlp["y"] > state["y"] > places.loc["a6.h0@8", "y"] - 6
    for sign in (1, -1):
        assert made_up_flow(sign=sign).places["share"].max() == pytest.approx(made_up_flow().places["share"].max())
    assert (flow.marks(0.05)["share"].abs() >= 0.05).all()
    assert len(flow.marks(0.05)) < len(flow.marks(0.0))


def test_white_is_where_nothing_is_carried():
    flow = made_up_flow()
    for states in (True, False):
        scale = flow.scale(states=states)
        np.testing.assert_allclose(scale.to_rgba(0.0), 1, atol=1e-6)
        assert scale.norm.vmax == -scale.norm.vmin == flow.reach(states=states)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"total": 0.0}, "other than 0"),
        ({"nodes": pd.DataFrame({"kind": []})}, "need the columns kind, head, .* is missing"),
        ({"edited": {"site": (40, 2)}}, "'site' stands in layer 40 at position 2; there are 24 layers and 9 tokens"),
        ({"edited": {}}, "an arrow's start is 'site'"),
        ({"arrows": pd.DataFrame({"start": ["site"], "end": ["m6"], "weight": [1]})}, "end is 'm6'.*m6@2"),
        ({"arrows": pd.DataFrame({"start": ["site"], "end": ["logits"], "weight": [np.nan]})}, "not finite"),
        ({"nodes": made_up_flow().nodes.assign(kind="neuron")}, "no kind of node 'neuron'"),
    ],
)
def test_what_cannot_be_drawn_is_told(change, said):
    with pytest.raises(LocateError, match=said):
        replace(made_up_flow(), **change)


def test_the_map_shows_what_carries_enough_and_fits():
    flow = made_up_flow()
    for size in ((3.3, 3.2), None):
        figure = flow_figure(flow, headline="gained, edited state put into the base model", figsize=size)
        check_fits(figure)
        axes = figure.axes[0]
        marks = sum(len(one.get_offsets()) for one in axes.collections if isinstance(one, PathCollection))
        shown = flow.marks(0.01)
        assert marks == (shown["kind"] != "resid").sum()
        arrows = [one for one in axes.patches if isinstance(one, FancyArrowPatch)]
        assert len(arrows) == len(flow.curves(0.01))
        assert max(one.get_linewidth() for one in arrows) == arrows[-1].get_linewidth()
        texts = [one for part in figure.axes for one in (*part.texts, *part.get_xticklabels())]
        assert min(one.get_fontsize() for one in texts) >= 7
    everywhere = replace(flow, edited={"site": (3, None)}, tokens=[f" {'long' * 9} $x$ 巴"] * 60)
    check_fits(flow_figure(everywhere, headline="changed everywhere"))
    with pytest.raises(LocateError, match="leave no room"):
        flow_figure(flow, figsize=(1.0, 3.0))


def test_the_page_holds_its_words_and_refers_to_nothing():
    page = fragment(most=20, least=0.02)
    root = ET.fromstring(f"<div>{page}</div>")
    views = root.findall(".//div[@class='flow-view']")
    assert [view.get("hidden") for view in views] == [None, "hidden", "hidden", "hidden"]
    for view, tokens in zip(views, (made_up_flow().tokens,) * 2 + (SHORT,) * 2, strict=True):
        nodes = view.findall(".//*[@class='flow-node']")
        assert len(nodes) > 30
        assert sum(node.tag == "circle" or node.get("stroke") is not None for node in nodes) == 20
        assert [node.get("tabindex") for node in nodes].count("0") == 1
        for node in nodes:
            words = re.fullmatch(
                r"\w[\w.]*: (residual state|MLP|attention head \d), layer \d+; at “(.+)” \(token (\d)\); "
                rf"{view.get('data-direction')}: [+−][\d.]+% of the effect, [+−][\d.]+ logits",
                node.get("aria-label"),
            )
            assert words, node.get("aria-label")
            assert words[2] == tokens[int(words[3])].strip()
        arrows = view.findall(".//*[@class='flow-arrow']")
        assert {arrow.get("data-end") for arrow in arrows} >= {"logits"}
    assert "all but the 20 largest" in page
    assert not re.search(r"https?:|//\w|url\(|@import|src=|href=", page)
    assert "Man <b>&" not in page


def test_one_map_needs_no_choice_and_a_gap_is_told():
    flow = made_up_flow(6)
    alone = replace(flow, arrows=flow.arrows.head(0))
    assert "<select" not in flow_html({("one", "gained"): alone}, title="")
    assert "<input" not in flow_html({("one", "gained"): alone}, title="")
    with pytest.raises(LocateError, match=r"\('other', 'lost'\)|\('one', 'lost'\)"):
        flow_html({("one", "gained"): flow, ("other", "lost"): flow}, title="")
    with pytest.raises(LocateError, match="at least one"):
        flow_html({}, title="")


@pytest.mark.slow("starts a browser")
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_the_page_answers_to_keys_and_mouse(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE.format(fragment() + "<p>between</p>" + fragment(most=5)), encoding="utf-8")
    told = "((tip) => tip.hidden ? '' : tip.innerText)(document.querySelector('.flow-tip'))"
    focused = "document.activeElement"
    with opened(path, tmp_path / "browser") as page:
        page.resize(1280, 800)
        for _ in range(4):  # probe, direction, slider, map
            page.press("Tab")
        seen = []
        for key in ("", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Home", "End"):
            if key:
                page.press(key)
            words = page.run(f"{focused}.getAttribute('aria-label')")
            assert page.run(told) == words.replace("; ", "\n")
            assert page.run(f"{focused}.tabIndex") == 0
            seen.append(words)
        assert len(set(seen)) >= 6
        assert "layer 2;" in seen[-2]
        assert "layer 11;" in seen[-1]
        page.photograph(tmp_path / "1280.png")
        page.press("Tab")  # out of this map, to the next one's probe
        assert page.run(f"{focused}.name") == "probe"
        assert page.run(told) == ""
        place = page.run(
            "(() => { const at = document.querySelector('.flow-map circle').getBoundingClientRect(); "
            "return [at.x + at.width / 2, at.y + at.height / 2] })()"
        )
        page.move(*place)
        assert "attention head" in page.run(told)
        page.move(1, 1)
        assert page.run(told) == ""
        shown = "document.querySelector('.flow-view:not([hidden])')"
        page.run("(() => { const one = document.querySelector('select[name=direction]'); one.value = 'lost'; "
                 "one.dispatchEvent(new Event('change')) })()")  # fmt: skip
        assert page.run(f"{shown}.dataset.direction") == "lost"
        visible = f"{shown}.querySelectorAll('.flow-arrow:not(.flow-off)').length"
        before = page.run(visible)
        page.run("(() => { const one = document.querySelector('input'); one.value = one.max * 0.6; "
                 "one.dispatchEvent(new Event('input')) })()")  # fmt: skip
        assert 0 < page.run(visible) < before
        page.resize(390, 800)
        page.run(f"{shown}.querySelector('circle').focus()")
        page.photograph(tmp_path / "390.png")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("document.querySelector('.flow-box').scrollWidth") > 390
        assert page.complaints == []
