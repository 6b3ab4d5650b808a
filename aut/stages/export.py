"""Export: a checkpoint becomes an encoder folder. Decoder dropped, parity with transformers proved.

In    models/<encoder>/
Out   models/encoders/<encoder>/{encoder.json, config.json, model.safetensors, preprocessor_config.json, parity.json}
Why   the folder is the drop-in replacement: keys of transformers' WhisperEncoder, proved by loading and running that
      class on the same clips. Price: transformers is imported, 4 s a run.
Run   aut export adapted-0
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aut.config import Params
from aut.contracts import Tracker
from aut.encoders.clipwise import WEIGHING, identity, whole_float32
from aut.errors import DataError, GateError, MissingInput
from aut.files import read_json, replacing, write_json
from aut.layout import Layout
from aut.units import FRAME_HOP, MEL_HOP, RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PREFIX = "model.encoder."
HISTORY = ("training.json", "speech.json")
"""How it came to be and how well its decoder still wrote down speech: the report compares the arms by them."""
UNPROVED = {"passed": None, "drop_in": None, "max_error": None}
TRANSIENT = ("transformers_version", "_name_or_path")  # would change the digest, not the embedding


def export(params: Params, layout: Layout, track: Tracker, encoder: str) -> dict[str, float | int | str]:
    """Writes the encoder folder. GateError where ours and transformers' frames differ by more than the limit."""
    source, out = layout.model(encoder), layout.encoder(encoder)
    if not source.is_dir():
        raise MissingInput(f"{source} is missing", f"run the stage that makes {encoder}, or `dvc repro`")
    with replacing(out) as draft:
        carried = (source / "encoder.json").is_file()
        facts = _carry(source, draft, encoder) if carried else _strip(source, draft, encoder)
        write_json(draft / "encoder.json", facts)
        for name in HISTORY:
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        proof = UNPROVED if carried else _prove(draft, params)
        write_json(draft / "parity.json", proof)
    track.params({"kind": facts["kind"], "width": facts["width"]})
    track.tags({"encoder_digest": facts["digest"]})
    track.artifact(out / "parity.json")
    metrics = {k: v for k, v in proof.items() if isinstance(v, float)}
    return {"width": facts["width"], "digest": facts["digest"], **metrics}


def _carry(source: Path, draft: Path, name: str) -> dict[str, Any]:
    """Baselines without a decoder: their files as they are, and what they turn out to be when opened."""
    from importlib import import_module

    from aut.encoders import KINDS

    given = read_json(source / "encoder.json")
    kind, mels = given.get("kind"), given.get("mels")
    if kind not in KINDS:
        raise DataError(f"{source}/encoder.json has kind '{kind}', known are {', '.join(KINDS)}", "make it again")
    for file in WEIGHING:
        if (source / file).is_file():
            shutil.copyfile(source / file, draft / file)
    facts = {"kind": kind, "name": name, "mels": mels, "length": "native", "digest": identity(draft, kind, mels)}
    opened = import_module(f"aut.encoders.{KINDS[kind]}").load(draft, facts, "cpu")
    return facts | {"rate_hz": opened.rate_hz, "width": opened.width, "hop_s": opened.hop_s}


def _strip(source: Path, draft: Path, name: str) -> dict[str, Any]:
    """A Whisper checkpoint without its decoder."""
    from safetensors.torch import save_file

    config = {k: v for k, v in read_json(source / "config.json").items() if k not in TRANSIENT}
    if config.get("model_type") != "whisper":
        raise DataError(f"{source} is a '{config.get('model_type')}', not a Whisper", "use kind hub for it")
    write_json(draft / "config.json", config | {"architectures": ["WhisperEncoder"]})
    save_file(_encoder_weights(source), draft / "model.safetensors", metadata={"format": "pt"})
    if not (source / "preprocessor_config.json").is_file():
        raise MissingInput(f"{source}/preprocessor_config.json is missing", "copy it from the base model")
    extractor = read_json(source / "preprocessor_config.json")
    mels = int(config["num_mel_bins"])
    if extractor.get("feature_size") != mels:
        raise DataError(f"{source}: the extractor has {extractor.get('feature_size')} mels, the model {mels}", "fix it")
    write_json(draft / "preprocessor_config.json", extractor)
    facts = {"kind": "whisper", "name": name, "mels": mels, "length": "native", "rate_hz": RATE_HZ}
    facts |= {"width": int(config["d_model"]), "hop_s": FRAME_HOP / RATE_HZ}
    return facts | {"digest": identity(draft, "whisper", mels)}


