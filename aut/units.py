"""Units as vocabulary: a name that reaches a file or a signature says what it measures."""

from typing import Literal, NewType

Seconds = NewType("Seconds", float)
Hertz = NewType("Hertz", int)

Domain = Literal["speech", "environment", "music"]
Role = Literal["speech", "environment", "music", "probe"]
"""What a source is for: the training pool of a domain, or a probe set."""

DOMAINS: tuple[Domain, ...] = ("speech", "environment", "music")

RATE_HZ = 16_000  # Whisper's input rate (Radford et al. 2022, section 2.2)
MEL_HOP = 160  # samples between log-mel frames: 10 ms
FRAME_HOP = 320  # samples between encoder frames: the second convolution has stride 2
WINDOW_S = 30.0  # Whisper's input window, and the longest clip a training target describes
DECODER_TOKENS = 448  # Whisper's decoder positions (max_target_positions)
PROMPT_TOKENS = 4  # of them: <|startoftranscript|>, the language, <|transcribe|>, <|notimestamps|>
