"""Small random models with the towers' own classes, and each tower's own forward on a padded batch.

Ultravox's class is remote code; the reference here is written after fixie-ai/ultravox, ultravox/model/ultravox_model.py
at 03ac67e (positions cut to the input, `base_model_prefix`) and vLLM's ultravox.py, adapted from ecd58c4 (key mask).
"""

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

MELS, WIDTH, LAYERS, HEADS, INNER = 80, 32, 2, 4, 64
NUMBERS = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS, "encoder_ffn_dim": INNER,
    "num_mel_bins": MELS,
}  # fmt: skip
PLAIN = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
    "num_mel_bins": MELS,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 40, "head_dim": 12,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
WHISPER = {
    **NUMBERS, **SPECIAL, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 64,
}  # fmt: skip


class ModifiedWhisperEncoder(WhisperEncoder):
    """Ultravox's: less than 30 s allowed, positions cut to the input, frames beyond a clip's end no keys."""

    base_model_prefix = "model.encoder"

    def forward(self, input_features, audio_lens=None):
        h_BFD = torch.nn.functional.gelu(self.conv1(input_features))
        h_BFD = torch.nn.functional.gelu(self.conv2(h_BFD)).permute(0, 2, 1)
        h_BFD = h_BFD + self.embed_positions.weight[: h_BFD.shape[1]]
        mask = None
        if audio_lens is not None:
            beyond = torch.arange(h_BFD.shape[1])[None] >= ((audio_lens - 1) // 2 + 1)[:, None]
            mask = torch.zeros(h_BFD.shape[:2]).masked_fill(beyond, torch.finfo(h_BFD.dtype).min)[:, None, None]
        for layer in self.layers:
            h_BFD = layer(h_BFD, mask)
        return self.layer_norm(h_BFD)


def build_tower(name, **extra):
    """The tower alone, other random weights at every call site's seed."""
    import transformers as t

    if name in ("whisper", "ultravox"):
        cls = WhisperEncoder if name == "whisper" else ModifiedWhisperEncoder
        return cls(WhisperConfig(**(WHISPER | extra))).eval()
    if name == "qwen2_5_omni":
        from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
        from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

        return Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**(NUMBERS | {"output_dim": 24} | extra))).eval()
    if name == "moss_transcribe_diarize":
        from transformers import MossTranscribeDiarizeAudioConfig
        from transformers.models.moss_transcribe_diarize.modeling_moss_transcribe_diarize import (
            MossTranscribeDiarizeAudioModel,
        )

        return MossTranscribeDiarizeAudioModel(MossTranscribeDiarizeAudioConfig(**(PLAIN | extra))).eval()
    cls, config, numbers = {
        "qwen2_audio": (t.Qwen2AudioEncoder, t.Qwen2AudioEncoderConfig, NUMBERS),
        "voxtral": (t.VoxtralEncoder, t.VoxtralEncoderConfig, PLAIN),
        "audio_flamingo3": (t.AudioFlamingo3Encoder, t.AudioFlamingo3EncoderConfig, PLAIN),
    }[name]
    return cls(config(**(numbers | extra))).eval()


def build_model(kind):
    """A whole small model: tower, projector or decoder, language model."""
    import transformers as t

    if kind == "WhisperModel":
        return t.WhisperModel(WhisperConfig(**WHISPER)).eval()
    if kind == "WhisperForConditionalGeneration":
        return t.WhisperForConditionalGeneration(WhisperConfig(**WHISPER)).eval()
    if kind == "Qwen2_5OmniThinkerForConditionalGeneration":
        from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

        audio = NUMBERS | {"output_dim": 24}
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
        text = {k: v for k, v in TEXT.items() if k != "head_dim"}
        config = Qwen2_5OmniThinkerConfig(audio_config=audio, vision_config=vision, text_config=text)
        return t.Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    family, text, numbers = {
        "Qwen2AudioForConditionalGeneration": ("Qwen2Audio", "qwen2", NUMBERS),
        "VoxtralForConditionalGeneration": ("Voxtral", "llama", PLAIN),
        "MossTranscribeDiarizeForConditionalGeneration": ("MossTranscribeDiarize", "qwen3", PLAIN),
        "AudioFlamingo3ForConditionalGeneration": ("AudioFlamingo3", "qwen2", PLAIN),
        "MusicFlamingoForConditionalGeneration": (
            "MusicFlamingo",
            "qwen2",
            PLAIN | {"model_type": "audioflamingo3_encoder"},
        ),
    }[kind]
    special = {"audio_token_index" if family == "Qwen2Audio" else "audio_token_id": 5}
    config = getattr(t, f"{family}Config")(
        audio_config=numbers, text_config=TEXT | {"model_type": text, "pad_token_id": 0}, **special
    )
    return getattr(t, kind)(config).eval()


def shake(module, size=0.1):
    """Weights large enough to matter; positions stay as the class made them."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if "embed_positions" not in key or "decoder" in key:
                parameter.add_(torch.randn_like(parameter) * size)
    return module


@torch.no_grad()
def own_forward(name, tower, mel_BMT, m_B):
    """The tower's output as its model calls it, [B, F, D]; clips of unequal length padded with NaN."""
    if name in ("whisper", "qwen2_audio", "voxtral", "moss_transcribe_diarize"):
        return tower(mel_BMT).last_hidden_state
    if name == "audio_flamingo3":
        mask = (torch.arange(mel_BMT.shape[2])[None] < m_B[:, None]).long()
        return tower(mel_BMT, input_features_mask=mask).last_hidden_state
    if name == "ultravox":
        return tower(mel_BMT, m_B)
    packed = torch.cat([mel_MT[:, :m] for mel_MT, m in zip(mel_BMT, m_B.tolist(), strict=True)], dim=1)
    flat = tower(packed, feature_lens=m_B).last_hidden_state
    clips = flat.split((((m_B - 1) // 2 + 1) // 2).tolist())
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
