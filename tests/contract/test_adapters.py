"""Drop-in, two contracts each against the towers' own classes: every key settled, and the same features."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor

import aut
from aut.adapters import REFUSED, convert, features, load_into, names, open_adapter
from aut.audio.mel import log_mel
from aut.encoders.clipwise import identity
from aut.encoders.tower import load_tower
from aut.errors import AutError, ConfigError, DataError, MissingInput
from tests.contract.adapter_models import (
    MODELS,
    WHISPER,
    ModifiedWhisperEncoder,
    as_called,
    build_model,
    build_tower,
    pooled,
    shake,
)

ROOT = Path(__file__).parents[2]
ATOL = 1e-5  # float32, fused kernels in another order
TOWERS = names()
REFERENCES = [*MODELS, "ultravox"]
"""What each contract of features is held against."""


def write_encoder(folder, moved=0.0, **extra):
    """An exported encoder folder; `moved`: by how much its positions are off Whisper's sinusoids."""
    torch.manual_seed(20)
    encoder = shake(build_tower("whisper", **extra))
    weights = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    if moved:
        weights["embed_positions.weight"] += moved * torch.randn_like(weights["embed_positions.weight"]).sign()
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(encoder.config.to_dict()))
    WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins).save_pretrained(folder)
    facts = {"kind": "whisper", "name": folder.name, "mels": encoder.config.num_mel_bins, "length": "native"}
    facts |= {"width": encoder.config.d_model, "rate_hz": 16_000, "hop_s": 0.02}
    digest = identity(folder, "whisper", facts["mels"])
    (folder / "encoder.json").write_text(json.dumps(facts | {"digest": digest}))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "encoders/adapted-0")


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "encoders/moved-0", moved=0.1)


@pytest.fixture(scope="module")
def clips():
    """Real-shaped: 30 s, odd and even numbers of frames, a started frame, one frame, chunks with and without a rest."""
    rng = np.random.default_rng(3)
    seconds = (30.0, 4.0, 7.31, 1.005, 0.37, 0.02)
    return [
        (0.1 * rng.standard_normal(round(s * 16_000)) * np.hanning(round(s * 16_000))).astype("f4") for s in seconds
    ]


def contents(folder):
    """Bytes of every file below, by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def mel_of(name, clips):
    """Log-mel as the tower's processor lays it out, and valid mel frames."""
    n_B = torch.tensor([len(c) for c in clips])
    x_BT = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(c) for c in clips], batch_first=True)
    mel_BMT, m_B = log_mel(x_BT, n_B, WHISPER["num_mel_bins"], padded=open_adapter(name).ADAPTER.length != "chunks")
    return mel_BMT, m_B


def open_strictly(cls, folder):
    """The model of that folder: every tensor of the class is in its files, every tensor of its files in the class."""
    from transformers import PreTrainedModel

    # Qwen2.5-Omni's own cannot return the loading info.
    base = cls if cls.__name__.startswith("Auto") else PreTrainedModel
    opened, info = base.from_pretrained.__func__(cls, folder, output_loading_info=True)
    assert not {kind: keys for kind, keys in info.items() if keys}
    return opened


# Weights


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_takes_every_tensor_and_keeps_what_it_says(name, encoder):
    torch.manual_seed(1)
    tower = shake(build_tower(name))
    before = {key: tensor.clone() for key, tensor in tower.state_dict().items()}
    report = load_into(tower, encoder)
    adapter, ours, after = open_adapter(name).ADAPTER, load_file(encoder / "model.safetensors"), tower.state_dict()
    assert report.adapter == name
    assert report.digest == aut.load_encoder(encoder).digest
    places = set(after) - set(report.kept)
    assert report.loaded == len(places) == len(ours) - len(adapter.constant)
    for key in places:
        old = next((o + key.removeprefix(n) for o, n in adapter.renamed.items() if key.startswith(n)), key)
        torch.testing.assert_close(after[key], ours[old], atol=0, rtol=0)
    for key in report.kept:
        assert key.startswith(adapter.kept)
        torch.testing.assert_close(after[key], before[key], atol=0, rtol=0)


