"""Enums whose members are strings."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from leyden.utils.errors import nearest

E = TypeVar("E", bound="LightningEnum")


class LightningEnum(str, Enum):
    """An enum whose members equal their values, in upper and lower case alike."""

    @classmethod
    def from_str(cls: type[E], value: str) -> E:
        """The member of that name or value, in upper or lower case.

        Raises:
            ValueError: There is none.
        """
        if (found := cls.try_from_str(value)) is None:
            known = [member.value for member in cls]
            raise ValueError(
                f"{value!r} is unknown. Choose one of: {', '.join(map(str, known))}.{nearest(value, map(str, known))}"
            )
        return found

    @classmethod
    def try_from_str(cls: type[E], value: str) -> E | None:
        """The member of that name or value, in upper or lower case; None if there is none."""
        wanted = value.lower()
        return next((member for member in cls if wanted in (member.name.lower(), member.value.lower())), None)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):
            return self is other
        return isinstance(other, str) and self.value.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.value.lower())


class GradClipAlgorithmType(LightningEnum):
    """Ways to clip gradients: ``Trainer(gradient_clip_algorithm=)``."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_types() -> list[str]:
        """All values."""
        return [member.value for member in GradClipAlgorithmType]

    @staticmethod
    def supported_type(val: str | GradClipAlgorithmType) -> bool:
        """True when ``val`` is one of them."""
        return GradClipAlgorithmType.try_from_str(val) is not None
