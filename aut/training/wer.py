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
from aut.training.greedy import greedy
from aut.training.groups import divide
from aut.training.sizes import budget
from aut.training.tokenizer import Targets
from aut.units import RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pcm = NDArray[np.float32]


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
    for group in divide([len(c) / RATE_HZ for c in clips], budget(training, device), 1):
        decoded = greedy(whisper, [clips[i] for i in group], targets, training.length == "padded", device)
        for i, ids in zip(group, decoded, strict=True):
            texts[i] = targets.text(ids)
    return texts


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