@pytest.mark.parametrize("name", [n for n in TOWERS if open_adapter(n).ADAPTER.alone])
def test_the_tower_alone_loads_strictly_from_its_folder(name, encoder, tmp_path):
    report = convert(name, encoder, tmp_path / "out")
    cls = ModifiedWhisperEncoder if name == "ultravox" else type(build_tower(name))
    tower = open_strictly(cls, tmp_path / "out")
    ours = load_file(encoder / "model.safetensors")
    assert report["loaded"] == len(ours)
    for key, tensor in tower.state_dict().items():
        torch.testing.assert_close(tensor, ours[key], atol=0, rtol=0)
    assert tower.config.encoder_attention_heads == WHISPER["encoder_attention_heads"]
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "out").feature_size == WHISPER["num_mel_bins"]


@pytest.mark.parametrize("kind", MODELS)
def test_one_line_loads_a_live_model_and_only_its_tower_changes(kind, encoder):
    torch.manual_seed(2)
    model = shake(build_model(kind)).to(torch.bfloat16)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = aut.adapters.load_into(model, encoder)
    name, path = MODELS[kind]
    assert (report.adapter, report.module) == (name, path)
    changed = {k for k, t in model.state_dict().items() if not torch.equal(t, before[k])}
    expected = {k for k in before if k.startswith(path)} - {f"{path}.{k}" for k in report.kept}
    assert changed <= expected
    assert len(expected) == report.loaded
    assert expected - changed <= {f"{path}.embed_positions.weight"}  # sinusoids before and after
    assert all(t.dtype == torch.bfloat16 for k, t in model.state_dict().items() if k in expected)


