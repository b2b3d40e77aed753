"""The resume engine against whole passes through plain transformers models."""

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import locate
from locate import SiteError
from locate.engine import Branch, Pin, check_live, freeze, freezing, hook_points
from locate.engine.calls import BlockCall
from tests import tiny

N_LAYERS, LENGTH, WIDTH = 4, 9, 32
TOKENS = torch.randint(1, tiny.VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([2, 0, 0, 1])
# The first layer and position, the last ones, the final norm alone, and places beyond a sliding window of 6.
PLACES = [(0, 0), (0, 4), (1, 8), (2, 3), (3, 7), (4, 2), (4, 8)]
KINDS = [*tiny.CONFIGS, *tiny.BESIDE_CONFIGS]
MAMBAS = {
    "mamba": {"vocab_size": tiny.VOCAB, "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "state_size": 4},
    "mamba2": {
        "vocab_size": tiny.VOCAB, "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "state_size": 4,
        "num_heads": 4, "head_dim": 16, "n_groups": 1,
    },
}  # fmt: skip


def plain_model(kind, dtype=torch.float32):
    if kind in KINDS:
        return tiny.hf_model(kind, dtype=dtype)
    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MAMBAS[kind], **ends)).eval()


@cache
def plain(kind, dtype=torch.float32):
    return plain_model(kind, dtype)


@cache
def bridge(kind, dtype=torch.float32):
    return locate.load_model(plain_model(kind, dtype), tiny.tokenizer())


@cache
def frozen(kind):
    return freeze(bridge(kind), TOKENS)


def states(layer, position, rows=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 * layer + 10 * position + seed)
    return torch.randn(rows, LENGTH - position, WIDTH, generator=generator).to(dtype)


def branch(layer, position, rows=ROWS, **options):
    return Branch(layer=layer, rows=rows, states=states(layer, position, len(rows)), **options)


def whole(model, tokens, layer, position, new):
    """Logits of a whole pass of a plain model whose block ``layer`` receives ``new`` from ``position`` on."""
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))

    def joined(old):
        return torch.cat([old[:, :position], new], dim=1)

    def enter(_block, args, kwargs):
        if args:
            return (joined(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": joined(kwargs["hidden_states"])}

    def leave(_block, _args, output):
        return (joined(output[0]), *output[1:]) if isinstance(output, tuple) else joined(output)

    if layer < len(blocks):
        handle = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)
    else:
        handle = blocks[-1].register_forward_hook(leave)
    try:
        return model(tokens).logits
    finally:
        handle.remove()


def close(found, expected, tolerance=2e-5):
    scale = expected.detach().float().std()
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max() / scale) < tolerance


def hooked(model, tokens, hooks):
    """Logits of a whole pass of the bridge under TransformerLens hooks."""
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return model(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_run_gives_the_logits_of_the_plain_model(kind):
    at = (torch.tensor([2, 0, 1]), torch.tensor([8, 3, 0]))
    with torch.no_grad():
        expected = plain(kind)(TOKENS).logits
    close(frozen(kind).logits, expected[:, -1])
    close(freeze(bridge(kind), TOKENS, at=at).logits, expected[at])


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_equals_whole_passes(kind):
    run = frozen(kind)
    assert run.resumable
    for layer, position in PLACES:
        with torch.no_grad():
            expected = whole(plain(kind), TOKENS[ROWS], layer, position, states(layer, position))
        close(run.resume(position, [branch(layer, position)]), expected[:, -1])


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "bloom", *tiny.BESIDE_CONFIGS])
def test_the_fallback_equals_whole_passes(kind):
    run = replace(frozen(kind), resumable=False)
    for layer, position in PLACES:
        with torch.no_grad():
            expected = whole(plain(kind), TOKENS[ROWS], layer, position, states(layer, position))
        close(run.resume(position, [branch(layer, position)]), expected[:, -1])


