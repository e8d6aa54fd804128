"""What search sees of a message, and what it takes from a query: shared by all stores, so that they find the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

WORDS_MAX = 32
"""A query's words beyond this are ignored: nobody types more, and each costs a look into the whole index."""

_WORD = re.compile(r"[^\W_]+")


def text_of(message: Mapping[str, Any]) -> str:
    """A message's `content`: text, or a list of parts of which those with a `text` count."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def words_of(query: str) -> list[str]:
    """The words of any input: letters and digits are words, all else stands between them.

    Composed first (NFC), so that an accent typed as a character of its own does not cut a word in two.
    """
    return _WORD.findall(unicodedata.normalize("NFC", query))[:WORDS_MAX]
