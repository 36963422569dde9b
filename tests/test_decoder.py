"""The decoder equals the equations, is causal, and decodes step by step what it decodes at once."""

from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from models import PAD, build, dictionary, padded, sentences, shifted
from resmlp_mt.model import attention, cache, decoder
from resmlp_mt.model.attention import CrossAttention, Memory
from test_encoder import affine_as_numbers, linear_as_numbers

TOLERANCE = {"rtol": 0.0, "atol": 1e-12}


def decode_by_loops(
    decoder: nn.Module, tokens: Tensor, memory: Tensor, heads: int
) -> tuple[reference.Matrix, list[list[list[float]]]]:
    """The whole decoder on one sentence from the equations.

    Returns scores (length, vocabulary) and the last layer's weights [head][position][source].
    """
    x = (decoder.embed_tokens.embedding_dim**0.5 * decoder.embed_tokens.weight[tokens]).tolist()
    weights: list[list[list[float]]] = []
    for layer in decoder.layers:
        y = reference.affine(x, *affine_as_numbers(layer.mixing_pre))
        mixing = layer.token_mixing
        y = reference.mix(y, mixing.weight.tolist(), mixing.bias.tolist(), causal=True)
        x = reference.add(x, reference.affine(y, *affine_as_numbers(layer.mixing_post)))
        attn = layer.encoder_attn
        projections = {
            name: linear_as_numbers(getattr(attn, f"{name}_proj"))
            for name in ("q", "k", "v", "out")
        }
        y = reference.affine(x, *affine_as_numbers(layer.encoder_attn_pre))
        y, weights = reference.attention(y, memory.tolist(), projections, heads)
        x = reference.add(x, reference.affine(y, *affine_as_numbers(layer.encoder_attn_post)))
        y = reference.affine(x, *affine_as_numbers(layer.ffn_pre))
        y = reference.feed_forward(
            y, *linear_as_numbers(layer.ffn.fc1), *linear_as_numbers(layer.ffn.fc2)
        )
        x = reference.add(x, reference.affine(y, *affine_as_numbers(layer.ffn_post)))
    x = reference.affine(x, *affine_as_numbers(decoder.final_affine))
    vocabulary = decoder.output_projection.weight
    return reference.linear(x, vocabulary.tolist(), [0.0] * len(vocabulary)), weights