@pytest.mark.parametrize("kind", MODELS)
def test_a_models_folder_is_copied_with_the_encoder_in_its_tower(kind, encoder, tmp_path):
    torch.manual_seed(3)
    model = shake(build_model(kind)).to(torch.float16)
    target, out = tmp_path / "target", tmp_path / "out"
    model.save_pretrained(target, max_shard_size="40KB")
    (target / "tokenizer.json").write_text("{}")
    (target / "templates").mkdir()
    (target / "templates/chat.jinja").write_text("{{ x }}")
    torch.save({}, target / "spk_dict.pt")  # the whole Qwen2.5-Omni does not open without it
    old = ["consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "templates/model.onnx"]
    for name in old:
        (target / name).write_bytes(b"the old tower again")
    (target / ".gitattributes").write_text("")
    was = contents(target)
    name, _ = MODELS[kind]
    report = convert(name, encoder, out, target)
    open_strictly(type(model), out)
    loaded = type(model).from_pretrained(out, dtype=torch.float16)
    load_into(model, encoder)
    for key, tensor in model.state_dict().items():
        # Voxtral keeps its positions in float32 whatever it is asked: values are compared, not types
        torch.testing.assert_close(loaded.state_dict()[key], tensor, atol=0, rtol=0, check_dtype=False)
    assert len([k for k in was if k.startswith("model-")]) > 1  # it was sharded, so that whole shards are copied
    assert report["left_out"] == sorted([".gitattributes", *old])
    written = contents(out)
    assert sorted(written) == sorted({*was, "drop_in.json"} - set(report["left_out"]))
    for n in was.keys() & written.keys():
        tower = n.endswith(".safetensors") and any(
            "encoder." in k or "audio_tower." in k for k in load_file(target / n)
        )
        assert tower or written[n] == was[n], f"{n} holds nothing of the tower"
    assert contents(target) == was
    assert json.loads((out / "drop_in.json").read_text()) == report
    convert(name, encoder, out, target)
    assert contents(out) == written


@pytest.mark.parametrize("kind", ["WhisperModel", "WhisperForConditionalGeneration"])
def test_a_whisper_with_its_decoder_opens_in_every_class(kind, encoder, tmp_path):
    import transformers

    model = shake(build_model(kind))
    model.save_pretrained(tmp_path / "target")
    convert("whisper", encoder, tmp_path / "out", tmp_path / "target")
    ours = load_file(encoder / "model.safetensors")
    for cls in ("WhisperModel", "WhisperForConditionalGeneration", "AutoModel"):
        opened = open_strictly(getattr(transformers, cls), tmp_path / "out")
        for key, tensor in opened.get_encoder().state_dict().items():
            torch.testing.assert_close(tensor, ours[key], atol=0, rtol=0)


# Features


def reference(kind, seed):
    """The adapter's name, a model of that kind, its tower."""
    torch.manual_seed(seed)
    if kind == "ultravox":
        tower = shake(build_tower(kind))
        return kind, tower, tower
    name, path = MODELS[kind]
    model = shake(build_model(kind))
    return name, model, model.get_submodule(path)


def batch(kind, clips):
    """Music Flamingo breaks on a clip too short for one token; the others take it."""
    return clips[:-1] if kind.startswith("MusicFlamingo") else clips


@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_our_encoder_gives_what_the_tower_gives_its_model(kind, encoder, moved, clips):
    name, model, tower = reference(kind, 4)
    adapter = open_adapter(name).ADAPTER
    folder = encoder if adapter.constant else moved
    load_into(model, folder)
    ours = load_tower(folder, json.loads((folder / "config.json").read_text()))
    mel_BMT, m_B = mel_of(name, batch(kind, clips))
    if adapter.length == "longest":
        mel_BMT, m_B = mel_BMT[1:, :, : int(m_B[1:].max())], m_B[1:]  # without the clip of 30 s
    h_BFD, f_B = open_adapter(name).features(ours, mel_BMT, m_B)
    theirs, _ = as_called(kind, model, mel_BMT, m_B)
    if name == "qwen2_5_omni":
        h_BFD = tower.proj(h_BFD)
    assert h_BFD.shape == theirs.shape
    frames = theirs.shape[1]
    # Chunks end where the clip ends; what the other towers give beyond it is part of what their model may read.
    last_B = f_B if adapter.length == "chunks" else torch.full_like(f_B, frames)
    valid = torch.arange(frames)[None] < last_B[:, None]
    torch.testing.assert_close(h_BFD[valid], theirs[valid], atol=ATOL, rtol=0)
    assert theirs[valid].abs().max() > 0.5  # a comparison of zeros would pass


@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_frame_rate_and_lengths_are_the_models_own(kind, clips):
    name, model, tower = reference(kind, 4)
    adapter, (mel_BMT, m_B) = open_adapter(name).ADAPTER, mel_of(name, batch(kind, clips))
    theirs, tokens = as_called(kind, model, mel_BMT, m_B)
    assert theirs.shape[1] == round(30 * adapter.frame_hz)
    _, f_B = open_adapter(name).features(build_tower("whisper"), mel_BMT, m_B)
    if name in ("whisper", "voxtral"):  # silence goes on to the decoder, the language model
        assert f_B.tolist() == [1500] * len(m_B)
    elif name == "moss_transcribe_diarize":  # rounded up to tokens of 80 ms
        assert f_B.tolist() == [1500, 200, 368, 52, 20, 4]
    elif name == "ultravox":
        assert f_B.tolist() == tower._get_feat_extract_output_lengths(m_B).tolist()
    else:
        assert f_B.tolist() == tower._get_feat_extract_output_lengths(m_B)[1].tolist() == pooled(m_B).tolist()
    if tokens is not None:
        assert int(f_B.sum()) == tokens * adapter.frame_hz / adapter.token_hz


@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_the_model_hears_the_padding_as_declared(kind, clips):
    """Four mel frames beyond the end are left: convolutions of the 30-s towers hear where the padding begins."""
    name, model, _ = reference(kind, 6)
    adapter, (mel_BMT, m_B) = open_adapter(name).ADAPTER, mel_of(name, clips[2:3])
    quiet, _ = as_called(kind, model, mel_BMT, m_B)
    loud_BMT = torch.where(torch.arange(mel_BMT.shape[2]) < m_B[:, None, None] + 4, mel_BMT, mel_BMT + 1.0)
    loud, _ = as_called(kind, model, loud_BMT, m_B)
    own = int(m_B[0] * adapter.frame_hz) // 100
    change = float((loud - quiet)[0, :own].abs().max())
    assert change <= ATOL if adapter.masked else change > 100 * ATOL


@pytest.mark.parametrize("name", [n for n in TOWERS if open_adapter(n).ADAPTER.masked])
@torch.no_grad()
def test_masked_towers_do_not_hear_their_batch(name, clips):
    """Of ours, too, and in any batch."""
    ours = shake(build_tower("whisper"))
    mel_BMT, m_B = mel_of(name, clips)
    together, f_B = open_adapter(name).features(ours, mel_BMT, m_B)
    mel_BMT[1:, :, :] = torch.where(torch.arange(mel_BMT.shape[2]) < m_B[1:, None, None] + 4, mel_BMT[1:], 9.0)
    shouted, _ = open_adapter(name).features(ours, mel_BMT, m_B)
    for b, f in enumerate(f_B.tolist()):
        torch.testing.assert_close(shouted[b, :f], together[b, :f], atol=ATOL, rtol=0)


@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_features_from_waveforms_equal_extractor_and_model(kind, encoder, clips):
    name, model, tower = reference(kind, 5)
    load_into(model, encoder)
    few = [c for c in batch(kind, clips) if len(c) < 200_000]
    h_BFD, f_B = features(name, aut.load_encoder(encoder), few, rate_hz=16_000)
    extractor = WhisperFeatureExtractor(feature_size=WHISPER["num_mel_bins"])
    heard = extractor(few, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    mel_BMT, m_B = heard.input_features, heard.attention_mask.sum(-1)
    if open_adapter(name).ADAPTER.length == "longest":
        mel_BMT = mel_BMT[:, :, : int(m_B.max())]
    theirs, _ = as_called(kind, model, mel_BMT, m_B)
    if name == "qwen2_5_omni":
        h_BFD = tower.proj(h_BFD)
    for b, f in enumerate(f_B.tolist()):  # 1e-4 is what log-mel is held to, and it is not far off after two blocks
        torch.testing.assert_close(h_BFD[b, :f], theirs[b, :f], atol=1e-4, rtol=0)


# Refusals


def test_a_model_from_elsewhere_with_whispers_encoder_takes_it(encoder):
    """SALMONN's parts around it, as github.com/bytedance/SALMONN, models/salmonn.py at 82a7462 names them."""

    class SALMONN(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.speech_encoder = build_model("WhisperModel").encoder
            self.ln_speech = torch.nn.LayerNorm(self.speech_encoder.config.d_model)

    model = SALMONN()
    report = load_into(model, encoder)
    assert (report.adapter, report.module, report.kept) == ("whisper", "speech_encoder", ())
    for key, tensor in load_file(encoder / "model.safetensors").items():
        torch.testing.assert_close(model.speech_encoder.state_dict()[key], tensor, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("extra", "numbers"),
    [
        ({"d_model": 48}, "width 32 against 48"),
        ({"num_mel_bins": 128}, "mels 80 against 128"),
        ({"encoder_layers": 3}, "layers 2 against 3"),
        ({"encoder_attention_heads": 8}, "heads 4 against 8"),
        ({"encoder_ffn_dim": 96, "max_source_positions": 750}, "inner 128 against 96, positions 1500 against 750"),
        ({"activation_function": "relu"}, "activation gelu against relu"),
    ],
)
def test_a_tower_of_another_size_is_refused_with_both_numbers(extra, numbers, encoder, tmp_path):
    tower = build_tower("qwen2_audio", **extra)
    before = {key: tensor.clone() for key, tensor in tower.state_dict().items()}
    with pytest.raises(DataError, match=numbers):
        load_into(tower, encoder)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tower.state_dict().items())
    tower.save_pretrained(tmp_path / "target")
    with pytest.raises(DataError, match=numbers):
        convert("qwen2_audio", encoder, tmp_path / "out", tmp_path / "target")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_with_another_activation_is_refused(name, encoder):
    with pytest.raises(DataError, match="activation gelu against relu"):
        load_into(build_tower(name, activation_function="relu"), encoder)


def test_an_omni_that_cuts_other_chunks_is_refused(encoder, tmp_path):
    with pytest.raises(DataError, match="n_window 100 against 50"):
        load_into(build_tower("qwen2_5_omni", n_window=50), encoder)
    model = build_model("Qwen2_5OmniForConditionalGeneration")
    model.config.thinker_config.audio_config.n_window = 50
    model.save_pretrained(tmp_path / "target")
    with pytest.raises(DataError, match="n_window 100 against 50"):
        convert("qwen2_5_omni", encoder, tmp_path / "out", tmp_path / "target")


def test_features_are_refused_where_the_weights_are(moved, clips):
    with pytest.raises(DataError, match=r"computes embed_positions\.weight itself"):
        features("qwen2_5_omni", aut.load_encoder(moved), clips[1:], rate_hz=16_000)
    with pytest.raises(DataError, match="no clip was given"):
        features("voxtral", aut.load_encoder(moved), [], rate_hz=16_000)


@torch.no_grad()
def test_positions_that_storage_rounded_are_the_towers_own(tmp_path, clips):
    """Within the tolerance of a load, features are still the tower's to 1e-5: it never sees our positions."""
    rounded = write_encoder(tmp_path / "encoders/rounded-0", moved=0.0037)
    name, model, tower = reference("Qwen2_5OmniThinkerForConditionalGeneration", 7)
    load_into(model, rounded)
    mel_BMT, m_B = mel_of(name, clips[1:3])
    ours = load_tower(rounded, json.loads((rounded / "config.json").read_text()))
    h_BFD, f_B = open_adapter(name).features(ours, mel_BMT, m_B)
    theirs, _ = as_called("Qwen2_5OmniThinkerForConditionalGeneration", model, mel_BMT, m_B)
    for b, f in enumerate(f_B.tolist()):
        torch.testing.assert_close(tower.proj(h_BFD[b, :f]), theirs[b, :f], atol=ATOL, rtol=0)


def test_computed_positions_must_be_whispers(moved):
    tower = build_tower("qwen2_5_omni")
    before = tower.conv1.weight.clone()
    with pytest.raises(DataError, match=r"computes embed_positions\.weight itself"):
        load_into(tower, moved)
    assert torch.equal(tower.conv1.weight, before)


@pytest.mark.parametrize("width", [32, 384, 1280])
def test_the_positions_it_computes_are_transformers(width):
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import SinusoidsPositionEmbedding

    from aut.adapters.qwen2_5_omni import sinusoids

    theirs = SinusoidsPositionEmbedding(1500, width).positional_embedding
    torch.testing.assert_close(sinusoids((1500, width)), theirs, atol=2e-4, rtol=0)  # angles up to 1,500 in float32
    whispers = build_tower("whisper", d_model=width, encoder_layers=0).embed_positions.weight
    torch.testing.assert_close(sinusoids((1500, width)), whispers.detach(), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "lacks"), [("qwen2_5_omni", "proj and audio_bos_eos_token"), ("whisper", "the decoder")]
)
def test_what_only_a_target_has_is_not_made_up(name, lacks, encoder, tmp_path):
    """A folder with Whisper's model_type and no decoder would open in Whisper's classes, with random weights."""
    with pytest.raises(ConfigError, match=rf"{lacks}: that is the target's\. .*--target"):
        convert(name, encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_ours_are_not_overwritten(encoder, tmp_path):
    build_model("WhisperModel").save_pretrained(tmp_path / "target")
    for into in (tmp_path / "target", tmp_path / "target/inside"):
        with pytest.raises(ConfigError, match="lies in the target itself"):
            convert("whisper", encoder, into, tmp_path / "target")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="no drop-in"):
        convert("voxtral", encoder, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"


def test_a_target_within_a_drop_in_is_not_replaced_with_it(encoder, tmp_path):
    convert("voxtral", encoder, tmp_path / "out")
    build_model("WhisperModel").save_pretrained(tmp_path / "out/target")
    was = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"the target .*target lies in .*out"):
        convert("whisper", encoder, tmp_path / "out", tmp_path / "out/target")
    assert contents(tmp_path) == was


def test_what_was_put_into_a_drop_in_is_never_taken_away(encoder, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    report = convert("voxtral", encoder, out)
    assert sorted(report["files"]) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    config = (out / "config.json").read_text()

    def refused(name):
        with pytest.raises(ConfigError, match=rf"not written here, or was changed since: {name}\. "):
            convert("voxtral", encoder, out)

    (out / "projector.safetensors").write_text("trained for days")
    refused(r"projector\.safetensors")
    (out / "projector.safetensors").rename(elsewhere)
    (out / "notes").mkdir()
    refused("notes")
    (out / "notes").rmdir()
    (out / "link").symlink_to(elsewhere)
    refused("link")
    (out / "link").unlink()
    (out / "config.json").write_text(config.replace("1500", "750"))
    refused(r"config\.json")
    (out / "config.json").unlink()  # what is gone cannot be lost
    convert("voxtral", encoder, out)
    assert (out / "config.json").read_text() == config
    (tmp_path / "through").symlink_to(out)
    convert("voxtral", encoder, tmp_path / "through")
    assert (tmp_path / "through").is_symlink()
    (out / "drop_in.json").write_text("[]")
    with pytest.raises(DataError, match=r"drop_in\.json holds no JSON object, but list"):
        convert("voxtral", encoder, out)


def test_targets_without_safetensors_or_of_another_kind_are_refused(encoder, tmp_path):
    target = tmp_path / "target"
    build_model("WhisperModel").save_pretrained(target)
    with pytest.raises(ConfigError, match="'whisper', not voxtral"):
        convert("voxtral", encoder, tmp_path / "out", target)
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    with pytest.raises(MissingInput, match="pickles are not opened"):
        convert("whisper", encoder, tmp_path / "out", target)
    save_file({"projector": torch.zeros(2)}, target / "model.safetensors")
    with pytest.raises(DataError, match="no tower"):
        convert("whisper", encoder, tmp_path / "out", target)
    (target / "config.json").write_text('{"model_type": "whisper", "encoder_attention_heads": "many"}')
    build_model("WhisperModel").save_pretrained(tmp_path / "whole")
    (tmp_path / "whole/model.safetensors").rename(target / "model.safetensors")
    with pytest.raises(DataError, match="says encoder_attention_heads 'many'"):
        convert("whisper", encoder, tmp_path / "out", target)
    (target / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"config\.json holds no JSON object, but list\. fetch it again"):
        convert("whisper", encoder, tmp_path / "out", target)


@pytest.mark.parametrize("target", ["/tmp/nowhere-at-all", "Qwen/Qwen2-Audio-7B-Instruct"])
def test_what_is_no_models_folder_is_told_how_to_become_one(target, encoder, tmp_path):
    name = "ORGANISATION/MODEL" if target.startswith("/") else target
    with pytest.raises(ConfigError, match=rf"{target} is no model's folder .*`hf download {name} --local-dir FOLDER`"):
        convert("qwen2_audio", encoder, tmp_path / "out", Path(target))


def test_shards_are_found_as_transformers_finds_them(encoder, tmp_path):
    """One file goes before an index of shards; an index names files of its own folder only."""
    target = tmp_path / "target"
    build_model("WhisperModel").save_pretrained(target)
    index = target / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"encoder.conv1.weight": "model-old.safetensors"}}))
    assert convert("whisper", encoder, tmp_path / "out", target)["left_out"] == [index.name]
    (target / "model.safetensors").rename(target / "weights.safetensors")
    with pytest.raises(MissingInput, match=r"model-old\.safetensors is missing\. fetch the model again"):
        convert("whisper", encoder, tmp_path / "other", target)
    for places in ({"encoder.conv1.weight": "../target/weights.safetensors"}, {}, []):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(DataError, match="names no files of its folder"):
            convert("whisper", encoder, tmp_path / "other", target)