@pytest.mark.parametrize("kind", ["llama", "falcon"])
@pytest.mark.parametrize("what", ["keys", "values", "rows", "positions", "states"])
def test_these_comparisons_notice_a_wrong_prefix(kind, what):
    """The test of the tests: damage the frozen run, and the agreement above is gone."""
    run, layer, position = frozen(kind), 1, 4
    place = branch(layer, position)
    match what:
        case "keys":
            run = replace(run, _keys={layer: torch.zeros_like(key) for layer, key in run._keys.items()})
        case "values":
            run = replace(run, _values={layer: torch.zeros_like(value) for layer, value in run._values.items()})
        case "rows":
            place = replace(place, rows=ROWS.flip(0))
        case "positions":
            calls = [replace(call, kwargs=_one_position_late(call.kwargs)) for call in run.calls]
            run = replace(run, calls=tuple(calls))
        case "states":
            place = replace(place, states=place.states.roll(1, dims=1))
    with torch.no_grad():
        expected = whole(plain(kind), TOKENS[ROWS], layer, position, states(layer, position))[:, -1]
    difference = (run.resume(position, [place]) - expected).abs().max() / expected.std()
    assert difference > 0.01


def _one_position_late(kwargs):
    def late(value):
        if isinstance(value, tuple):
            return tuple(late(item) for item in value)
        return value.roll(1, dims=1) if isinstance(value, torch.Tensor) and value.ndim == 3 else value

    return {name: late(value) for name, value in kwargs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_branches_that_join_later_equal_separate_resumes(kind):
    run, position = frozen(kind), 3
    branches = [
        branch(2, position),
        branch(4, position, torch.tensor([1])),
        branch(0, position, torch.tensor([0, 2])),
        branch(2, position, torch.tensor([1, 1])),
        branch(3, position, torch.tensor([2])),
    ]
    together = run.resume(position, branches)
    apart = torch.cat([run.resume(position, [one]) for one in branches])
    close(together, apart)
    by_whole_passes = replace(run, resumable=False).resume(position, branches)
    close(together, by_whole_passes)


@pytest.mark.parametrize("budget", [1, 13, 31])
def test_a_small_budget_gives_the_same_in_smaller_batches(budget):
    run, position = frozen("llama"), 3
    branches = [branch(2, position), branch(0, position), branch(4, position), branch(0, position, ROWS[:1])]
    at = (torch.tensor([12, 3, 4, 4, 0]), torch.tensor([8, 3, 8, 5, 7]))
    batches = []
    count = [("blocks.3.hook_in", lambda value, hook: batches.append(value.shape[0]))]
    expected = run.resume(position, branches)
    some = run.resume(position, branches, at=at)
    small = replace(run, budget=budget)
    close(small.resume(position, branches, hooks=count), expected)
    close(small.resume(position, branches, at=at), some)
    # Keys and values before them are joined to those of every row, and take about a third of what a token takes.
    assert max(batches) <= max(1, budget // (LENGTH - position + position // 3))


def test_rows_do_not_depend_on_their_company():
    run, position = frozen("qwen3"), 2
    new = branch(1, position)
    alone = [run.resume(position, [new.split(i, i + 1)]) for i in range(len(new))]
    close(run.resume(position, [new]), torch.cat(alone))


def test_a_single_frozen_row_serves_any_number_of_rows():
    run, position = freeze(bridge("gemma3_text"), TOKENS[:1]), 4
    rows = torch.zeros(3, dtype=torch.long)
    new = states(1, position, 3)
    with torch.no_grad():
        expected = whole(plain("gemma3_text"), TOKENS[rows], 1, position, new)[:, -1]
    close(run.resume(position, [Branch(layer=1, rows=rows, states=new)]), expected)


def pin(values):
    return Pin(values=values[:, None])


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma3_text"])
def test_pins_hold_a_value_at_the_position_and_only_in_their_rows(kind, resumable):
    run, position = replace(frozen(kind), resumable=resumable), 3
    mlp, attn = "blocks.1.hook_mlp_out", "blocks.2.hook_attn_out"
    generator = torch.Generator().manual_seed(5)
    every, one = torch.randn(4, WIDTH, generator=generator), torch.randn(1, WIDTH, generator=generator)
    residual = run.residuals[1][:, position:]
    pinned = Branch(layer=1, rows=ROWS, states=residual[ROWS], interventions={mlp: pin(every), attn: pin(one)})
    free = Branch(layer=1, rows=torch.arange(3), states=residual)
    later = Branch(
        layer=2, rows=torch.tensor([1]), states=run.residuals[2][1:2, position:], interventions={attn: pin(one * 2)}
    )

    def put(values):
        def hook(value, hook):
            value = value.clone()
            value[:, position] = values
            return value

        return hook

    expected = torch.cat([
        hooked(bridge(kind), TOKENS[ROWS], [(mlp, put(every)), (attn, put(one))])[:, -1],
        frozen(kind).logits,
        hooked(bridge(kind), TOKENS[1:2], [(attn, put(one * 2))])[:, -1],
    ])  # fmt: skip
    close(run.resume(position, [pinned, free, later]), expected)
    assert (expected[4:7][ROWS] - expected[:4]).abs().max() > 0.1 * expected.std()


@pytest.mark.parametrize("resumable", [True, False])
def test_readouts_at_any_rows_and_positions_in_any_order(resumable):
    run, position = replace(frozen("gptj"), resumable=resumable), 3
    branches = [branch(2, position), branch(0, position, ROWS[:2])]
    with torch.no_grad():
        expected = torch.cat([
            whole(plain("gptj"), TOKENS[one.rows], one.layer, position, one.states) for one in branches
        ])  # fmt: skip
    at = (torch.tensor([5, 0, 4, 0, 3]), torch.tensor([3, 8, 6, 4, 5]))
    close(run.resume(position, branches, at=at), expected[at])


def test_measure_reduces_each_row_in_the_order_given():
    run, position = replace(frozen("llama"), budget=14), 2
    branches = [branch(3, position), branch(0, position)]
    measured = run.resume(position, branches, measure=lambda logits, rows: logits.softmax(-1)[:, 7])
    torch.testing.assert_close(measured, run.resume(position, branches).softmax(-1)[:, 7])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_transformer_lens_hooks_see_the_suffix_and_may_change_it(kind):
    run, position = frozen(kind), 5
    seen = []

    def double(value, hook):
        seen.append((hook.name, tuple(value.shape)))
        return 2 * value

    def double_suffix(value, hook):
        return torch.cat([value[:, :position], 2 * value[:, position:]], dim=1)

    name = "blocks.2.hook_mlp_out"
    unchanged = Branch(layer=1, rows=ROWS, states=run.residuals[1][ROWS, position:])
    found = run.resume(position, [unchanged], hooks=[(name, double)])
    assert len(seen) == 1
    assert seen[0][1] == (len(ROWS), LENGTH - position, WIDTH)
    close(found, hooked(bridge(kind), TOKENS[ROWS], [(name, double_suffix)])[:, -1])
    close(run.resume(position, [unchanged]), run.logits[ROWS])
    assert (found - run.logits[ROWS]).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_whole_passes(kind):
    run, position = frozen(kind), 3
    weights = torch.randn(4, tiny.VOCAB, generator=torch.Generator().manual_seed(3))
    for layer in (0, 2):
        ours, theirs = (states(layer, position).requires_grad_() for _ in range(2))
        logits = run.resume(position, [Branch(layer=layer, rows=ROWS, states=ours)], grad=True)
        (logits * weights).sum().backward()
        (whole(plain(kind), TOKENS[ROWS], layer, position, theirs)[:, -1] * weights).sum().backward()
        assert theirs.grad is not None
        assert ours.grad is not None
        close(ours.grad, theirs.grad, 1e-4)
    assert not run.resume(position, [branch(0, position)]).requires_grad


def test_gradients_reach_hooks_and_every_branch():
    run, position = frozen("llama"), 3
    delta = torch.zeros(WIDTH, requires_grad=True)
    late, early = branch(3, position), branch(1, position)
    for one in (late, early):
        one.states.requires_grad_()
    add = [("blocks.2.hook_mlp_out", lambda value, hook: value + delta)]
    run.resume(position, [late, early], hooks=add, grad=True).logsumexp(-1).sum().backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in (late.states, early.states, delta))


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_padding_on_the_left_changes_nothing(kind):
    lengths, position = (9, 6, 7), 5
    padded, mask = torch.zeros_like(TOKENS), torch.zeros_like(TOKENS)
    for row, length in enumerate(lengths):
        padded[row, -length:] = TOKENS[row, :length]
        mask[row, -length:] = 1
    run = freeze(bridge(kind), padded, attention_mask=mask)
    assert run.resumable
    new = branch(1, position, torch.tensor([0, 1, 2, 1]))
    together = run.resume(position, [new])
    by_whole_passes = replace(run, resumable=False).resume(position, [new])
    for i, row in enumerate(new.rows.tolist()):
        length, shift = lengths[row], LENGTH - lengths[row]
        tokens = TOKENS[row : row + 1, :length]
        with torch.no_grad():
            close(run.logits[row], plain(kind)(tokens).logits[0, -1])
            expected = whole(plain(kind), tokens, 1, position - shift, new.states[i : i + 1])[0, -1]
        close(together[i], expected)
        close(by_whole_passes[i], expected)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "falcon"])
