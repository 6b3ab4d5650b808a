"""Our forward pass against transformers' on small random weights, and a clip alone against the clip in a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aut.encoders import whisper
from aut.encoders.attention import can_pack
from aut.encoders.packed import packed_forward
from aut.encoders.tower import WhisperTower
from aut.encoders.whisper import decoder_forward, encoder_forward

ATOL = 1e-5  # float32, fused kernels in another order


def config(mels=80, **extra):
    from transformers import WhisperConfig

    shape = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": mels,
        "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    return WhisperConfig(**(shape | extra))


def build(mels=80, **extra):
    """A small Whisper whose weights are large enough to matter (transformers' start at 0.02)."""
    from transformers.models.whisper.modeling_whisper import WhisperModel

    torch.manual_seed(0)
    model = WhisperModel(config(mels, **extra)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def mel(frames, mels=80, rows=1, seed=0):
    return torch.randn(rows, mels, frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mels", [80, 128])
@torch.no_grad()
def test_padded_encoder_equals_transformers(mels):
    model = build(mels)
    x = mel(3000, mels, rows=2)
    states: list[torch.Tensor] = []
    h_BFD, f_B = encoder_forward(model.encoder, x, states=states)
    reference = model.encoder(x, output_hidden_states=True)
    torch.testing.assert_close(h_BFD, reference.last_hidden_state, atol=ATOL, rtol=0)
    assert f_B.tolist() == [1500, 1500]
    assert len(states) == len(reference.hidden_states) == 3
    torch.testing.assert_close(states[1], reference.hidden_states[1], atol=ATOL, rtol=0)


@torch.no_grad()
def test_the_tower_takes_transformers_weights_with_strict_keys(model):
    tower = WhisperTower(model.config.to_dict()).eval()
    tower.load_state_dict(model.encoder.state_dict(), strict=True)
    x, m_B = mel(300, rows=2), torch.tensor([300, 121])
    ours, f_B = tower(x, m_B)
    reference, _ = encoder_forward(model.encoder, x, m_B)
    torch.testing.assert_close(ours, reference, atol=ATOL, rtol=0)
    assert f_B.tolist() == [150, 61]


@torch.no_grad()
def test_decoder_equals_transformers(model):
    h_BFD = encoder_forward(model.encoder, mel(200, rows=3))[0]
    ids = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(1))
    reference = model.decoder(input_ids=ids, encoder_hidden_states=h_BFD, use_cache=False).last_hidden_state
    torch.testing.assert_close(decoder_forward(model.decoder, ids, h_BFD), reference, atol=ATOL, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=5))
@torch.no_grad()
def test_a_clip_alone_equals_the_clip_in_any_batch(model, lengths):
    x = mel(max(lengths), rows=len(lengths), seed=len(lengths))  # frames beyond a clip's end are noise, not zeros
    m_B = torch.tensor(lengths)
    ids = torch.randint(0, 64, (len(lengths), 9), generator=torch.Generator().manual_seed(2))
    h_BFD, f_B = encoder_forward(model.encoder, x, m_B)
    y_BLD = decoder_forward(model.decoder, ids, h_BFD, f_B)
    for i, m in enumerate(lengths):
        f = (m + 1) // 2
        alone, _ = encoder_forward(model.encoder, x[i : i + 1, :, :m])
        assert f_B[i] == f
        torch.testing.assert_close(h_BFD[i, :f], alone[0], atol=ATOL, rtol=0)
        assert not h_BFD[i, f:].any()
        said = decoder_forward(model.decoder, ids[i : i + 1], alone)
        torch.testing.assert_close(y_BLD[i], said[0], atol=ATOL, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=5))
@torch.no_grad()
def test_packed_clips_equal_padded_ones(model, lengths):
    x, m_B = mel(max(lengths), rows=len(lengths), seed=len(lengths)), torch.tensor(lengths)
    masked, packed = [], []
    expected, f_B = encoder_forward(model.encoder, x, m_B, states=masked)
    found, g_B = packed_forward(
        model.encoder, [mel_MT[:, :m] for mel_MT, m in zip(x, lengths, strict=True)], states=packed
    )
    assert torch.equal(f_B, g_B)
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
    assert len(packed) == len(masked)
    for i, f in enumerate(f_B.tolist()):
        for ours, theirs in zip(packed, masked, strict=True):
            torch.testing.assert_close(ours[i, :f], theirs[i, :f], atol=ATOL, rtol=0)