def _encoder_weights(source: Path) -> dict[str, Tensor]:
    """Tensors of the encoder, from one file or from shards. MissingInput where the folder has no weights."""
    from safetensors import SafetensorError, safe_open

    index = source / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        if not (source / name).is_file():
            raise MissingInput(f"{source}/{name} is missing: the folder has no weights", "make the checkpoint again")
        try:
            with safe_open(source / name, framework="pt") as file:
                weights |= {k.removeprefix(PREFIX): file.get_tensor(k) for k in file.keys() if k.startswith(PREFIX)}  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"{source}/{name} cannot be read: {error}", "make the checkpoint again") from None
    if not weights:
        raise DataError(f"{source} has no tensor below '{PREFIX}'", "give a Whisper with its decoder")
    return weights


def _prove(folder: Path, params: Params) -> dict[str, Any]:
    """Loads transformers' class from the folder and runs it and ours on the same clips."""
    clips = parity_clips(params.export.parity_clips)
    try:
        padded, native = parity(folder, clips)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise GateError(
            f"transformers' WhisperEncoder does not take the weights: {what}", "export them again"
        ) from None
    worst, limit = float(np.maximum(padded, native)), params.export.parity_atol
    if not worst <= limit:  # NaN too
        raise GateError(f"frames differ from transformers' by {worst:.2g}, allowed is {limit:g}", "look at the weights")
    return {
        "passed": True,
        "drop_in": True,
        "max_error": _within(worst),
        "padded_error": _within(padded),
        "native_error": _within(native),
        "atol": limit,
        "clips": len(clips),
    }


def _within(error: float) -> float:
    """The next power of ten, so that the file does not depend on the number of threads."""
    return float(f"1e{math.ceil(math.log10(error))}") if error > 0.0 else 0.0


def parity(folder: Path, clips: list[NDArray[np.float32]]) -> tuple[float, float]:
    """Largest difference (padded, native) between our frames and transformers', extractor included.

    Native: transformers' encoder is given as many positions as the clip has frames, so that it takes the clip alone;
    ours runs all clips in one masked batch. Clips have an even number of mel frames. RuntimeError: strict load fails.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import WhisperConfig
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from aut.encoders import open_encoder
    from aut.encoders.api import stack

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = read_json(folder / "config.json")
    extractor = WhisperFeatureExtractor(**read_json(folder / "preprocessor_config.json"))
    features = extractor(clips, sampling_rate=RATE_HZ, return_tensors="pt").input_features.to(device)
    reference = WhisperEncoder(WhisperConfig(**config))
    reference.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    reference = reference.float().eval().to(device)
    ours = open_encoder(folder, device)
    h_BFD, f_B = ours.encode(*stack(clips))
    padded, native = [0.0], [0.0]  # np.max, unlike max, does not lose a NaN
    with torch.inference_mode(), whole_float32():
        for i, clip in enumerate(clips):
            theirs = reference(features[i : i + 1]).last_hidden_state
            x_BT = torch.from_numpy(clip)[None].to(device)
            (mine,), _ = ours.frames(x_BT, torch.tensor([len(clip)]), padded=True, layers=False)
            padded.append(float((mine - theirs).abs().max()))
        positions = reference.embed_positions.weight.clone()
        for i in range(len(clips)):
            frames = int(f_B[i])
            reference.config.max_source_positions = frames
            reference.embed_positions = torch.nn.Embedding(frames, ours.width, _weight=positions[:frames])
            theirs = reference(features[i : i + 1, :, : 2 * frames]).last_hidden_state[0].cpu().numpy()
            native.append(float(np.abs(h_BFD[i, :frames] - theirs).max()))
    return float(np.max(padded)), float(np.max(native))


def parity_clips(count: int) -> list[NDArray[np.float32]]:
    """Noise, tones and clicks of 0.2 to 30 s, the same on every machine; even numbers of mel frames."""
    clips = []
    for i in range(count):
        rng = np.random.default_rng([20_26, i])
        frames = 2 * round(10 + 1_490 * (i / max(1, count - 1)) ** 2)
        t = np.arange(frames * MEL_HOP) / RATE_HZ
        tone = 0.2 * np.sin(2 * np.pi * (110.0 * 2 ** (i % 6)) * t)
        clip = tone * (t % 0.5 < 0.3) + 0.02 * rng.standard_normal(len(t))
        clips.append(clip.astype(np.float32))
    return clips
