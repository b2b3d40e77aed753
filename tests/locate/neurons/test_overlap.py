"""Overlap of neurons between methods and between facts: against loops over sets."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import locate
from locate import DataError, LocateError
from tests.figures import check_fits


def scores(seed, n_facts=3, n_layers=4):
    values = np.random.default_rng(seed).standard_normal((n_facts, n_layers, 10))
    coords = {"fact": [f"fact {one}" for one in range(n_facts)], "layer": range(n_layers)}
    return locate.NeuronScores(data=xr.Dataset({"scores": (("fact", "layer", "neuron"), values)}, coords), info={})


def places(one, fact, k):
    return {(site.layer, site.neuron) for site in one.top(k, fact)}


def test_methods_are_compared_fact_by_fact(tmp_path):
    named = {"one": scores(0), "two": scores(1)}
    overlap = locate.neuron_overlap(named, k=[5, 15])
    for k in (5, 15):
        each = []
        for fact in range(3):
            one, other = (places(own, fact, k) for own in named.values())
            each.append(len(one & other) / len(one | other))
        np.testing.assert_allclose(overlap.data["jaccard"].sel(k=k, one="one", other="two"), each)
        assert float(overlap.of(k).sel(one="one", other="two")) == pytest.approx(np.mean(each))
    ranked = [stats.spearmanr(*(own.scores.values[fact].ravel() for own in named.values()))[0] for fact in range(3)]
    np.testing.assert_allclose(overlap.data["spearman"].sel(one="one", other="two"), ranked)
    again = locate.load_neuron_overlap(overlap.save(tmp_path / "overlap.nc"))
    assert again.info == overlap.info
    assert len(again.to_dataframe()) == 3 * 2 * 4
    draws = np.random.default_rng(0)
    met = [len({*draws.choice(40, 5, False)} & {*draws.choice(40, 5, False)}) for _ in range(4000)]
    assert overlap.info["chance"]["5"] == pytest.approx(np.mean(met) / (10 - np.mean(met)), rel=0.1)
    for size in ((4.4, 2.6), (3.2, 2.2)):
        check_fits(again.plot(k=15, figsize=size))


def test_facts_are_compared_with_each_other_and_by_group():
    own = scores(2, n_facts=4)
    overlap = locate.neuron_overlap(own, k=8)
    for one in range(4):
        for other in range(4):
            shared = places(own, one, 8), places(own, other, 8)
            expected = len(shared[0] & shared[1]) / len(shared[0] | shared[1])
            assert float(overlap.jaccard[one, other]) == pytest.approx(expected)
    told = overlap.within(["a", "a", "b", "b"]).set_index("where")
    table = overlap.jaccard.values
    assert told.loc["within", "jaccard_8"] == pytest.approx((table[0, 1] + table[2, 3]) / 2)
    assert told.loc["between", "jaccard_8"] == pytest.approx(table[:2, 2:].mean())
    assert told["pairs"].to_dict() == {"within": 2, "between": 4}
    with pytest.raises(DataError, match="4 were compared, and 2 groups given"):
        overlap.within(["a", "b"])
    check_fits(locate.neuron_overlap(scores(3, n_facts=20), k=8).plot())


def test_bad_input():
    with pytest.raises(LocateError, match="two or more facts, found 1"):
        locate.neuron_overlap(scores(0, n_facts=1))
    with pytest.raises(LocateError, match="two or more methods, found 1"):
        locate.neuron_overlap({"one": scores(0)})
    with pytest.raises(LocateError, match="two or more methods, found 0"):
        locate.neuron_overlap({})
    with pytest.raises(LocateError, match="'one' and 'two' are of other facts"):
        locate.neuron_overlap({"one": scores(0), "two": scores(0, n_facts=2)})
    with pytest.raises(LocateError, match="'one' has 4 layers of 10 neurons, 'two' 3 of 10"):
        locate.neuron_overlap({"one": scores(0), "two": scores(0, n_layers=3)})
    with pytest.raises(LocateError, match="k: give numbers from 1 to the 40 neurons"):
        locate.neuron_overlap(scores(0), k=41)
    with pytest.raises(LocateError, match="is of the best 20 neurons, not of 5"):
        locate.neuron_overlap(scores(0)).of(5)
