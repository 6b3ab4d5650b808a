"""From a checkpoint to an encoder folder to vectors: parity, strict keys, cache, resumption, bad input."""

import json
import shutil
import sys
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from aut.config import read_params
from aut.contracts import INDEX_SCHEMA, Silent
from aut.encoders import AudioEncoder, open_encoder
from aut.encoders.api import stack
from aut.encoders.clipwise import whole_float32
from aut.errors import DataError, GateError, MissingInput
from aut.layout import Layout, here
from aut.stages import embed as embed_stage
from aut.stages.embed import embed
from aut.stages.export import export, parity_clips

ATOL = 1e-5  # float32, batches of other shapes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Whisper as training saves it, and the log-mel baseline."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from tests.unit.test_whisper import config

    models = tmp_path_factory.mktemp("copy") / "models"
    torch.manual_seed(0)
    network = WhisperForConditionalGeneration(config())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    network.save_pretrained(models / "base")
    WhisperFeatureExtractor().save_pretrained(models / "base")
    (models / "logmel").mkdir()
    (models / "logmel/encoder.json").write_text('{"kind": "logmel", "mels": 80}')
    return models.parent


@pytest.fixture
def params():
    whole = read_params(here().params)
    name = "toy_words"
    source = next(iter(whole.sources.values())).model_copy(update={"dataset": "folder", "path": "corpus"})
    section = whole.embed.model_copy(update={"poolings": ["valid", "padded"], "layers": "last"})
    parity = whole.export.model_copy(update={"parity_clips": 3})
    return whole.model_copy(update={"sources": {name: source}, "embed": section, "export": parity})


@pytest.fixture
def layout(checkpoint, tmp_path, monkeypatch):
    """A working copy with the checkpoints and six indexed clips; decoding is a file of float32 samples."""
    root = tmp_path / "copy"
    root.mkdir()
    (root / "models").symlink_to(checkpoint / "models")
    monkeypatch.setenv("AUT_DATA", str(tmp_path))
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("AUT_DEVICE", "cpu")
    decode = ModuleType("aut.audio.decode")
    decode.Unreadable = type("Unreadable", (DataError,), {})
    decode.read_clip = lambda corpus, row, max_s: np.fromfile(corpus / row["uri"], np.float32)[: int(max_s * 16_000)]
    monkeypatch.setitem(sys.modules, "aut.audio.decode", decode)
    corpus, rows = tmp_path / "corpus", []
    corpus.mkdir()
    for i, seconds in enumerate([0.3, 2.0, 1.0, 1.0, 0.05, 31.0]):
        clip = sound(seconds, i)
        clip.tofile(corpus / f"{i}.f32")
        row = dict.fromkeys(INDEX_SCHEMA) | {"id": f"toy/{i}", "source_id": f"r{i}", "label": "ab"[i % 2]}
        row |= {"split": "test", "domain": "speech", "uri": f"{i}.f32", "start_s": 0.0, "duration_s": seconds}
        rows.append(row | {"content_hash": f"hash{i}"})
    copy = Layout(root)
    folder = copy.index("probe", "toy_words")
    folder.mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(folder / "part-000.parquet")
    return copy


@pytest.fixture(scope="module")
def exported(checkpoint):
    layout = Layout(checkpoint)
    whole = read_params(here().params)
    small = whole.model_copy(update={"export": whole.export.model_copy(update={"parity_clips": 3})})
    for name in ("base", "logmel"):
        export(small, layout, Silent(), name)
    return layout


def sound(seconds, seed=0):
    rng = np.random.default_rng([seed])
    return (rng.standard_normal(round(seconds * 16_000)) * 0.1).astype(np.float32)


def test_export_proves_parity_and_transformers_loads_the_folder(exported):
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = exported.encoder("base")
    proof = json.loads((folder / "parity.json").read_text())
    assert proof["passed"] is True
    assert proof["drop_in"] is True
    assert 0 < proof["max_error"] <= 1e-5
    loaded, report = WhisperEncoder.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not any("decoder" in key for key in load_file(folder / "model.safetensors"))
    assert loaded.config.d_model == 32


def test_export_writes_the_same_bytes_twice(exported, params):
    files = {p.name: p.read_bytes() for p in exported.encoder("base").iterdir()}
    export(params, exported, Silent(), "base")
    assert {p.name: p.read_bytes() for p in exported.encoder("base").iterdir()} == files


