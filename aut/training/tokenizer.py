"""Tokenizer: text to Whisper's decoder targets, and a small byte-level BPE for models trained here.

In    texts of all pools (so that captions are words, not letters), a vocabulary size
Out   a folder that `transformers.WhisperTokenizer` loads; `Targets` reads its tokenizer.json without transformers
Why   a small model needs a small vocabulary, but the same format as the large one, so that every later stage and
      every user treats both alike. Training counts pairs over sorted words: the same texts give the same bytes.
Run   `train_tokenizer(["rain on a roof"], 300, Path("models/base"))`
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aut.datasets._tokens import fitting
from aut.errors import ConfigError, MissingInput
from aut.units import DECODER_TOKENS

EOT, SOT, TRANSCRIBE, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"
BYTES = 256


def special_tokens(language: str) -> list[str]:
    """In Whisper's order; <|notimestamps|> is last, so that no token after it is taken for a timestamp."""
    rest = ["<|translate|>", TRANSCRIBE, "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", NO_TIMESTAMPS]
    return [EOT, SOT, f"<|{language}|>", *rest]


def train_tokenizer(texts: Iterable[str], vocabulary: int, language: str, folder: Path) -> int:
    """Trains, saves below `folder`, returns the number of tokens, special ones included (at most `vocabulary`).

    ConfigError where the vocabulary cannot hold the 256 bytes and the special tokens.
    """
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

    special = special_tokens(language)
    if vocabulary < BYTES + len(special):
        raise ConfigError(
            f"base.shape.vocabulary = {vocabulary} cannot hold {BYTES} bytes and {len(special)} special tokens",
            f"give at least {BYTES + len(special)}",
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    ids = dict(model["vocab"])
    for token in special:
        ids[token] = len(ids)
    tokenizer = WhisperTokenizer(
        vocab=ids,
        merges=[tuple(m) for m in model["merges"]],
        unk_token=EOT,
        bos_token=EOT,
        eos_token=EOT,
        pad_token=EOT,
        language=language,
        task="transcribe",
        predict_timestamps=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    tokenizer.model_max_length = DECODER_TOKENS
    tokenizer.save_pretrained(folder)
    return len(ids)


class Targets:
    """Texts to target ids: prompt, text, end. `prompt` starts with <|startoftranscript|>."""

    def __init__(self, folder: Path, language: str) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.exists():
            raise MissingInput(f"{path} is missing", "the base stage writes it: run `aut base base`")
        self._tokenizer = Tokenizer.from_file(str(path))
        names = (SOT, f"<|{language}|>", TRANSCRIBE, NO_TIMESTAMPS)
        ids = {name: self._tokenizer.token_to_id(name) for name in (*names, EOT)}
        if missing := next((name for name, found in ids.items() if found is None), ""):
            raise ConfigError(f"{path} has no token {missing}", "set training.language to one the tokenizer knows")
        self.prompt = [int(ids[name] or 0) for name in names]
        self.end = int(ids[EOT] or 0)

    def __call__(self, text: str) -> list[int]:
        """At most DECODER_TOKENS + 1 ids, of which the last is the end: the decoder sees all but that one.

        Raises Unreadable, text_too_long, for a text that it cannot hold whole: a cut one would teach it to stop early.
        """
        body: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*self.prompt, *fitting(body, DECODER_TOKENS), self.end]

    def text(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