def test_a_failure_halfway_leaves_what_was_there(encoder, tmp_path):
    target, out = tmp_path / "target", tmp_path / "out"
    build_model("WhisperModel").save_pretrained(target)
    convert("whisper", encoder, out, target)
    was = contents(out)
    weights = load_file(target / "model.safetensors")
    weights["encoder.layers.1.fc2.weight"] = weights["encoder.layers.1.fc2.weight"].to(torch.int8)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"layers\.1\.fc2\.weight .* is torch\.int8: quantised"):
        convert("whisper", encoder, out, target)
    assert contents(out) == was
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "target"]


def test_models_that_are_not_plain_are_refused_before_anything_moves(encoder):
    from transformers import Qwen2AudioEncoder

    tower = build_tower("qwen2_audio")
    with torch.device("meta"):
        hollow = Qwen2AudioEncoder(tower.config)
    with pytest.raises(DataError, match="not loaded yet"):
        load_into(hollow, encoder)
    before = tower.conv1.weight.clone()
    inner = tower.layers[1].self_attn.q_proj
    tower.layers[1].self_attn.q_proj = torch.nn.ModuleDict({"base_layer": inner})  # as LoRA wraps it
    with pytest.raises(DataError, match=r"has no place for layers\.1\.self_attn\.q_proj"):
        load_into(tower, encoder)
    assert torch.equal(tower.conv1.weight, before)


