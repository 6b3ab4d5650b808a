"""Word error rate of a fine-tuned model and of its base, on speech that the fine-tune held out.

In    models/base, the folder of the fine-tuned checkpoint, held-out rows of the mixture with transcripts
Out   speech.json in that folder: errors and words of every clip, for both models
Why   a probe hears classes, not words; once the decoder is dropped nobody can ask any more. Measured from the saved
      weights, where the GPU is, on clips that no arm was trained on; per clip, so that the comparison is paired and
      whole recordings can be resampled. Price: greedy decoding without a cache of keys, two models a fine-tune. A base
      trained here may have heard these clips, which is in its favour.
Run   `write_speech(folder, base, rows, roots, training)`

`B` clips, `T` samples, `L` tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aut.audio.decode import Unreadable, read_clip
from aut.config import Training
from aut.files import write_json
from aut.training.data import budget_s, divide
from aut.training.tokenizer import Targets
from aut.units import DECODER_TOKENS, RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pcm = NDArray[np.float32]

TOKENS_PER_S = 16  # thrice a fast speaker's; a decoder that does not stop is cut off here
TOKENS_MORE = 8


def write_speech(
    folder: Path, base: Path, rows: Sequence[Mapping[str, Any]], roots: Mapping[str, Path], training: Training
) -> dict[str, float]:
    """Transcribes the speech among `rows` by both models, writes folder/speech.json; returns both rates.

    Nothing is written where no row is speech with a transcript that can be read: then there is nothing to lose.
    """
    spoken = [r for r in rows if r["domain"] == "speech" and words_of(r["text"] or "")]
    clips = [(r, pcm) for r in spoken if (pcm := _pcm(r, roots, training.max_s)) is not None]
    if not clips:
        return {}
    heard = {name: transcribe(path, [pcm for _, pcm in clips], training) for name, path in _both(base, folder)}
    told = []
    for i, (row, _) in enumerate(clips):
        wrong = {name: word_errors(row["text"], texts[i]) for name, texts in heard.items()}
        facts = {"id": row["id"], "source_id": row["source_id"] or row["id"], "words": len(words_of(row["text"]))}
        told.append(facts | wrong)
    write_json(folder / "speech.json", {"clips": told})
    words = sum(t["words"] for t in told)
    return {"wer": sum(t["tuned"] for t in told) / words, "base_wer": sum(t["base"] for t in told) / words}


def transcribe(folder: Path, clips: Sequence[Pcm], training: Training) -> list[str]:
    """Greedy transcripts of 16 kHz clips by the Whisper in `folder`, in the order given."""
    import torch

    from aut.training.model import open_whisper

    device = "cuda" if torch.cuda.is_available() else "cpu"
    whisper = open_whisper(folder).eval().to(device)
    targets = Targets(folder, training.language)
    texts = [""] * len(clips)
    for group in divide([len(c) / RATE_HZ for c in clips], budget_s(device), 1):
        decoded = _greedy(whisper, [clips[i] for i in group], targets, training.length == "padded", device)
        for i, ids in zip(group, decoded, strict=True):
            texts[i] = targets.text(ids)
    return texts


def _greedy(whisper: Any, clips: Sequence[Pcm], targets: Targets, padded: bool, device: str) -> list[list[int]]:
    """The likeliest token after the prompt, again and again, until every clip has ended."""
    import torch

    from aut.audio.mel import log_mel
    from aut.encoders.api import stack
    from aut.encoders.whisper import decoder_forward, encoder_forward

    model = whisper.model
    x_BT, n_B = (torch.from_numpy(a) for a in stack(list(clips)))
    room = min(DECODER_TOKENS - len(targets.prompt), TOKENS_MORE + round(TOKENS_PER_S * x_BT.shape[1] / RATE_HZ))
    ids_BL = torch.tensor(targets.prompt, device=device).expand(len(clips), -1)
    ended_B = torch.zeros(len(clips), dtype=torch.bool, device=device)
    with torch.inference_mode():
        mel_BMF, frames_B = log_mel(x_BT.to(device), n_B, model.config.num_mel_bins, padded)
        h_BFD, f_B = encoder_forward(model.encoder, mel_BMF, None if padded else frames_B)
        for _ in range(room):
            y_BLD = decoder_forward(model.decoder, ids_BL, h_BFD, None if padded else f_B)
            next_B = whisper.proj_out(y_BLD[:, -1]).argmax(dim=-1).masked_fill(ended_B, targets.end)
            ids_BL = torch.cat([ids_BL, next_B[:, None]], dim=1)
            ended_B |= next_B == targets.end
            if bool(ended_B.all()):
                break
    said = ids_BL[:, len(targets.prompt) :].tolist()
    return [ids[: ids.index(targets.end)] if targets.end in ids else ids for ids in said]


def words_of(text: str) -> list[str]:
    """Words without case, punctuation and width: letters, marks, digits and inner apostrophes are left."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return [w for w in (word.strip("'") for word in kept.split()) if w]


def word_errors(reference: str, hypothesis: str) -> int:
    """Fewest words to substitute, delete and insert (Levenshtein 1966) between the two, normalised."""
    wanted, said = words_of(reference), words_of(hypothesis)
    row = list(range(len(said) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def _both(base: Path, folder: Path) -> tuple[tuple[str, Path], ...]:
    return ("base", base), ("tuned", folder)


def _pcm(row: Mapping[str, Any], roots: Mapping[str, Path], max_s: float) -> Pcm | None:
    try:
        return read_clip(roots[row["source"]], row, max_s=max_s)
    except (Unreadable, OSError):
        return None
