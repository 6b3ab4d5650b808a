"""Tokens: what a text takes of the decoder, by one rule for the index, which drops a longer one, and for training.

In    a text, the name of what counts it: `utf8`, a tokenizer's folder or its name on the hub
Out   decoder positions: the prompt's and the text's. The end is only ever predicted and takes none
Why   where the two counted apart, texts at the limit were kept by the one and cut by the other, and a cut text teaches
      the decoder to stop early. A tokenizer's own additions differ (one without a language adds three), so only the
      text is encoded. Its bytes are an upper bound, for a byte-level BPE only ever joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from aut.audio.decode import Unreadable
from aut.errors import MissingInput
from aut.units import PROMPT_TOKENS

Body = Sequence[int]
"""Tokens of a text alone, or its bytes."""


def fitting(body: Body, most: int) -> Body:
    """The same. Raises Unreadable, text_too_long, where prompt and body take more than `most` positions."""
    if (tokens := PROMPT_TOKENS + len(body)) > most:
        raise Unreadable("text_too_long", f"{tokens} tokens with the decoder's prompt, the limit is {most}")
    return body


def body_of(text: str, tokenizer: str) -> Body:
    """What the tokenizer of that name makes of the text, without its own additions. MissingInput without one."""
    if tokenizer == "utf8":
        return text.encode("utf-8", "surrogatepass")
    found: list[int] = _tokenizer(tokenizer)(text, add_special_tokens=False).input_ids
    return found


@cache
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise MissingInput(
            f"index.tokenizer = {name} cannot be loaded ({why})", "name a folder, or utf8, which counts bytes"
        ) from error
