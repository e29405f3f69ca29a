"""What ``self.log`` takes beside numbers: images, figures, audio, text, histograms and tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import struct
import wave
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from leyden.utils.errors import nearest, warn
from leyden.utils.paths import atomic_write, join, make_dirs

_LAYOUTS = ("CHW", "HWC")
_COLOURS = {1: 0, 3: 2, 4: 6}  # channels: PNG's number for them
_PIL_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_MOST_AUDIO_CHANNELS = 16  # more is a transposed array
_FULL_SCALE = 32767
_TABLE_CELLS = (str, int, float, type(None))


class Media:
    """A value that is no number, as the loggers get it.

    A subclass says in ``encoded`` what its file holds, and in ``suffix`` how the file's name ends; loggers that know
    its ``kind`` may show it in their own way. Tensors are copied when the value is made, on the device where they
    are, and fetched when it goes out.
    """

    is_media = True
    kind = ""
    suffix = ".bin"

    def encoded(self, name: str) -> bytes:
        """The file's bytes; waits for the device. ``name`` is for warnings."""
        raise NotImplementedError(f"{type(self).__name__} must define encoded(), which gives its file's bytes.")

    def write(self, folder: str, name: str, step: int | None) -> str:
        """Write ``folder/media/name/step_N``, local or remote; returns the file's path."""
        parts = [re.sub(r"[^\w.+=@ -]", "_", part) for part in name.split("/") if part.strip(". ")]
        target = join(folder, "media", *parts)
        content = self.encoded(name)
        make_dirs(target)
        path = join(target, f"step_{step or 0}{self.suffix}")
        with atomic_write(path) as file:
            file.write(content)
        return path


class Image(Media):
    """One image, grey, RGB or RGBA.

    Attributes:
        pixels: Shape ``(height, width, channels)``, uint8, or floats from 0 to 1.
    """

    kind = "image"
    suffix = ".png"

    def __init__(self, image: Any, layout: str | None = None) -> None:
        """Take an image.

        Args:
            image: A tensor or array, uint8 from 0 to 255, bool, or floats from 0 to 1; or an image of PIL. Its shape is
                ``(height, width)``, ``(channels, height, width)`` or ``(height, width, channels)``.
            layout: ``"CHW"`` or ``"HWC"``. Default: channels are the first dimension if it is 1, 3 or 4, else the last.

        Raises:
            TypeError: It holds other numbers.
            ValueError: It has another shape.
        """
        if layout is not None and layout not in _LAYOUTS:
            raise ValueError(f"Image(layout={layout!r}): choose 'CHW' or 'HWC'.{nearest(layout, _LAYOUTS)}")
        if hasattr(image, "tobytes") and hasattr(image, "convert"):  # PIL's
            image, layout = _pil_pixels(image), "HWC"
        pixels = _copied(image, "Image")
        if not (pixels.is_floating_point() or pixels.dtype in (torch.uint8, torch.bool)):
            raise TypeError(f"Image takes uint8 from 0 to 255 or floats from 0 to 1, got {pixels.dtype}.")
        self.pixels = _channels_last(pixels, layout)

    def encoded(self, name: str) -> bytes:
        """A PNG."""
        return png(self.as_bytes(name))

    def as_bytes(self, name: str) -> Tensor:
        """The pixels as uint8 on the CPU, ``(height, width, channels)``."""
        pixels = self.pixels.cpu()
        if pixels.dtype == torch.bool:
            return pixels.to(torch.uint8) * 255
        if pixels.dtype == torch.uint8:
            return pixels
        pixels = pixels.float()
        if bool(((pixels < 0) | (pixels > 1) | pixels.isnan()).any()):
            warn(
                "LD210",
                f"The image {name!r} has values from {pixels.min():.4g} to {pixels.max():.4g}: those outside of 0 to 1 "
                "are cut off. Scale them, or convert values up to 255 by .to(torch.uint8).",
                subject=name,
            )
        return (pixels.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)


