"""What the frames of normals are like, so that a wrong or blank frame is told from a defect.

The rule: brightness is the mean of an image's pixels, and contrast their standard deviation over it, both as the
detector sees the image. The normals have a range of each (all but 1 % at each end), and of the size and aspect of their
files. A frame is unlike them where it is outside this range by more than a factor: 1.5 in brightness and in size (the
side of a square of as many pixels), 2 in contrast, 1.2 in aspect; where it is three times as near to white as the upper
end; or where it is constant, with a standard deviation below half a grey level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHITE = 255.0
_BRIGHTNESS, _NEAR_WHITE, _CONTRAST, _SIZE, _ASPECT = 1.5, 3.0, 2.0, 1.5, 1.2
_CONSTANT = 0.5
_QUANTILES = (0.01, 0.5, 0.99)
# Every second pixel of every second row is enough, and takes a quarter of the time.
_STEP = 2


@dataclass(frozen=True)
class Range:
    """The lower end, the middle and the upper end of a quantity of the normals."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Of the values of all."""
        return cls(*np.quantile(values, _QUANTILES).tolist())

    def beyond(self, value: float, factor: float) -> bool:
        """Whether a value is above 0 and further outside than this factor."""
        return value * factor < self.low or value > self.high * factor

    def words(self, value: float, factor: float, less: str, more: str) -> list[str]:
        """How many times less or more than the middle a value is, where it is beyond the factor."""
        if not self.beyond(value, factor):
            return []
        return [
            f"{_times(self.middle / value)} {less}" if value < self.low else f"{_times(value / self.middle)} {more}"
        ]


@dataclass(frozen=True)
class Frames:
    """The ranges of the normals; size and aspect (width over height) are None where they are not known."""

    brightness: Range
    contrast: Range
    size: Range | None
    aspect: Range | None

    @classmethod
    def of(cls, images: Iterable[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]] = ()) -> Frames | None:
        """Of the normals' images (H,W,3), and of widths and heights of their files; None for images all constant."""
        seen = [_look(image) for image in images]
        seen = [(brightness, deviation) for brightness, deviation in seen if deviation >= _CONSTANT]
        if not seen:
            return None
        contrasts = [deviation / brightness for brightness, deviation in seen]
        size, aspect = ([of(*one) for one in sizes] for of in (_side, _aspect))
        return cls(
            Range.of([brightness for brightness, _ in seen]),
            Range.of(contrasts),
            Range.of(size) if size else None,
            Range.of(aspect) if aspect else None,
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Frames | None:
        """What `to_state` gave."""
        if state is None:
            return None
        size, aspect = (None if state[name] is None else Range(**state[name]) for name in ("size", "aspect"))
        return cls(Range(**state["brightness"]), Range(**state["contrast"]), size, aspect)

    def to_state(self) -> dict[str, Any]:
        """As a detector stores it."""
        return asdict(self)

    def unlike(self, image: NDArray[np.uint8], size: tuple[int, int] | None = None) -> str:
        """In words how an image (H,W,3), and the width and height of its file, are unlike the normals'; "" if alike."""
        brightness, deviation = _look(image)
        words = []
        if deviation < _CONSTANT:
            words.append("constant")
        else:
            words += self._light(brightness)
            words += self.contrast.words(deviation / brightness, _CONTRAST, "less contrast", "more contrast")
        if size is not None and self.size is not None and self.aspect is not None:
            words += self.size.words(_side(*size), _SIZE, "as small", "as large")
            words += self.aspect.words(_aspect(*size), _ASPECT, "as tall for its width", "as wide for its height")
        return ", ".join(words)

    def _light(self, brightness: float) -> list[str]:
        if words := self.brightness.words(brightness, _BRIGHTNESS, "as dark", "as bright"):
            return words
        if (_WHITE - brightness) * _NEAR_WHITE < _WHITE - self.brightness.high:
            return [f"{_times(brightness / self.brightness.middle)} as bright"]
        return []


def _look(image: NDArray[np.uint8]) -> tuple[float, float]:
    """Brightness and standard deviation of an image."""
    grey = image[::_STEP, ::_STEP].mean(axis=2, dtype=np.float32)
    return float(grey.mean()), float(grey.std())


def _side(width: int, height: int) -> float:
    return float(np.sqrt(width * height))


def _aspect(width: int, height: int) -> float:
    return width / height


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.2g} times"