def test_double_precision_agrees_to_double_precision(kind):
    run = freeze(bridge(kind, torch.float64), TOKENS)
    assert run.resumable
    new = states(1, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = whole(plain(kind, torch.float64), TOKENS[ROWS], 1, 4, new)[:, -1]
    close(run.resume(4, [Branch(layer=1, rows=ROWS, states=new)]), expected, 1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "bloom", "olmo2"])
def test_half_precision_is_resumed_too(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = freeze(bridge(kind, torch.bfloat16), TOKENS)
    with torch.no_grad():
        close(run.logits, bridge(kind, torch.bfloat16)(TOKENS)[:, -1], 1e-2)
    new = states(1, 4, dtype=torch.bfloat16)
    found = run.resume(4, [Branch(layer=1, rows=ROWS, states=new)])
    with torch.no_grad():
        expected = whole(plain(kind, torch.bfloat16), TOKENS[ROWS], 1, 4, new)[:, -1]
    assert found.dtype == torch.bfloat16
    close(found, expected, 0.1)


def _raises(*_):
    raise TypeError("this block wants more")


def _slightly_wrong(*args, replay=BlockCall.replay):
    return 1.01 * replay(*args)


@pytest.mark.parametrize(
    ("replay", "reason"), [(_raises, "this block wants more"), (_slightly_wrong, "standard deviations")]
)
def test_a_model_that_cannot_be_resumed_is_noticed_and_run_whole(monkeypatch, replay, reason):
    monkeypatch.setattr(BlockCall, "replay", replay)
    with pytest.warns(UserWarning, match="cannot be resumed from the middle") as caught:
        run = freeze(tiny.bridge("llama"), TOKENS)
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert not run.resumable
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run.resume(4, [branch(1, 4)])
        close(found, whole(plain("llama"), TOKENS[ROWS], 1, 4, states(1, 4))[:, -1])


def test_a_model_is_checked_once_per_form(monkeypatch):
    model, checked, check = tiny.bridge("llama"), [], freezing._disagreement
    monkeypatch.setattr(freezing, "_disagreement", lambda run: checked.append(run) or check(run))
    mask = torch.ones_like(TOKENS)
    mask[0, :2] = 0
    for times in (1, 2):
        for tokens in (TOKENS, TOKENS[:2, :5]):
            assert freeze(model, tokens).resumable
            assert freeze(model, tokens, attention_mask=mask[: len(tokens), : tokens.shape[1]]).resumable
            assert freeze(model, tokens[:1]).resumable
            with torch.autocast("cpu", torch.bfloat16):
                assert freeze(model, tokens).resumable
            shifted = freeze(model, tokens, hooks=[("blocks.1.hook_in", lambda value, hook: value + 1)])
            assert shifted.resumable
        assert len(checked) == 4, times


def test_a_model_that_could_not_be_resumed_is_checked_and_warned_about_again(monkeypatch):
    model = tiny.bridge("llama")
    nothing = [("blocks.1.hook_in", lambda value, hook: None)]
    with monkeypatch.context() as patch:
        patch.setattr(BlockCall, "replay", _slightly_wrong)
        for hooks in ([], [], nothing):
            with pytest.warns(UserWarning, match="standard deviations"):
                assert not freeze(model, TOKENS, hooks=hooks).resumable
    with warnings.catch_warnings():  # what a passing state of the weights or a prompt has said does not stay
        warnings.simplefilter("error")
        assert freeze(model, TOKENS).resumable
        assert freeze(model, TOKENS, hooks=nothing).resumable


def test_whether_a_hook_point_is_live_is_found_once():
    model, passes = tiny.bridge("llama"), []
    model.original_model.register_forward_pre_hook(lambda *_: passes.append(1))
    model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(2):
        check_live(model, "blocks.0.attn.hook_z")
    first = len(passes)
    assert first > 0
    check_live(model, "blocks.0.attn.hook_z")
    assert len(passes) == first


@pytest.mark.parametrize("kind", MAMBAS)
def test_a_recurrent_model_runs_its_blocks_over_the_whole_sequence(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = freeze(bridge(kind), TOKENS)
    assert run.entire == frozenset(range(N_LAYERS))
    for layer, position in [(0, 0), (1, 4), (4, 2)]:
        with torch.no_grad():
            expected = whole(plain(kind), TOKENS[ROWS], layer, position, states(layer, position))
        close(run.resume(position, [branch(layer, position)]), expected[:, -1])


def test_hooks_of_the_frozen_pass_are_in_what_is_frozen_and_then_gone():
    model, position = bridge("gpt2"), 4

    def shift(value, hook):
        return value + 0.5

    run = freeze(model, TOKENS, hooks=[("embed.hook_out", shift)], keep=["blocks.1.hook_mlp_out"])
    expected = hooked(model, TOKENS, [("embed.hook_out", shift)])[:, -1]
    close(run.logits, expected)
    unchanged = Branch(layer=2, rows=torch.arange(3), states=run.residuals[2][:, position:])
    close(run.resume(position, [unchanged]), expected)
    close(freeze(model, TOKENS).logits, frozen("gpt2").logits)
    _, cache = model.run_with_cache(TOKENS, names_filter="blocks.1.hook_mlp_out")
    assert run.kept["blocks.1.hook_mlp_out"].shape == cache["blocks.1.hook_mlp_out"].shape
    assert not torch.allclose(run.kept["blocks.1.hook_mlp_out"], cache["blocks.1.hook_mlp_out"])


def test_nothing_is_left_on_the_model():
    model = bridge("llama")
    run = frozen("llama")
    run.resume(3, [branch(0, 3, interventions={"blocks.1.hook_mlp_out": pin(torch.zeros(1, WIDTH))})])
    replace(run, resumable=False).resume(3, [branch(0, 3)])
    left = [name for name, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks]
    fresh = tiny.bridge("llama")
    fresh(TOKENS)
    assert left == [name for name, m in fresh.named_modules() if m._forward_pre_hooks or m._forward_hooks]


@pytest.mark.parametrize(
    ("position", "branches", "message"),
    [
        (9, [], "Position 9 is out of range: the prompt has 9 tokens"),
        (-1, [], "Position -1 is out of range"),
        (3, [], "give at least one branch"),
        (3, [Branch(layer=5, rows=ROWS, states=states(0, 3))], "Layer 5 is out of range: the model has 4"),
        (3, [Branch(layer=-1, rows=ROWS, states=states(0, 3))], "Layer -1 is out of range"),
        (3, [Branch(layer=0, rows=ROWS, states=states(0, 4))], "needs states of 6 positions, found 5"),
        (
            3,
            [Branch(layer=0, rows=torch.tensor([0, 0, 0, 3]), states=states(0, 3))],
            "frozen rows 0 to 3, .* 0 to 2",
        ),
    ],
)
def test_places_that_do_not_exist_are_refused(position, branches, message):
    with pytest.raises(SiteError, match=message):
        frozen("llama").resume(position, branches)


@pytest.mark.parametrize(("row", "position"), [(4, 8), (-1, 8), (0, 2), (0, 9)])
def test_readouts_outside_the_resumed_suffix_are_refused(row, position):
    with pytest.raises(SiteError, match="readout"):
        frozen("llama").resume(3, [branch(0, 3)], at=(torch.tensor([row]), torch.tensor([position])))


def test_unknown_hook_points_are_refused_with_the_nearest_names():
    message = r"no hook point 'blocks.1.hook_mlp_ot'.*Did you mean .*blocks\.1\.hook_mlp_out"
    with pytest.raises(SiteError, match=message):
        freeze(bridge("llama"), TOKENS, keep=["blocks.1.hook_mlp_ot"])
    misspelt = branch(0, 3, interventions={"blocks.1.hook_mlp_ot": pin(torch.zeros(1, WIDTH))})
    with pytest.raises(SiteError, match=message):
        frozen("llama").resume(3, [misspelt])
    assert hook_points(bridge("llama"), []) == {}