def test_checkpointing_changes_memory_not_gradients(model):
    x, m_B = mel(50, rows=2), torch.tensor([50, 31])
    ids = torch.arange(10).reshape(2, 5)

    def gradients(checkpointing):
        model.zero_grad()
        h_BFD, f_B = encoder_forward(model.encoder, x, m_B, checkpointing=checkpointing)
        decoder_forward(model.decoder, ids, h_BFD, f_B, checkpointing=checkpointing).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for plain, kept in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, kept, atol=1e-7, rtol=1e-5)  # recomputed by the same kernels


def test_dropout_and_layerdrop_only_in_training():
    model = build(dropout=0.5, encoder_layerdrop=0.999, decoder_layerdrop=0.999)
    x = mel(40)
    still = [encoder_forward(model.encoder, x)[0] for _ in range(2)]
    assert torch.equal(*still)
    model.train()
    torch.manual_seed(0)
    states: list[torch.Tensor] = []
    moving, _ = encoder_forward(model.encoder, x, states=states)
    assert not torch.equal(moving, still[0])
    assert torch.equal(states[0], states[1])  # the block was dropped


def test_more_frames_than_positions_is_said(model):
    with pytest.raises(ValueError, match="1501 frames, but the encoder has 1500 positions"):
        encoder_forward(model.encoder, mel(3001))


@torch.no_grad()
def test_bfloat16_weights_run(model):
    tower = WhisperTower(model.config.to_dict()).eval()
    tower.load_state_dict(model.encoder.state_dict())  # a tower alone holds whatever lay in memory
    tower.to(torch.bfloat16)
    h_BFD, f_B = tower(mel(60, rows=2), torch.tensor([60, 20]))
    assert h_BFD.dtype == torch.bfloat16
    assert f_B.tolist() == [30, 10]
    assert torch.isfinite(h_BFD).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=5))
def test_packing_changes_neither_frames_nor_gradients(model, lengths):
    x, m_B = mel(max(lengths), rows=len(lengths), seed=len(lengths)), torch.tensor(lengths)
    ids = torch.randint(0, 64, (len(lengths), 9), generator=torch.Generator().manual_seed(2))

    def passed(packed, checkpointing=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(whisper, "can_pack", lambda *_, **__: packed)
            model.zero_grad()
            states: list[torch.Tensor] = []
            h_BFD, f_B = encoder_forward(model.encoder, x, m_B, states=states, checkpointing=checkpointing)
            y_BLD = decoder_forward(model.decoder, ids, h_BFD, f_B, checkpointing=checkpointing)
            y_BLD.square().mean().backward()
        kept = [state[i, :f] for state in states for i, f in enumerate(f_B.tolist())]
        return [h_BFD, y_BLD, *kept], [p.grad.clone() for p in model.parameters() if p.grad is not None]

    reference, gradients = passed(packed=False)
    for checkpointing in (False, True):
        found, theirs = passed(packed=True, checkpointing=checkpointing)
        for ours, expected in zip(found, reference, strict=True):
            torch.testing.assert_close(ours, expected, atol=ATOL, rtol=0)
        for ours, expected in zip(theirs, gradients, strict=True):
            torch.testing.assert_close(ours, expected, atol=ATOL, rtol=1e-3)


@torch.no_grad()
def test_whole_windows_are_packed_for_the_decoder_alone(model, monkeypatch):
    x, ids = mel(3000, rows=2), torch.arange(14).reshape(2, 7)
    h_BFD, _ = encoder_forward(model.encoder, x)
    reference = decoder_forward(model.decoder, ids, h_BFD)
    monkeypatch.setattr(whisper, "can_pack", lambda *_, **__: True)
    assert torch.equal(encoder_forward(model.encoder, x)[0], h_BFD)
    torch.testing.assert_close(decoder_forward(model.decoder, ids, h_BFD), reference, atol=ATOL, rtol=0)


def test_only_a_gpu_in_half_precision_packs(model):
    attention = model.encoder.layers[0].self_attn
    assert not can_pack(torch.device("cpu"), torch.bfloat16, attention, training=True)
    assert not can_pack(torch.device("cuda"), torch.float32, attention, training=True)
    noisy = build(attention_dropout=0.1).encoder.layers[0].self_attn
    assert not can_pack(torch.device("cuda"), torch.bfloat16, noisy, training=True)
