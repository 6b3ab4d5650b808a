"""Small random models with the towers' own classes, and what a tower gives where its whole model calls it.

Ultravox's class is remote code; the reference here is written after fixie-ai/ultravox, ultravox/model/ultravox_model.py
at 03ac67e (positions cut to the input, `base_model_prefix`) and vLLM's ultravox.py, adapted from ecd58c4 (key mask).
"""

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

MODELS = {
    "WhisperModel": ("whisper", "encoder"),
    "WhisperForConditionalGeneration": ("whisper", "model.encoder"),
    "Qwen2AudioForConditionalGeneration": ("qwen2_audio", "model.audio_tower"),
    "VoxtralForConditionalGeneration": ("voxtral", "model.audio_tower"),
    "MossTranscribeDiarizeForConditionalGeneration": ("moss_transcribe_diarize", "model.audio_tower"),
    "AudioFlamingo3ForConditionalGeneration": ("audio_flamingo3", "model.audio_tower"),
    "MusicFlamingoForConditionalGeneration": ("audio_flamingo3", "model.audio_tower"),
    "Qwen2_5OmniThinkerForConditionalGeneration": ("qwen2_5_omni", "model.audio_tower"),
    "Qwen2_5OmniForConditionalGeneration": ("qwen2_5_omni", "thinker.model.audio_tower"),
}
"""Whole models of transformers: the adapter's name, where the tower lies."""
MELS, WIDTH, LAYERS, HEADS, INNER = 80, 32, 2, 4, 128  # inner is 4 x width as in Whisper: Voxtral stacks by it
AUDIO = 5  # token that stands for a frame of audio
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
    if kind == "Qwen2_5OmniForConditionalGeneration":
        from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniConfig

        thinker = build_model("Qwen2_5OmniThinkerForConditionalGeneration").config.to_dict()
        # The talker and its voice hold no tower, and are large.
        return t.Qwen2_5OmniForConditionalGeneration(
            Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False)
        ).eval()
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
    special = {"audio_token_index" if family == "Qwen2Audio" else "audio_token_id": AUDIO}
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
def as_called(kind, model, mel_BMT, m_B):
    """What leaves the tower where the whole model calls it, [B, F, D], and the tokens that the model goes on with.

    Caught by a hook, as a tower called by hand is called without what its model adds: Qwen2-Audio's mask. Clips of
    unequal length are padded with NaN. Ultravox, whose model is remote code, is its tower's reference, called with
    the batch's lengths.
    """
    if kind == "ultravox":
        return model(mel_BMT, m_B), None
    caught = []
    with model.get_submodule(MODELS[kind][1]).register_forward_hook(lambda *called: caught.append(called[2])):
        tokens = _listen(kind, model, mel_BMT, m_B)
    (output,) = caught
    h = output.last_hidden_state
    if h.ndim == 2:  # clips behind each other
        h = torch.nn.utils.rnn.pad_sequence(h.split(pooled(m_B).tolist()), batch_first=True, padding_value=torch.nan)
    return h, tokens


def _listen(kind, model, mel_BMT, m_B):
    """Calls the model as its processor's output would, and counts the tokens that come of it."""
    mask = (torch.arange(mel_BMT.shape[2])[None] < m_B[:, None]).long()
    if kind.startswith("Whisper"):
        ids = torch.ones(len(mel_BMT), 1, dtype=torch.long)
        return model(mel_BMT, decoder_input_ids=ids).encoder_last_hidden_state.shape[:2].numel()
    if kind.startswith("Qwen2Audio"):  # the model refuses a number of placeholders that is not that of its frames
        prompts = [[1] + [AUDIO] * f + [1] for f in pooled(m_B).tolist()]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        there = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        model(input_ids=ids, attention_mask=there, input_features=mel_BMT, feature_attention_mask=mask)
        return int((ids == AUDIO).sum())
    listening = {
        "Voxtral": lambda: model.get_audio_features(mel_BMT),
        "MossTranscribeDiarize": lambda: model.get_audio_features(
            mel_BMT, input_features_mask=mask, padding_mask=torch.ones(len(mel_BMT), 480_000)
        ),
        "AudioFlamingo3": lambda: model.get_audio_features(mel_BMT, mask),
        "MusicFlamingo": lambda: model.get_audio_features(
            mel_BMT, mask, input_ids=torch.tensor([[1] + [AUDIO] * int(pooled(m_B).sum()) + [1]])
        ),
        "Qwen2_5OmniThinker": lambda: model.get_audio_features(mel_BMT, feature_attention_mask=mask),
        "Qwen2_5Omni": lambda: model.thinker.get_audio_features(mel_BMT, feature_attention_mask=mask),
    }[kind.removesuffix("ForConditionalGeneration")]
    return len(listening().pooler_output)


def pooled(m_B):
    """Frames after the convolutions' stride of 2 and a mean of 2."""
    return ((m_B - 1) // 2 + 1) // 2
