"""Names for places in a model."""

import pytest

from locate import Site, SiteError
from locate.model.anatomy import check_layer
from locate.sites.site import KINDS, check_kind
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.bridge("gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_is_a_hook_point_of_the_model(model, kind):
    assert Site(kind, layer=3, position=0).hook in model.hook_dict


def test_unknown_kinds_are_refused_with_the_nearest():
    with pytest.raises(SiteError, match=r"There is no kind of site 'mpl'\. Did you mean mlp\?"):
        check_kind("mpl")
    with pytest.raises(SiteError, match=r"Known: attn, mlp, resid\."):
        check_kind("zzz")


def test_layers_count_from_either_end(model):
    assert [check_layer(model, layer) for layer in (0, 3, -1, -4)] == [0, 3, 3, 0]


@pytest.mark.parametrize("layer", [4, -5])
def test_layers_out_of_range_are_refused(model, layer):
    with pytest.raises(SiteError, match=f"Layer {layer} is out of range: the model has 4 layers, 0 to 3"):
        check_layer(model, layer)
