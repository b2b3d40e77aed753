"""Direct logit attribution: against the model's own logits, and against a stream that is taken apart by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from edit.methods.where import layers_at
from locate import FactError, LocateError, ModelError, SiteError
from tests import tiny
from tests.architectures import table
from tests.figures import check_fits
from tests.sampling import SAMPLE, slow
from tests.transformer_lens import models

FACT = locate.Fact(prompt="I think that {} is in the city of", subject="Big Ben", target="Paris", target_new="Rome")
WAYS = ("component", "head", "neuron", "layer")
# Those of the issue, those on which TransformerLens' own does not add up, and the sample.
ALWAYS = sorted({"gpt2", "llama", "gemma2", "olmo2", "olmo3", "cohere", "granite", "glm4", *SAMPLE})
# What reads their final norm is no unembedding alone, or what layers add is more than attention and an MLP.
NEVER = {"modernbert-decoder", "zamba2"}
UNKNOWN = {
    "falcon:two norms", "openai-gpt", "opt:embeddings projected", "opt:norms after, embeddings projected", "biogpt",
    "diffllama", "helium", "persimmon", "phimoe",
}  # fmt: skip
OTHERS = sorted({*table.TYPES} - {*ALWAYS} - NEVER - UNKNOWN)


def tokens_of(fact=FACT):
    ids = tiny.tokenizer()(fact.text)["input_ids"]
    return torch.tensor(ids), *(tiny.tokenizer()(f" {one}")["input_ids"][0] for one in (fact.target, fact.target_new))


@torch.no_grad()
def own_logits(hf, tokens):
    return hf(tokens[None]).logits[0, -1].double()


def assert_refused(message, by):
    assert by != "layer"
    assert "cannot be told apart" in message or "no single MLP" in message


@pytest.mark.parametrize("kind", [*ALWAYS, *(pytest.param(kind, marks=slow) for kind in OTHERS)])
def test_parts_sum_to_the_models_own_difference(kind):
    tokens, one, other = tokens_of()
    logits = own_logits(models.hf_model(kind), tokens)
    expected = float(logits[one] - logits[other])
    summed = []
    for by in WAYS:
        try:
            found = locate.logit_attribution(models.model(kind), FACT, by=by, progress=False)
        except ModelError as error:  # hybrids, mixtures of experts; by layer nothing is refused
            assert_refused(str(error), by)
            continue
        assert float(found.sum[0]) == pytest.approx(expected, abs=1e-4 * max(1, float(logits.std())))
        assert float(found.logit[0]) == pytest.approx(expected, abs=1e-4 * max(1, float(logits.std())))
        summed.append(by)
    assert kind not in ALWAYS or summed == [by for by in WAYS if kind != "llama4_text" or by != "neuron"]


@pytest.mark.real_model
@pytest.mark.parametrize("by", WAYS)
def test_parts_sum_on_the_default_model(smollm, by):
    facts = locate.bundled_facts(known_to="smollm2-135m")[:3]
    found = locate.logit_attribution(smollm, facts, by=by, progress=False)
    for fact, total in zip(facts, found.sum.values, strict=True):
        prompt = locate.encode_fact(smollm, fact)
        one, other = (smollm.tokenizer(f" {answer}")["input_ids"][0] for answer in (fact.target, fact.target_new))
        with torch.no_grad():
            logits = smollm(prompt.tokens[None])[0, -1]
        assert total == pytest.approx(float(logits[one] - logits[other]), abs=1e-4)


@pytest.mark.parametrize("by", WAYS)
def test_parts_sum_in_half_precision_up_to_its_roundings(by):
    found = locate.logit_attribution(tiny.bridge("gemma3_text", dtype=torch.bfloat16), FACT, by=by, progress=False)
    assert float(found.sum[0]) == pytest.approx(float(found.logit[0]), abs=0.05)


# --- by hand ----------------------------------------------------------------------------------------------------------


def rms(gain, offset=0.0):
    def scaled(vectors, at, eps):
        """What a norm makes of parts of a vector, with the scale that it has at the whole."""
        return vectors * (offset + gain) / (at.pow(2).mean() + eps).sqrt()

    return scaled


class ByHand:
    """A model's last stream, taken apart by plain forward hooks, with every norm written out."""

    def __init__(self, kind):
        self.kind, self.hf = kind, models.hf_model(kind).double()
        self.tokens, self.one, self.other = tokens_of()
        self.seen = {}
        gpt2 = kind == "gpt2"
        body = self.hf.transformer if gpt2 else self.hf.model
        self.blocks, self.final = body.h if gpt2 else body.layers, body.ln_f if gpt2 else body.norm
        handles = [self.final.register_forward_pre_hook(self.keep("final"))]
        for layer, block in enumerate(self.blocks):
            own = (block.attn.c_proj, block.mlp.c_proj) if gpt2 else (block.self_attn.o_proj, block.mlp.down_proj)
            for name, module in zip(("heads", "neurons"), own, strict=True):
                handles.append(module.register_forward_pre_hook(self.keep(f"{name}{layer}")))
        handles.append(self.blocks[0].register_forward_pre_hook(self.keep("embed"), with_kwargs=True))
        with torch.no_grad():
            self.logits = self.hf(self.tokens[None]).logits[0, -1]
        for handle in handles:
            handle.remove()

    def keep(self, name):
        def hook(module, args, kwargs=None):
            given = args[0] if args else kwargs["hidden_states"]
            self.seen[name] = given[0, -1].detach()

        return hook

    def to_stream(self, norm, parts, at):
        """From the output of a projection to the stream."""
        if self.kind == "granite":
            return parts * self.hf.config.residual_multiplier
        if self.kind not in ("gemma2", "olmo2"):
            return parts
        gain, eps = norm.weight, getattr(norm, "eps", None) or norm.variance_epsilon
        return rms(gain, 1.0 if self.kind == "gemma2" else 0.0)(parts, at, eps)

    def to_logits(self, parts):
        """From parts of the stream to the difference of two logits, before a cap."""
        at, norm = self.seen["final"], self.final
        rows = self.hf.lm_head.weight[self.one] - self.hf.lm_head.weight[self.other]
        if self.kind in ("gpt2", "cohere"):
            at, parts = at - at.mean(), parts - parts.mean(-1, keepdim=True)
        eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
        scale = {"granite": 0.5, "cohere": getattr(self.hf.config, "logit_scale", 1.0)}.get(self.kind, 1.0)
        return (rms(norm.weight, float(self.kind == "gemma2"))(parts, at, eps) @ rows * scale).detach()

    def heads(self, layer):
        block, z = self.blocks[layer], self.seen[f"heads{layer}"].unflatten(0, (4, -1))
        weight = block.attn.c_proj.weight if self.kind == "gpt2" else block.self_attn.o_proj.weight.T
        written = torch.einsum("hd,hdm->hm", z, weight.unflatten(0, (4, -1)))
        bias = block.attn.c_proj.bias if self.kind == "gpt2" else 0.0
        norm = getattr(block, "post_attention_layernorm", None)
        return self.to_logits(self.to_stream(norm, written, written.sum(0) + bias))

    def neurons(self, layer):
        block, acts = self.blocks[layer], self.seen[f"neurons{layer}"]
        weight = block.mlp.c_proj.weight if self.kind == "gpt2" else block.mlp.down_proj.weight.T
        written = acts[:, None] * weight
        bias = block.mlp.c_proj.bias if self.kind == "gpt2" else 0.0
        norm = getattr(block, "post_feedforward_layernorm", None)
        return self.to_logits(self.to_stream(norm, written, written.sum(0) + bias))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "olmo2", "granite", "cohere"])