@pytest.mark.parametrize("left_pad_source", [False, True])
@pytest.mark.parametrize("left_pad_target", [False, True])
@pytest.mark.parametrize("few_at_a_time", [False, True])
def test_model_equals_the_equations(
    left_pad_source: bool,
    left_pad_target: bool,
    few_at_a_time: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a large batch without gradients, a few sentences at a time are attended to."""
    if few_at_a_time:
        monkeypatch.setattr(attention, "FEW_KEYS", 0)
        monkeypatch.setattr(attention, "SENTENCES", 1)
    model = build(share_decoder_input_output_embed=True).eval()
    sources, targets = sentences([3, 6, 1]), [shifted(t) for t in sentences([5, 2, 10], seed=1)]
    source = padded(sources, left=left_pad_source)
    target = padded(targets, left=left_pad_target)
    with torch.no_grad():
        scores, extra = model(source, None, target)
    for row, tokens in enumerate(targets):
        memory = model.encoder(sources[row].unsqueeze(0))["encoder_out"][0][:, 0]
        expected, weights = decode_by_loops(model.decoder, tokens, memory, heads=2)
        here = target[row].ne(PAD)
        torch.testing.assert_close(
            scores[row, here], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11
        )
        mean = torch.tensor(weights, dtype=torch.float64).mean(dim=0)
        found = extra["attn"][0][row][here][:, source[row].ne(PAD)]
        torch.testing.assert_close(found, mean, **TOLERANCE)


def test_alignment_layer_and_heads_select_attention_weights() -> None:
    model = build()
    (source,), (target,) = sentences([4]), [shifted(t) for t in sentences([3], seed=1)]
    encoder_out = model.encoder(source.unsqueeze(0))
    memory = encoder_out["encoder_out"][0][:, 0]

    def attn(**kwargs: int) -> Tensor:
        _, extra = model.decoder(target.unsqueeze(0), encoder_out, **kwargs)
        return extra["attn"][0][0]

    _, weights = decode_by_loops(model.decoder, target, memory, heads=2)
    last = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(attn(alignment_heads=1), last[0], **TOLERANCE)
    torch.testing.assert_close(attn(alignment_layer=1), last.mean(dim=0), **TOLERANCE)
    model.decoder.layers = model.decoder.layers[:1]
    _, weights = decode_by_loops(model.decoder, target, memory, heads=2)
    first = torch.tensor(weights, dtype=torch.float64).mean(dim=0)
    torch.testing.assert_close(attn(alignment_layer=0), first, **TOLERANCE)


def test_no_output_depends_on_a_later_token_even_after_training_steps() -> None:
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)
    source = padded(sentences([4, 6]))
    target = padded([shifted(t) for t in sentences([10, 10], seed=1)])
    for _ in range(2):
        scores, _ = model(source, None, target)
        for t in range(10):
            changed = target.clone()
            changed[:, t] = (target[:, t] - 3) % 16 + 4  # another word
            other, _ = model(source, None, changed)
            assert torch.equal(other[:, :t], scores[:, :t])
            assert not torch.equal(other[:, t], scores[:, t])
        optimizer.zero_grad()
        scores.logsumexp(-1).sum().backward()
        optimizer.step()


@settings(deadline=None, max_examples=30)
@given(
    source_lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    beam=st.integers(1, 3),
    left=st.booleans(),
    first_room=st.integers(1, 11),
    gradients=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_step_by_step_equals_all_at_once_under_any_reordering(
    source_lengths: list[int], beam: int, left: bool, first_room: int, gradients: bool, seed: int
) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.set_grad_enabled(gradients),
    ):
        for module in (cache, decoder):
            patch.setattr(module, "FIRST_ROOM", first_room)
        stepwise = _decode_and_compare(source_lengths, beam, left, seed)
    if gradients:
        stepwise.sum().backward()


def _decode_and_compare(source_lengths: list[int], beam: int, left: bool, seed: int) -> Tensor:
    """Ten steps; returns the scores of the last."""
    model = build()
    generator = torch.Generator().manual_seed(seed)
    source = padded(sentences(source_lengths, seed=seed), left=left)
    hypotheses = torch.arange(len(source)).repeat_interleave(beam)
    encoder_out = model.encoder.reorder_encoder_out(model.encoder(source), hypotheses)
    model.decoder.set_beam_size(beam)
    tokens = torch.full((len(hypotheses), 1), 2)
    state: dict[str, dict[str, Tensor | None]] = {}
    for step in range(model.max_decoder_positions()):
        stepwise, extra = model.decoder(tokens, encoder_out, state)
        at_once, full = model.decoder(tokens, encoder_out)
        torch.testing.assert_close(stepwise[:, -1], at_once[:, -1], **TOLERANCE)
        torch.testing.assert_close(extra["attn"][0][:, -1], full["attn"][0][:, -1], **TOLERANCE)
        # Sentences move and leave, hypotheses are exchanged within each sentence.
        sentence_count = len(tokens) // beam
        left_over = torch.randperm(sentence_count, generator=generator)
        if step % 3 == 2 and sentence_count > 1:
            left_over = left_over[:-1]
        within = torch.randint(beam, (len(left_over), beam), generator=generator)
        order = (left_over.unsqueeze(1) * beam + within).reshape(-1)
        model.decoder.reorder_incremental_state_scripting(state, order)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        new = torch.randint(4, 20, (len(order), 1), generator=generator)
        tokens = torch.cat([tokens[order], new], dim=1)
    return stepwise


def step_by_step(model: Any, words: list[int], state: dict[str, Any], encoder_out: Any) -> Tensor:
    """Scores after the last word; the state knows the words before it."""
    tokens = torch.tensor([[2, *words]])
    return model.decoder(tokens, encoder_out, state)[0][:, -1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_copies_of_a_state_go_on_by_themselves(mode: Any) -> None:
    model = build()
    with mode():
        encoder_out = model.encoder(padded(sentences([4])))
        states: dict[tuple[int, ...], dict[str, Any]] = {(): {}}
        step_by_step(model, [], states[()], encoder_out)
        for _ in range(3):
            grown = {}
            for words, state in states.items():
                for word in (5, 7):
                    copied = {name: dict(value) for name, value in state.items()}
                    found = step_by_step(model, [*words, word], copied, encoder_out)
                    grown[(*words, word)] = copied
                    full = model.decoder(torch.tensor([[2, *words, word]]), encoder_out)[0][:, -1]
                    torch.testing.assert_close(found, full, **TOLERANCE)
            states = grown


def test_a_state_of_inference_mode_goes_on_outside_of_it() -> None:
    model = build()
    state: dict[str, Any] = {}
    with torch.inference_mode():
        step_by_step(model, [], state, model.encoder(padded(sentences([4]))))
    with torch.no_grad():
        encoder_out = model.encoder(padded(sentences([4])))
        found = step_by_step(model, [5], state, encoder_out)
        full = model.decoder(torch.tensor([[2, 5]]), encoder_out)[0][:, -1]
    torch.testing.assert_close(found, full, **TOLERANCE)


def test_steps_can_be_trained_where_only_the_mixing_is() -> None:
    gradients = []
    for stepwise in (True, False):
        model = build().requires_grad_(False)
        weight = model.decoder.layers[0].token_mixing.weight.requires_grad_(True)
        encoder_out = model.encoder(padded(sentences([4])))
        words, state = [5, 6, 7], {}
        scores = (
            torch.stack([step_by_step(model, words[:n], state, encoder_out) for n in range(4)], 1)
            if stepwise
            else model.decoder(torch.tensor([[2, *words]]), encoder_out)[0]
        )
        gradients += torch.autograd.grad(scores.square().sum(), weight)
    torch.testing.assert_close(*gradients)


def test_a_target_longer_than_the_matrix_is_refused() -> None:
    model = build()
    assert model.max_decoder_positions() == 10
    with pytest.raises(ValueError, match=r"11 tokens.*at most 10.*--max-target-positions"):
        model(padded(sentences([3])), None, padded(sentences([11])))


@pytest.mark.parametrize("left", [False, True])
def test_padding_beyond_the_longest_target_does_not_count(left: bool) -> None:
    """A batch of 15 positions for a model of 10, whose longest sentence has 6."""
    model, source = build(), padded(sentences([3, 5]))
    rows = sentences([4, 6])
    scores, extra = model(source, None, padded(rows, left=left, extra=9), return_all_hiddens=True)
    expected, _ = model(source, None, padded(rows, left=left))
    tokens = slice(9, None) if left else slice(6)
    torch.testing.assert_close(scores[:, tokens], expected)
    assert scores.count_nonzero() == expected.count_nonzero()
    assert extra["attn"][0].shape[:2] == (2, 15)
    states = extra["inner_states"]
    assert [len(state) for state in states] == [15] * len(states)
    torch.testing.assert_close(states[-1], states[len(states) - 1])
    torch.testing.assert_close(states[1:], list(states)[1:])


def test_fairseqs_generator_has_hypotheses_share_keys_and_values() -> None:
    model = build(vocabulary=20)
    words = dictionary(20)
    source = padded(sentences([3, 6, 4]), left=True)
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)}}
    kept: list[int] = []
    original = model.decoder.memory

    def spy(source: Any) -> Any:
        memory = original(source)
        kept.append(memory.keys.size(1))
        return memory

    model.decoder.memory = spy
    found = {}
    for beam in (4, 1, 2):  # one after the other on one model, as validation and the hub do
        kept.clear()
        generator = SequenceGenerator([model], words, beam_size=beam, max_len_b=8)
        found[beam] = generator.generate([model], sample)
        if beam > 1:
            assert max(kept) == 3
    alone = build(vocabulary=20)
    for beam, hypotheses in found.items():
        generator = SequenceGenerator([alone], words, beam_size=beam, max_len_b=8)
        alone.decoder.set_beam_size(1)  # every hypothesis with keys and values of its own
        for ours, theirs in zip(hypotheses, generator.generate([alone], sample), strict=True):
            assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]


def test_rows_that_are_no_beam_are_taken_one_by_one() -> None:
    model = build()
    source = padded(sentences([3, 6, 4, 5]))
    encoder_out = model.encoder(source)
    tokens = torch.full((4, 1), 2)
    expected = model.decoder(tokens, encoder_out)[0]
    model.set_beam_size(2)
    torch.testing.assert_close(model.decoder(tokens, encoder_out, {})[0], expected, **TOLERANCE)


def test_attention_weights_do_not_overflow_in_half_precision() -> None:
    attention = CrossAttention(dim=64, source_dim=64, heads=1).half().eval()
    with torch.no_grad():
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            linear.weight.copy_(torch.eye(64))
            linear.bias.zero_()
    x = torch.full((1, 1, 64), 40.0, dtype=torch.float16)
    memory = Memory(x.unsqueeze(0), x.unsqueeze(0), None)
    fused, _ = attention(x, memory)
    weighted, weights = attention(x, memory, need_weights=True)
    assert weights.item() == 1
    torch.testing.assert_close(weighted, fused)
    assert torch.equal(weighted, x)
