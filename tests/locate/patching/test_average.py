"""Mean scores of patches over facts."""

import numpy as np
import pytest
import xarray as xr

import locate
from locate import LocateError, Patches, Site


def patches(values, *, dims=("layer", "head"), clean=1.0, corrupted=0.0, metric="probability", sites="attn_head_z",
            direction="restore", **columns):  # fmt: skip
    """Made-up patches of one metric."""
    table = np.asarray(values, dtype=float)
    data = {
        "values": (("metric", *dims), table[None]), "clean": ("metric", [clean]), "corrupted": ("metric", [corrupted]),
        **{name: (dims, np.asarray(column)) for name, column in columns.items()},
    }  # fmt: skip
    coords = {"metric": [metric], **{dim: np.arange(size) for dim, size in zip(dims, table.shape, strict=True)}}
    info = {
        "model": "tiny", "sites": sites, "direction": direction, "by": list(dims), "metrics": {metric: "p({answer})"},
    }  # fmt: skip
    return Patches(data=xr.Dataset(data, coords=coords), metric=metric, info=info)


def test_scores_are_averaged_and_not_values():
    one = patches([[0.5, 0.0], [1.0, 0.25]])
    other = patches([[3.0, 1.0], [5.0, 2.0]], clean=5.0, corrupted=1.0)  # scores of 0.5, 0, 1 and 0.25 as well
    third = patches([[0.2, 0.3], [0.4, 0.25]])
    average = locate.average_patches([one, other, third])
    assert (average.n_facts, average.metric) == (3, "probability")
    np.testing.assert_allclose(average.data["score"], [[0.4, 0.1], [0.8, 0.25]])
    # Sample deviations of (0.5, 0.5, 0.2), (0, 0, 0.3) and (1, 1, 0.4) over √3.
    np.testing.assert_allclose(average.data["standard_error"], [[0.1, 0.1], [0.2, 0.0]], atol=1e-12)
    table = average.top(2)
    assert table[["layer", "head"]].to_numpy().tolist() == [[1, 0], [0, 0]]
    assert len(average.to_dataframe()) == 4


def test_the_largest_scores_either_way_come_first():
    average = locate.average_patches([patches([[0.5, -0.9]])])
    assert average.top(1)["head"].tolist() == [1]
    assert bool(average.data["standard_error"].isnull().all())  # one fact has no spread


def test_facts_with_equal_ends_are_left_out_with_a_warning():
    equal = patches([[9.0, 9.0]], clean=0.5, corrupted=0.5)
    with pytest.warns(UserWarning, match="1 of 2 facts have equal ends"):
        average = locate.average_patches([equal, patches([[0.5, 0.1]])])
    assert average.n_facts == 1
    np.testing.assert_allclose(average.data["score"], [[0.5, 0.1]])
    with (
        pytest.warns(UserWarning, match="1 of 1 facts"),
        pytest.raises(LocateError, match="no scores to average"),
    ):
        locate.average_patches([equal])


def test_one_position_of_each_fact_plays_one_part_and_several_do_not():
    last = [patches([[0.2], [0.4]], dims=("layer", "position")).data for _ in range(2)]
    moved = [data.assign_coords(position=[place]) for data, place in zip(last, (3, 7), strict=True)]
    info = patches([[0.2]], dims=("layer", "position"), sites="resid_pre").info
    average = locate.average_patches([Patches(data=data, metric="probability", info=info) for data in moved])
    assert average.data["score"].dims == ("layer",)
    with pytest.raises(LocateError, match="told apart by position have no mean"):
        locate.average_patches([patches([[0.2, 0.3]], dims=("layer", "position"))] * 2)


def test_the_share_of_facts_in_which_a_site_was_patched():
    screened = [patches([[0.2, 0.3]], confirmed=[[True, False]]), patches([[0.2, 0.3]], confirmed=[[True, True]])]
    np.testing.assert_allclose(locate.average_patches(screened).data["confirmed"], [[1.0, 0.5]])
    assert "confirmed" not in locate.average_patches([*screened, patches([[0.2, 0.3]])]).data


def test_the_best_site_restores_or_takes_away_most():
    restored = locate.average_patches([patches([[0.5, -0.9], [0.6, 0.1]]), patches([[0.7, -0.9], [0.5, 0.1]])])
    assert restored.best() == Site("attn_head_z", layer=0, head=0)
    broken = locate.average_patches([patches([[0.5, 0.9], [1.0, 0.1]], direction="break")])
    assert broken.best() == Site("attn_head_z", layer=1, head=1)
    left_out = patches([[0.9, 0.2], [0.3, 0.1]], confirmed=[[False, True], [True, True]])
    assert locate.average_patches([left_out]).best() == Site("attn_head_z", layer=1, head=0)
    # The rank of the answer is restored by going down.
    assert locate.average_patches([patches([[40.0, 5.0]], clean=1.0, corrupted=50.0)]).best().head == 1


def test_it_comes_back_from_its_file(tmp_path):
    average = locate.average_patches([patches([[0.5, -0.9], [0.6, 0.1]])])
    again = locate.AveragePatches.load(average.save(tmp_path / "mean.nc"))
    assert again.data.equals(average.data)
    assert (again.metric, again.n_facts, again.info) == (average.metric, 1, average.info)
    assert again.best() == average.best()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (patches([[0.1, 0.2]], direction="break"), r"different directions \(restore, break\)"),
        (patches([[0.1, 0.2]], metric="rank"), r"different metrics \(probability of 1, rank of 1\) do not average"),
        (patches([[0.1, 0.2]], sites="attn_head_v"), r"different sites \(attn_head_z, attn_head_v\)"),
        (patches([[0.1, 0.2, 0.3]]), "not of the same layers, heads or neurons"),
    ],
)
def test_what_cannot_be_averaged_is_told(other, message):
    with pytest.raises(LocateError, match=message):
        locate.average_patches([patches([[0.1, 0.2]]), other])
    with pytest.raises(LocateError, match="no scores to average"):
        locate.average_patches([])