def test_each_part_is_what_taking_the_stream_apart_by_hand_gives(kind):
    hand = ByHand(kind)
    heads, neurons = (
        locate.logit_attribution(models.model(kind), FACT, by=by, progress=False) for by in ("head", "neuron")
    )
    factor = float(heads.data["factor"][0])
    capped = kind == "gemma2"
    scaled = factor if capped else 1.0
    for layer in range(len(hand.blocks)):
        np.testing.assert_allclose(heads.of("head").sel(layer=layer), hand.heads(layer) * scaled, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(
            neurons.of("neuron").sel(layer=layer), hand.neurons(layer) * scaled, atol=1e-5, rtol=1e-4
        )
    embed = heads.contributions.values[0, heads.data["kind"].values == "embed"].item()
    assert embed == pytest.approx(float(hand.to_logits(hand.seen["embed"])) * scaled, abs=1e-5)
    expected = float(hand.logits[hand.one] - hand.logits[hand.other])
    assert float(heads.sum[0]) == pytest.approx(expected, abs=1e-4)
    assert (factor == 1.0) == (kind not in ("gemma2", "granite", "cohere"))


def test_a_cap_is_one_factor_of_all_contributions():
    """Divided by it, they are those of the same model without the cap."""
    found, tokens, one, other = {}, *tokens_of()
    for cap in (0.2, None):
        torch.manual_seed(0)
        config = AutoConfig.for_model("gemma2", **table.TYPES["gemma2"], final_logit_softcapping=cap)
        hf = tiny.enlarged(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), 8.0)
        logits = own_logits(hf, tokens)
        model = locate.load_model(hf, tiny.tokenizer())
        for answers, expected in (((one, other), logits[one] - logits[other]), (one, logits[one])):
            result = locate.logit_attribution(model, FACT.text, answers, by="head", progress=False)
            assert float(result.sum[0]) == pytest.approx(float(expected), abs=1e-4)
            found[cap, answers] = result
    for answers in ((one, other), one):
        capped, plain = found[0.2, answers], found[None, answers]
        assert float(capped.data["factor"][0]) < 0.7
        np.testing.assert_allclose(capped.contributions / capped.data["factor"], plain.contributions, atol=1e-5)


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return models.model("llama")