class Figure(Media):
    """A figure of matplotlib, or whatever has its ``savefig``; drawn when it goes out, as it is then."""

    kind = "image"
    suffix = ".png"

    def __init__(self, figure: Any) -> None:
        if not hasattr(figure, "savefig"):
            raise TypeError(f"Figure takes a matplotlib figure, got {type(figure).__name__}: {figure!r}.")
        self.figure = figure

    def encoded(self, name: str) -> bytes:
        """A PNG."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png")
        return file.getvalue()


class Audio(Media):
    """Sound.

    Attributes:
        samples: Shape ``(channels, samples)``, int16, or floats from -1 to 1.
        sample_rate: Samples a second.
    """

    kind = "audio"
    suffix = ".wav"

    def __init__(self, samples: Any, sample_rate: int) -> None:
        """Take a tensor or array, ``(samples,)`` or ``(channels, samples)``, of int16 or floats from -1 to 1.

        Raises:
            TypeError: It holds other numbers.
            ValueError: It has another shape, or ``sample_rate`` is not a whole number from 1.
        """
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or sample_rate < 1:
            raise ValueError(f"Audio(sample_rate={sample_rate!r}) is not a whole number of samples a second.")
        found = _copied(samples, "Audio")
        if not (found.is_floating_point() or found.dtype == torch.int16):
            raise TypeError(f"Audio takes floats from -1 to 1 or int16, got {found.dtype}.")
        if found.ndim == 1:
            found = found[None]
        if found.ndim != 2 or not 0 < found.shape[0] <= _MOST_AUDIO_CHANNELS:
            raise ValueError(
                f"Audio takes the shape (samples,) or (channels, samples), with {_MOST_AUDIO_CHANNELS} channels at "
                f"most, got {tuple(found.shape)}."
            )
        self.samples, self.sample_rate = found, sample_rate

    def encoded(self, name: str) -> bytes:
        """A WAV of 16 bits a sample."""
        samples = self.samples.cpu()
        if samples.is_floating_point():
            samples = samples.float()
            if bool((~(samples.abs() <= 1)).any()):
                warn(
                    "LD211",
                    f"The audio {name!r} goes beyond -1 to 1: what is beyond is cut off. Divide by .abs().max().",
                    subject=name,
                )
            samples = (samples.nan_to_num(0).clamp(-1, 1) * _FULL_SCALE).round().to(torch.int16)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(samples.shape[0])
            writer.setsampwidth(2)
            writer.setframerate(self.sample_rate)
            writer.writeframes(samples.T.contiguous().numpy().astype("<i2").tobytes())
        return file.getvalue()


class Text(Media):
    """Text; TensorBoard reads it as Markdown."""

    kind = "text"
    suffix = ".txt"

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"Text takes a str, got {type(text).__name__}: {text!r}.")
        self.text = text

    def encoded(self, name: str) -> bytes:
        """UTF-8."""
        return self.text.encode()


class Histogram(Media):
    """How numbers are distributed.

    Attributes:
        values: The numbers, shape ``(n,)``.
        bins: Of the file; TensorBoard has its own.
    """

    kind = "histogram"
    suffix = ".json"

    def __init__(self, values: Any, bins: int = 64) -> None:
        """Take a tensor or array of any shape.

        Raises:
            TypeError: It holds complex numbers.
            ValueError: It is empty, or ``bins`` is not a whole number from 1.
        """
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
            raise ValueError(f"Histogram(bins={bins!r}) is not a whole number from 1.")
        found = _copied(values, "Histogram")
        if found.is_complex():
            raise TypeError(f"Histogram takes real numbers, got {found.dtype}. Give .abs().")
        if not found.numel():
            raise ValueError(f"Histogram takes numbers, got none: the shape is {tuple(found.shape)}.")
        self.values, self.bins = found.reshape(-1), bins

    def finite(self, name: str) -> Tensor:
        """The finite numbers, on the CPU, float32 or float64."""
        values = self.values.cpu()
        values = values.to(torch.float64 if values.dtype in (torch.float64, torch.int64) else torch.float32)
        finite = values[values.isfinite()]
        if missing := values.numel() - finite.numel():
            warn(
                "LD212",
                f"The histogram {name!r} leaves out {missing} of {values.numel()} numbers that are infinite or NaN.",
                subject=name,
            )
        return finite

    def encoded(self, name: str) -> bytes:
        """JSON: ``{"edges": [...], "counts": [...]}``, with one edge more than counts; both empty without a number."""
        values = self.finite(name)
        if not values.numel():
            return b'{"edges": [], "counts": []}'
        counts, edges = torch.histogram(values.double(), self.bins)
        return json.dumps({"edges": edges.tolist(), "counts": [int(count) for count in counts.tolist()]}).encode()


class Table(Media):
    """Rows of text and numbers under a header.

    Attributes:
        columns: The header.
        rows: The cells, row by row; a cell may be a tensor with one element.
    """

    kind = "table"
    suffix = ".csv"

    def __init__(self, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Take a header, and rows of as many cells.

        Raises:
            TypeError: A cell is neither text, a number, None nor a tensor with one element.
            ValueError: A row has more or fewer cells than there are columns.
        """
        self.columns = [str(column) for column in columns]
        self.rows = [[_cell(cell) for cell in row] for row in rows]
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"Table: row {index} has {len(row)} cells, and there are {len(self.columns)} columns.")

    def plain(self) -> list[list[Any]]:
        """The rows without tensors; waits for the device."""
        return [[cell.item() if isinstance(cell, Tensor) else cell for cell in row] for row in self.rows]

    def encoded(self, name: str) -> bytes:
        """CSV."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.plain()])
        return text.getvalue().encode()

    def markdown(self) -> str:
        """The table in Markdown."""
        rows = [self.columns, ["---"] * len(self.columns), *self.plain()]
        return "\n".join(f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows)


def as_media(value: Any) -> Media:
    """``value`` as loggers take it: a figure of matplotlib becomes a Figure."""
    return value if isinstance(value, Media) else Figure(value)


def png(pixels: Tensor) -> bytes:
    """A PNG of ``pixels``, uint8 on the CPU, shape ``(height, width, 1, 3 or 4)``."""
    height, width, channels = pixels.shape
    # Every row begins with the number of its filter: 0, none.
    rows = torch.zeros(height, 1 + width * channels, dtype=torch.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.numpy().tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _copied(values: Any, what: str) -> Tensor:
    """A tensor that stays as it is while training goes on."""
    if isinstance(values, Tensor):
        return values.detach().clone()
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} takes a tensor or an array, got {type(values).__name__}: {values!r}.") from error


def _pil_pixels(image: Any) -> Tensor:
    if image.mode not in _PIL_CHANNELS:
        image = image.convert("RGB")
    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(height, width, _PIL_CHANNELS[image.mode])


def _channels_last(pixels: Tensor, layout: str | None) -> Tensor:
    if pixels.ndim == 2 and layout is None:
        pixels = pixels[:, :, None]
    elif pixels.ndim == 3 and (layout or ("CHW" if pixels.shape[0] in _COLOURS else "HWC")) == "CHW":
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in _COLOURS or not math.prod(pixels.shape):
        batch = " For a batch, log images[0], or a grid by torchvision.utils.make_grid." if pixels.ndim == 4 else ""
        raise ValueError(
            "Image takes the shape (height, width), (channels, height, width) or (height, width, channels), with 1, 3 "
            f"or 4 channels, got {tuple(pixels.shape)}{f', layout={layout!r}' if layout else ''}.{batch}"
        )
    return pixels


def _cell(cell: Any) -> Any:
    if isinstance(cell, Tensor) and cell.numel() == 1:
        return cell.detach().clone()
    if hasattr(cell, "item") and getattr(cell, "size", None) == 1:  # NumPy's
        return cell.item()
    if not isinstance(cell, _TABLE_CELLS):
        raise TypeError(f"Table: a cell is text, a number, None or a tensor with one element, got {cell!r}.")
    return cell


def _markdown_cell(cell: Any) -> str:
    text = f"{cell:.6g}" if isinstance(cell, float) else "" if cell is None else str(cell)
    return text.replace("|", "\\|").replace("\n", "<br>")
