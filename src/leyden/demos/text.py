"""Text to learn from that is on every machine with Python: the reference that ``help()`` shows."""

from __future__ import annotations

import re
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import Dataset


@lru_cache(maxsize=1)
def _words() -> tuple[tuple[str, ...], Tensor]:
    """The vocabulary, sorted, and the text as numbers of its words."""
    words = re.findall(r"\w+|[^\w\s]", "\n".join(topics[name] for name in sorted(topics)).lower())
    vocabulary = sorted(set(words))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    return tuple(vocabulary), torch.tensor([numbers[word] for word in words])


class LibraryText(Dataset[tuple[Tensor, Tensor]]):
    """Python's language reference, some 100,000 words and signs, in blocks that follow one another.

    A sample is ``(inputs, target)``, each of shape ``(block_size,)`` and type int64: ``target`` is ``inputs`` one word
    later. The text is that of the running Python, so that other versions have a few other words.

    Args:
        block_size: Words in a sample.

    Attributes:
        vocabulary: The words; their numbers are their places.

    Raises:
        ValueError: ``block_size`` is less than 1, or more than the text has words.
    """

    def __init__(self, block_size: int = 35) -> None:
        self.vocabulary, self.data = _words()
        if not 1 <= block_size < len(self.data):
            raise ValueError(f"block_size={block_size!r} is not from 1 to {len(self.data) - 1}, the words of the text.")
        self.block_size = block_size

    @property
    def vocab_size(self) -> int:
        """Different words."""
        return len(self.vocabulary)

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index={index!r} is not from 0 to {len(self) - 1}.")
        start = index * self.block_size
        return self.data[start : start + self.block_size], self.data[start + 1 : start + 1 + self.block_size]