def test_which_tower_is_said_when_there_is_none_or_more_than_one(encoder):
    with pytest.raises(ConfigError, match="no tower that takes"):
        load_into(torch.nn.Linear(1, 1), encoder)
    two = torch.nn.ModuleDict({"a": build_tower("voxtral"), "b": build_tower("whisper")})
    with pytest.raises(ConfigError, match=r"2 audio towers \(a, b\)"):
        load_into(two, encoder)
    assert load_into(two["b"], encoder).adapter == "whisper"


def test_baselines_are_refused(tmp_path):
    folder = tmp_path / "logmel"
    folder.mkdir()
    facts = {"kind": "logmel", "mels": 80, "name": "logmel", "digest": identity(folder, "logmel", 80)}
    (folder / "encoder.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="of kind 'logmel'"):
        load_into(build_tower("whisper"), folder)


# The door and the docs


def test_the_verbs_write_and_list(encoder, tmp_path, monkeypatch, capsys):
    from aut.cli.adapters import adapters, drop_in

    adapters()
    listed = capsys.readouterr().out
    for name in (*TOWERS, *(r.title for r in REFUSED.values()), *(r.reason for r in REFUSED.values())):
        assert name in listed
    monkeypatch.chdir(encoder.parents[2])
    drop_in(str(encoder), "voxtral", str(tmp_path / "out"), "")
    assert "tensors of adapted-0 in VoxtralEncoder" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--into"):
        drop_in(str(encoder), "voxtral", "", "")
    with pytest.raises(AutError, match="causal"):
        drop_in(str(encoder), "voxtral_realtime", str(tmp_path / "other"), "")


def test_a_name_is_found_in_the_working_copy_that_wrote_it(encoder, tmp_path, monkeypatch):
    import shutil

    from aut.cli.adapters import _found
    from aut.errors import MissingInput

    (tmp_path / "checkout").mkdir()
    monkeypatch.setenv("AUT_CHECKOUT", str(tmp_path / "checkout"))
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput, match="no run of this checkout has exported 'adapted-0'"):
        _found("adapted-0")
    copy = tmp_path / "work/copies/demo/models/encoders/adapted-0"
    shutil.copytree(encoder, copy)
    assert _found("adapted-0") == copy
    own = tmp_path / "checkout/models/encoders/adapted-0"
    shutil.copytree(encoder, own)
    assert _found("adapted-0") == own
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert _found("models:/whisper-aut@champion") == "models:/whisper-aut@champion"
    assert os.environ["MLFLOW_TRACKING_URI"].endswith("mlflow.db"), "the checkout's own store, as aut serve takes it"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