def test_answers_are_given_in_any_form(model):
    tokens, one, other = tokens_of()
    logits = own_logits(models.hf_model("llama"), tokens)

    def total(*asked):
        return locate.logit_attribution(model, *asked, progress=False).sum.values.tolist()

    difference, alone = float(logits[one] - logits[other]), float(logits[one])
    for asked in [(FACT,), (FACT.text, ("Paris", "Rome")), (tokens, (one, other)), (FACT, ("Paris", other))]:
        assert total(*asked) == pytest.approx([difference], abs=1e-5)
    assert total([FACT, FACT.text], ["Paris", ("Paris", "Rome")]) == pytest.approx([alone, difference], abs=1e-5)
    assert total(FACT.text) == pytest.approx([float(logits.max())], abs=1e-5)
    pairs = locate.tasks.PairedPrompts.of(
        ["The capital of France is"], ["The capital of Italy is"], answers=[("Paris", "Rome")]
    )
    assert total(pairs) == pytest.approx(total("The capital of France is", ("Paris", "Rome")))


def test_what_two_answers_begin_with_joins_the_prompt(model):
    found = locate.logit_attribution(model, "I am in", ("the city", "the country"), progress=False)
    shared, one, other = (tiny.tokenizer()(text)["input_ids"] for text in ("I am in the", " city", " country"))
    logits = own_logits(models.hf_model("llama"), torch.tensor(shared))
    assert float(found.sum[0]) == pytest.approx(float(logits[one[0]] - logits[other[0]]), abs=1e-5)
    assert found.info["answers"] + found.info["others"] == [" city", " country"]


@pytest.mark.parametrize(("prompts", "answers", "message"), [
    ([], None, "no prompts; give at least one"),
    (FACT, [("Paris", "Rome")] * 2, "found 2 for 1 prompts"),
    (FACT, ("Paris", "Rome", "London"), "one answer and the other it is held against, found 3"),
    (FACT, ("Paris", "Paris"), "no token tells them apart"),
    (FACT, (7, 7), "both answers begin with token 7"),
    (FACT, 400, "There is no token 400: the model's tokens are 0 to 399"),
    (FACT, True, "a text or a token's id, found bool"),
    (FACT, " ", "The target is empty"),
])  # fmt: skip
def test_answers_that_there_are_not_are_refused(model, prompts, answers, message):
    with pytest.raises(FactError, match=message):
        locate.logit_attribution(model, prompts, answers)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_unknown_way_is_refused(model):
    with pytest.raises(LocateError, match="by must be one of component, head, neuron, layer, found 'token'"):
        locate.logit_attribution(model, FACT, by="token")