def test_parity_above_the_limit_stops_and_leaves_the_old_folder(exported, params):
    strict = params.model_copy(update={"export": params.export.model_copy(update={"parity_atol": 1e-12})})
    before = (exported.encoder("base") / "encoder.json").read_bytes()
    with pytest.raises(GateError, match=r"frames differ .* allowed is 1e-12"):
        export(strict, exported, Silent(), "base")
    assert (exported.encoder("base") / "encoder.json").read_bytes() == before


def test_nan_weights_do_not_pass(exported, params, tmp_path):
    copy = Layout(tmp_path)
    shutil.copytree(exported.model("base"), copy.model("base"))
    file = copy.model("base") / "model.safetensors"
    weights = {name: torch.from_numpy(value) for name, value in load_file(file).items()}
    weights["model.encoder.layer_norm.bias"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(GateError, match="differ from transformers' by nan"):
        export(params, copy, Silent(), "base")
    assert not copy.encoder("base").exists()


def test_a_checkpoint_without_weights_is_said(exported, params, tmp_path):
    copy = Layout(tmp_path)
    copy.model("base").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (copy.model("base") / name).write_bytes((exported.model("base") / name).read_bytes())
    with pytest.raises(MissingInput, match="no weights"):
        export(params, copy, Silent(), "base")
    save_file({"proj_out.weight": torch.zeros(2)}, copy.model("base") / "model.safetensors")
    with pytest.raises(DataError, match=r"no tensor below 'model\.encoder\.'"):
        export(params, copy, Silent(), "base")


def test_logmel_is_carried_over_without_a_parity(exported):
    encoder = open_encoder(exported.encoder("logmel"))
    clip = sound(1.0)
    x_BT, n_B = clip[None], np.array([len(clip)])
    frames, f_B = encoder.encode(x_BT, n_B)
    assert encoder.width == 160
    assert frames.shape == (1, 100, 80)
    expected = np.concatenate([frames[0].mean(0), frames[0].std(0)])
    np.testing.assert_allclose(encoder.embed(x_BT, n_B)[0], expected, atol=1e-5)  # float64 sums against float32
    assert json.loads((exported.encoder("logmel") / "parity.json").read_text())["passed"] is None
    assert f_B.tolist() == [100]


@pytest.mark.parametrize("name", ["base", "logmel"])
@pytest.mark.parametrize("pooling", ["valid", "padded"])
def test_a_clip_alone_equals_the_clip_in_any_batch(exported, name, pooling, monkeypatch):
    encoder = open_encoder(exported.encoder(name))
    clips = [sound(s, i) for i, s in enumerate([0.01, 0.5, 0.5, 3.0, 30.5])]
    together = encoder.embed(*stack(clips), pooling)
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(encoder.embed(*stack([clip]), pooling)[0], row, atol=ATOL)
    monkeypatch.setattr("aut.encoders.clipwise.BATCH_S", {"cpu": 1.0})
    np.testing.assert_allclose(encoder.embed(*stack(clips), pooling), together, atol=ATOL)


def test_convolutions_keep_all_bits_while_frames_are_computed(exported, monkeypatch):
    """cuDNN's default, TF32, is 1e-3 from a CPU's float32. What the caller had set comes back, after an error too."""
    encoder, precision, seen = open_encoder(exported.encoder("base")), torch.backends.cudnn.conv, []
    frames = encoder.frames
    monkeypatch.setattr(encoder, "frames", lambda *given: seen.append(precision.fp32_precision) or frames(*given))
    before = precision.fp32_precision
    encoder.embed(*stack([sound(0.5)]))
    assert seen == ["ieee"]
    with pytest.raises(ZeroDivisionError), whole_float32():
        1 / 0  # noqa: B018
    assert precision.fp32_precision == before != "ieee"


def test_long_clips_are_cut_into_windows(exported):
    encoder = open_encoder(exported.encoder("base"))
    clip = sound(31.0)
    whole, f_B = encoder.encode(clip[None], np.array([len(clip)]))
    first, _ = encoder.encode(clip[None, :480_000], np.array([480_000]))
    last, _ = encoder.encode(clip[None, 480_000:], np.array([16_000]))
    assert f_B.tolist() == [1550]
    np.testing.assert_allclose(whole[0], np.concatenate([first[0], last[0]]), atol=ATOL)
    np.testing.assert_allclose(encoder.embed(clip[None], np.array([len(clip)]))[0], whole[0].mean(0), atol=ATOL)


def test_padded_pooling_is_transformers_mean_over_30_seconds(exported):
    from transformers import WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = exported.encoder("base")
    clip = sound(2.0)
    features = WhisperFeatureExtractor()(clip, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        reference = WhisperEncoder.from_pretrained(folder).eval()(features).last_hidden_state.mean(1).numpy()
    ours = open_encoder(folder).embed(clip[None], np.array([len(clip)]), "padded")
    np.testing.assert_allclose(ours, reference, atol=1e-4)  # the extractor's own tolerance


def test_changed_weights_are_refused(exported, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for file in exported.encoder("base").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"have digest \w+, exported was \w+"):
        open_encoder(folder)


def test_audio_encoder_takes_what_users_have(exported):
    audio = AudioEncoder(open_encoder(exported.encoder("base")))
    clip = sound(1.0)
    alone, f_B = audio.encode(clip, 16_000)
    assert alone.shape == (1, 50, 32)
    assert f_B.tolist() == [50]
    stereo, _ = audio.encode([np.stack([clip, clip]), np.stack([clip, clip], axis=1)], 16_000)
    np.testing.assert_allclose(stereo, np.repeat(alone, 2, 0), atol=ATOL)
    integers, _ = audio.encode((clip * 32_768).round().astype(np.int16), 16_000)
    np.testing.assert_allclose(integers.mean(1), alone.mean(1), atol=0.01)  # 16-bit steps
    assert audio.encode(sound(3.0)[:44_100], 44_100)[1].tolist() == [50]
    np.testing.assert_allclose(audio.embed(clip, 16_000)[0], alone[0].mean(0), atol=ATOL)


@pytest.mark.parametrize(
    ("waveforms", "rate_hz", "told"),
    [
        ([np.zeros(0, np.float32)], 16_000, "clip 0 is empty"),
        ([np.ones(9), np.array([0.0, np.nan])], 16_000, "clip 1 is not finite at sample 1"),
        (np.zeros((44_100, 2)), 44_100, "looks like"),
        ([np.zeros(5, np.int64)], 16_000, "values of type int64"),
        (np.ones(10), 0, "rate_hz is 0"),
    ],
)
def test_bad_waveforms_are_named(exported, waveforms, rate_hz, told):
    with pytest.raises(DataError, match=told):
        AudioEncoder(open_encoder(exported.encoder("base"))).encode(waveforms, rate_hz)


@pytest.fixture
def ready(layout, exported):
    assert exported.encoder("base").is_dir()  # the working copy links to the same models
    return layout


def test_embed_writes_every_clip_in_order_and_is_cached(ready, params, monkeypatch):
    report = embed(params, ready, Silent(), "base", "toy_words")
    out = ready.embeddings("base", "toy_words")
    vectors = load_file(out / "embeddings.safetensors")
    clips = pl.read_parquet(out / "clips.parquet")
    assert report["clips"] == clips.height == 6
    assert clips["id"].to_list() == [f"toy/{i}" for i in range(6)]
    encoder = open_encoder(ready.encoder("base"))
    for i, seconds in enumerate([0.3, 2.0, 1.0, 1.0, 0.05, 30.0]):  # embed.max_s cuts the last one
        clip = sound(31.0 if i == 5 else seconds, i)[: round(seconds * 16_000)]
        np.testing.assert_allclose(vectors["valid"][i], encoder.embed(*stack([clip]))[0], atol=ATOL)
    assert vectors["padded"].shape == (6, 32)
    monkeypatch.setattr(embed_stage, "_compute", None)  # a second run computes nothing
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    embed(params, ready, Silent(), "base", "toy_words")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_other_code_computes_again(ready, params, monkeypatch):
    embed(params, ready, Silent(), "base", "toy_words")
    out = ready.embeddings("base", "toy_words")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setattr(embed_stage, "digest_code", lambda *parts: "an edit in " + ", ".join(parts))
    computed = []
    compute = embed_stage._compute
    monkeypatch.setattr(embed_stage, "_compute", lambda *args: (computed.append(1), compute(*args)))
    embed(params, ready, Silent(), "base", "toy_words")
    assert computed
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before  # the same numbers: nothing after it runs


def test_embed_resumes_by_blocks_and_names_a_bad_clip(ready, params, monkeypatch):
    monkeypatch.setattr(embed_stage, "BLOCK_ROWS", 2)
    corpus = ready.corpus_root("folder", "corpus")
    content = (corpus / "5.f32").read_bytes()
    (corpus / "5.f32").unlink()
    with pytest.raises(DataError, match=r"clip toy/5 \(5\.f32\) cannot be read"):
        embed(params, ready, Silent(), "base", "toy_words")
    done = sorted(p.name for p in (ready.work / "cache/embeddings").glob("*.blocks/*"))
    assert done == ["000000000.safetensors", "000000002.safetensors"]
    assert not ready.embeddings("base", "toy_words").exists()
    (corpus / "5.f32").write_bytes(content)
    for i in range(4):
        (corpus / f"{i}.f32").unlink()  # their blocks are done: nobody reads them again
    embed(params, ready, Silent(), "base", "toy_words")
    assert load_file(ready.embeddings("base", "toy_words") / "embeddings.safetensors")["valid"].shape == (6, 32)


def test_all_layers_in_one_pass(ready, params):
    section = params.embed.model_copy(update={"layers": "all", "poolings": ["valid"]})
    embed(params.model_copy(update={"embed": section}), ready, Silent(), "base", "toy_words")
    vectors = load_file(ready.embeddings("base", "toy_words") / "embeddings.safetensors")
    assert sorted(vectors) == ["valid", "valid.layer00", "valid.layer01", "valid.layer02"]
    assert np.array_equal(vectors["valid"], vectors["valid.layer02"])
    assert not np.allclose(vectors["valid.layer00"], vectors["valid.layer01"])


def test_nan_in_an_embedding_names_the_clip(ready, params):
    (ready.corpus_root("folder", "corpus") / "3.f32").write_bytes(np.full(1600, np.nan, np.float32).tobytes())
    with pytest.raises(DataError, match="embedding of clip toy/3 is not finite"):
        embed(params, ready, Silent(), "base", "toy_words")


def test_an_unindexed_set_is_said(ready, params):
    (ready.index("probe", "toy_words") / "part-000.parquet").unlink()
    with pytest.raises(MissingInput, match="aut index toy_words"):
        embed(params, ready, Silent(), "base", "toy_words")


def test_parity_clips_are_the_same_everywhere_and_even():
    clips = parity_clips(4)
    assert [len(c) for c in clips] == [len(c) for c in parity_clips(4)]
    assert all(np.array_equal(a, b) for a, b in zip(clips, parity_clips(4), strict=True))
    assert all(len(c) % 320 == 0 for c in clips)
    assert len(clips[-1]) == 480_000


def test_a_registered_version_is_an_encoder_like_any_other(checkpoint, params, monkeypatch, tmp_path):
    """Its folder goes through base and export unchanged: the same digest under another name."""
    from aut.cli import stages as verbs
    from aut.edges import loading
    from aut.layout import REGISTERED
    from aut.stages.base import base

    layout = Layout(checkpoint)
    export(params, layout, Silent(), "base")
    entry = {"kind": "registered", "model": "models:/whisper-aut/3", "revision": None}
    section = params.base.model_dump() | {"encoders": params.base.model_dump()["encoders"] | {"before": entry}}
    named = params.model_copy(update={"base": type(params.base).model_validate(section)})
    monkeypatch.setattr("aut.config.read_params", lambda *_: named)
    monkeypatch.setattr(loading, "fetch", lambda _, address: (layout.encoder("base"), address[-1], None))
    monkeypatch.setenv(REGISTERED, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    verbs._fetch_registered("before")
    base(named, layout, Silent(), "before")
    export(named, layout, Silent(), "before")
    found = [json.loads((layout.encoder(n) / "encoder.json").read_text()) for n in ("base", "before")]
    assert found[0]["digest"] == found[1]["digest"]
    assert [f["name"] for f in found] == ["base", "before"]
    assert open_encoder(layout.encoder("before")).width == found[0]["width"]


def test_an_alias_is_no_encoder_and_neither_is_an_empty_folder(params, tmp_path, monkeypatch):
    from aut.config import Base
    from aut.layout import REGISTERED
    from aut.stages.base import base

    monkeypatch.delenv(REGISTERED, raising=False)
    entry = {"kind": "registered", "model": "models:/whisper-aut@champion", "revision": None}
    encoders = params.base.model_dump()["encoders"]
    section = params.base.model_dump() | {"encoders": encoders | {"other": entry}}
    with pytest.raises(ValueError, match="an alias, which moves"):
        Base.model_validate(section)
    entry["model"] = str(tmp_path)
    named = params.model_copy(update={"base": Base.model_validate(section)})
    with pytest.raises(MissingInput, match="holds no encoder"):
        base(named, Layout(tmp_path / "copy"), Silent(), "other")