def test_export_is_the_stage_unless_a_tower_is_named(encoder, tmp_path):
    import typer
    from typer.testing import CliRunner

    from aut.cli import stages

    app = typer.Typer()
    stages.add_to(app)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(encoder), "--for", "ultravox", "--into", str(out)])
    assert done.exit_code == 0
    assert f"{out}: 37 tensors of adapted-0 in ModifiedWhisperEncoder" in done.output
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "drop_in.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    alone = CliRunner().invoke(app, ["export", "base", "--into", str(out)])
    assert isinstance(alone.exception, ConfigError)
    assert "--for" in str(alone.exception)


def examples():
    """Each example of the page, and its heading."""
    page = (ROOT / "docs/drop-in.md").read_text()
    return re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", page, flags=re.M | re.S)


@pytest.mark.parametrize(("title", "code"), examples(), ids=[title for title, _ in examples()])
def test_the_examples_of_the_docs_run(title, code, encoder, tmp_path, monkeypatch):
    """As printed: nothing is defined before. The published checkpoints, the registry and the clip are stood in for."""
    assert len(code.strip().splitlines()) <= 10
    for kind, folder in re.findall(r"(\w+)\.from_pretrained\(\"([\w./-]+)\"", code):
        if kind in MODELS:
            build_model(kind).save_pretrained(tmp_path / folder)
    real = aut.load_encoder
    monkeypatch.setattr(aut, "load_encoder", lambda source: real(encoder if ":" in source else source), raising=False)
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", 0.1 * np.random.default_rng(0).standard_normal((44_100, 2)), 44_100)
    exec(compile(code, f"docs/drop-in.md: {title}", "exec"), {})


def test_the_page_names_every_tower_with_its_contract():
    page = (ROOT / "docs/drop-in.md").read_text()
    assert len(examples()) == page.count("```python") == 4
    rows = {cells[1].strip(" `"): cells for line in page.splitlines() if len(cells := line.split("|")) == 10}
    for name in TOWERS:
        adapter, cells = open_adapter(name).ADAPTER, [cell.strip(" `") for cell in rows[name]]
        assert cells[2] == adapter.tower
        assert cells[6:8] == [f"{adapter.frame_hz:g}", f"{adapter.token_hz:g}"]
        assert ("masked" in cells[4]) == adapter.masked