def test_experts_are_one_part_and_have_no_neurons():
    mixtral = tiny.bridge("mixtral")
    found = locate.logit_attribution(mixtral, FACT, progress=False)
    assert list(found.of("mlp")["layer"].values) == [0, 1, 2, 3]
    with pytest.raises(ModelError, match=r"no single MLP down projection .*mixture of experts"):
        locate.logit_attribution(mixtral, FACT, by="neuron")


def test_a_stream_of_other_things_is_told_apart_by_layer_alone():
    bridge = tiny.bridge("lfm2")
    with pytest.raises(ModelError, match=r"In layers 0, 2 of Lfm2ForCausalLM .*Ask by='layer'"):
        locate.logit_attribution(bridge, FACT)
    found = locate.logit_attribution(bridge, FACT, by="layer", progress=False)
    assert float(found.sum[0]) == pytest.approx(float(found.logit[0]), abs=1e-4)


@pytest.mark.filterwarnings("ignore:ModernBertDecoderForCausalLM cannot be resumed")
def test_parts_that_do_not_sum_to_the_logits_are_not_given_out():
    """A dense layer and an activation stand between the final norm and the unembedding."""
    with pytest.raises(ModelError, match="does not read its logits from the residual stream by the final norm"):
        locate.logit_attribution(table.bridge("modernbert-decoder"), FACT, by="layer")


# --- the result -------------------------------------------------------------------------------------------------------


def test_the_result_says_which_site_writes_most(model, tmp_path):
    facts = [FACT, locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris", target_new="London")]
    for by, kind in (("component", {"attn", "mlp"}), ("head", {"attn_head", "mlp"}), ("layer", {"resid"}),
                     ("neuron", {"attn", "neuron"})):  # fmt: skip
        found = locate.logit_attribution(model, facts, by=by, progress=False)
        best, rows = found.best(), found.summary()
        assert best.kind in kind
        places = rows[rows["kind"].isin(["attn", "mlp", "head", "neuron", "layer"])]
        largest = places.loc[places["contribution"].idxmax()]
        assert (best.layer, best.head or best.neuron or 0) == (largest["layer"], max(largest["unit"], 0))
        assert layers_at(model, found) == (best.layer,)
        top = found.top(4)
        assert (top["contribution"].abs().diff().dropna() <= 0).all()
        assert ((rows["low"] <= rows["contribution"]) & (rows["contribution"] <= rows["high"])).all()
        again = locate.load_attribution(found.save(tmp_path / f"{by}.nc"))
        assert again.data.equals(found.data)
        assert (again.by, again.info) == (found.by, found.info)
        whole = found.to_dataframe().groupby("fact", sort=False)["contribution"].sum()
        np.testing.assert_allclose(whole, found.sum)
    with pytest.raises(SiteError, match="An attribution by neuron has embed, attn, neuron, mlp_bias, bias, not 'head'"):
        found.of("head")


def test_figures_show_the_means(model):
    facts = [FACT, locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris", target_new="Rome")]
    for by in WAYS:
        found = locate.logit_attribution(model, facts, by=by, progress=False)
        for figure in (found.plot(), found.plot(figsize=(2.4, 2.8)), found.plot_top(n=6)):
            check_fits(figure)
        assert figure.axes[0].get_xlabel().replace("\n", " ") == "contribution to logit(Paris) − logit(Rome)"
        assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx(list(found.top(6)["contribution"]))
        if by == "head":
            mesh = found.plot().axes[0].collections[0]
            shown = mesh.get_array().reshape(-1, model.cfg.n_layers)
            np.testing.assert_allclose(shown[:4], found.of("head").transpose("head", "layer"))
            np.testing.assert_allclose(shown[-1], found.of("mlp"))
            low, high = mesh.get_clim()
            assert low == -high
    plt.close("all")
