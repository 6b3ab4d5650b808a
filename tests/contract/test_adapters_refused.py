"""Towers that cannot take the weights: each fact of each reason, asked of transformers' own class at small size."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from aut.adapters import REFUSED, load_into, names, open_adapter
from aut.errors import ConfigError
from tests.contract.adapter_models import build_tower, shake

MODULES = {"glm_asr": "glmasr", "qwen3_omni": "qwen3_omni_moe"}
WHISPERS = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "num_mel_bins": 16}
GENERAL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
SMALL = {
    "qwen3_omni": WHISPERS | {"downsample_hidden_size": 8, "output_dim": 24},
    "qwen3_asr": WHISPERS | {"downsample_hidden_size": 8, "output_dim": 24},
    "glm_asr": GENERAL | {"num_key_value_heads": 4, "num_mel_bins": 16},
    "voxtral_realtime": GENERAL | {"head_dim": 8, "num_mel_bins": 16},
    "granite_speech": {"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "dim_head": 8, "output_dim": 11},
    "phi4_multimodal": {"hidden_size": 32, "num_blocks": 1, "num_attention_heads": 4, "intermediate_size": 64,
                        "ext_pw_out_channel": 32, "nemo_conv_channels": 32},
}  # fmt: skip


def module_of(name):
    module = MODULES.get(name, name)
    return import_module(f"transformers.models.{module}.modeling_{module}")


def build(name):
    (tower,) = REFUSED[name].towers
    cls = getattr(module_of(name), tower)
    torch.manual_seed(0)
    return shake(cls(cls.config_class(**SMALL[name])).eval())


def convolutions(tower, kind):
    return [
        (m.kernel_size[0], m.stride[0], m.padding[0])
        for m in tower.modules()
        if isinstance(m, kind) and m.groups == 1 and m.kernel_size[0] > 1
    ]


@torch.no_grad()
def strided_2d(name, tower, monkeypatch):
    """Three strided 2-D convolutions, where Whisper has two 1-D ones; 13 frames of a second."""
    assert convolutions(tower, torch.nn.Conv2d) == [(3, 2, 1)] * 3
    assert not convolutions(tower, torch.nn.Conv1d)
    seen = []
    tower.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape[0]))
    if name == "qwen3_asr":
        tower(torch.randn(1, 16, 300), torch.ones(1, 300, dtype=torch.long))
    else:
        tower(torch.randn(16, 300), feature_lens=torch.tensor([300]))
    assert seen == [3 * 13]


@torch.no_grad()
def turned(name, tower, monkeypatch):
    """Whisper's convolutions, then queries and keys turned by rotary positions; no learned ones are added."""
    assert convolutions(tower, torch.nn.Conv1d) == convolutions(build_tower("whisper"), torch.nn.Conv1d)
    assert not any("embed_positions" in key for key in tower.state_dict())
    heard, turn = [], module_of(name).apply_rotary_pos_emb
    monkeypatch.setattr(module_of(name), "apply_rotary_pos_emb", lambda *args: heard.append(args) or turn(*args))
    tower(torch.randn(1, 16, 40))
    assert len(heard) == 1


@torch.no_grad()
def causal(name, tower, monkeypatch):
    """Neither convolutions nor attention hear what comes later. RMS norms, gated feed-forwards, rotary positions."""
    mel_BMT = torch.randn(1, 16, 80)
    later_BMT = torch.where(torch.arange(80) < 40, mel_BMT, mel_BMT + 1)
    for part in (lambda mel: tower.embedder(mel), lambda mel: tower(mel).last_hidden_state):
        change = (part(later_BMT) - part(mel_BMT)).abs().amax((0, 2))
        assert float(change[:20].max()) < 1e-6 < float(change[20:].max())
    kinds = {type(m).__name__ for m in tower.modules()}
    assert {"VoxtralRealtimeRMSNorm", "VoxtralRealtimeRotaryEmbedding"} <= kinds
    assert "LayerNorm" not in kinds
    assert tower.layers[0].mlp.gate_proj.weight.shape == tower.layers[0].mlp.up_proj.weight.shape


def conformer(name, tower, monkeypatch):
    """Blocks of attention between two feed-forwards, with a depth-wise convolution inside, which Whisper's lack."""
    blocks = tower.layers if name == "granite_speech" else tower.encoders
    assert all("Conformer" in type(block).__name__ for block in blocks)
    inside = [m for m in blocks[0].modules() if isinstance(m, torch.nn.Conv1d)]
    assert any(m.groups == m.in_channels > 1 for m in inside)
    if name == "granite_speech":
        assert (tower.out.out_features, tower.out_mid.in_features) == (11, 11)  # to the characters and back
    else:
        assert "Subsampling" in type(tower.embed).__name__
        assert any(isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2) for m in tower.embed.modules())


FACTS = {
    "qwen3_omni": strided_2d,
    "qwen3_asr": strided_2d,
    "glm_asr": turned,
    "voxtral_realtime": causal,
    "granite_speech": conformer,
    "phi4_multimodal": conformer,
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_true_of_the_class(name, monkeypatch):
    FACTS[name](name, build(name), monkeypatch)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_tower_is_refused_by_name_and_alive(name, tmp_path):
    tower = build(name)
    assert not set(build_tower("whisper").state_dict()) - {"layer_norm.weight", "layer_norm.bias"} <= set(
        tower.state_dict()
    )
    with pytest.raises(ConfigError, match=re.escape(REFUSED[name].reason)):
        open_adapter(name)
    with pytest.raises(ConfigError, match=re.escape(REFUSED[name].reason)):
        load_into(torch.nn.ModuleDict({"audio_tower": tower}), tmp_path)  # before the encoder is even looked for


def test_a_tower_is_either_taken_or_refused():
    taken = {open_adapter(name).ADAPTER.tower for name in names()}
    assert not set(REFUSED) & set(names())
    assert all(len(refused.towers) == 1 and not set(refused.towers) & taken for refused in REFUSED.values())


def test_the_page_gives_every_reason_and_no_other():
    page = (Path(__file__).parents[2] / "docs/drop-in.md").read_text()
    listed = re.findall(r"^- (.+)$", page.split("## These cannot")[1].split("\n## ")[0], flags=re.M)
    assert listed == [f"{refused.title}: {refused.reason}" for refused in REFUSED.values()]
