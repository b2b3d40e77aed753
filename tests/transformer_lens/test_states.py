"""Which states transformers hands out, and that the toolkit takes those that the next layer computes with."""

import pytest
import torch

from locate.engine import freeze
from tests.transformer_lens.models import TOKENS, fresh, hf_model


def plus_one(_module, _args, output):
    return (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_hidden_states_do_not_show_a_hook_that_came_late(kind, library):
    def layers(hf):
        return hf.model.layers if kind == "llama" else hf.transformer.h

    clean = hf_model(kind)(TOKENS, output_hidden_states=True).hidden_states[2]
    read: list[torch.Tensor] = []
    with library, torch.no_grad():
        early = hf_model(kind)
        layers(early)[1].register_forward_hook(plus_one)
        torch.testing.assert_close(early(TOKENS, output_hidden_states=True).hidden_states[2], clean + 1)
        late = hf_model(kind)
        late(TOKENS, output_hidden_states=True)
        layers(late)[1].register_forward_hook(plus_one)
        layers(late)[2].register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        torch.testing.assert_close(late(TOKENS, output_hidden_states=True).hidden_states[2], clean)
        torch.testing.assert_close(read[0], clean + 1)
        bridge = fresh(kind)
        with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: value + 1)]):
            shown = bridge.original_model(TOKENS, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(shown, clean)
    bridge.original_model(TOKENS, output_hidden_states=True)
    run = freeze(bridge, TOKENS, hooks=[("blocks.1.hook_resid_post", lambda value, hook: value + 1)])
    torch.testing.assert_close(run.residuals[2], clean + 1)
