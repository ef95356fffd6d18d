"""What is painted on: a brush, a picture of one's own, images rebuilt from waves (chapters 4, 6)."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.book.figures import image_bytes
from nca_lib.book.pages import bundle
from nca_lib.data.files import read
from nca_lib.errors import DataError, UsageError
from nca_lib.extras import extra
from nca_lib.fourier import Window, image_of_window, spectrum_window

with extra("book"):
    import anywidget
    import traitlets


def _received(value: Any, _: Any) -> bytes:
    return bytes(value)  # the front end's buffers arrive as memoryviews


class Brush(anywidget.AnyWidget):
    """A picture to paint on with mouse, finger or keyboard.

    `value` is what is painted, a boolean tensor (height, width), new after every stroke; `mask` is the same
    as bytes, row by row. Set `mask` to change what is painted from Python, and `picture` (PNG) to change what
    is painted on. `drawn` is set whenever a page has drawn what `show` told it to where it can be seen: who
    waits for it before the next never sends more than the page can show, and nothing while nobody looks.

    Args:
        image: the picture, (C, H, W) in [-1, 1].
        fleeting: what is painted is told at once, again and again during a stroke, and does not stay.
        on_change: called with `value` after every stroke.
        label: says to those who cannot see it what is painted on.

    Raises:
        UsageError: a mask of another size is set.
    """

    _esm = bundle("brush.js")
    picture = traitlets.Bytes().tag(sync=True)
    number = traitlets.Int().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    fleeting = traitlets.Bool().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    mask = traitlets.Bytes().tag(sync=True, from_json=_received)
    value = traitlets.Any()

    def __init__(
        self,
        image: Tensor,
        *,
        fleeting: bool = False,
        on_change: Callable[[Tensor], None] | None = None,
        label: str = "a picture to paint on",
    ):
        height, width = image.shape[1:]
        super().__init__(
            picture=image_bytes(image),
            height=height,
            width=width,
            fleeting=fleeting,
            label=label,
            mask=bytes(height * width),
        )
        self.drawn = threading.Event()
        self.on_msg(self._hear)
        self._read_mask()
        self.observe(self._read_mask, "mask")
        if on_change:
            self.observe(lambda change: on_change(change["new"]), "value")

    def show(self, image: Tensor) -> None:
        """Paint on this image (C, H, W) from now on. Each counts: one that equals the last is drawn too.

        On an image of another size nothing is painted yet.
        """
        height, width = image.shape[1:]
        with self.hold_sync():
            if (height, width) != (self.height, self.width):
                self.height, self.width = height, width
                self.mask = bytes(height * width)
            self.picture = image_bytes(image)
            self.number += 1

    @traitlets.validate("mask")
    def _check_mask(self, proposal: dict[str, Any]) -> bytes:
        if len(proposal["value"]) != self.height * self.width:
            raise UsageError(
                f"the mask has {len(proposal['value'])} bytes; {self.height} rows of {self.width} cells need "
                f"{self.height * self.width}"
            )
        return proposal["value"]

    def _read_mask(self, _: Any = None) -> None:
        self.value = self._cells(self.mask)

    def _cells(self, mask: bytes) -> Tensor:
        return torch.from_numpy(np.frombuffer(mask, np.uint8).reshape(self.height, self.width) > 0)

    def _hear(self, _: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        if content["event"] == "drawn":
            self.drawn.set()
        else:  # painted; a message, not a trait: the same stroke twice counts twice
            self.value = self._cells(bytes(buffers[0]))


UPLOAD_BYTES = 8_000_000  # a Jupyter server takes messages of 10 MB
UPLOAD_PIXELS = 16_000_000


class Upload(anywidget.AnyWidget):
    """A picture of the reader's own: `value` holds the file's bytes, none if there is no picture.

    Args:
        label: beside the button.
    """

    _esm = bundle("upload.js")
    label = traitlets.Unicode().tag(sync=True)
    most = traitlets.Int(UPLOAD_BYTES).tag(sync=True)
    value = traitlets.Bytes().tag(sync=True, from_json=_received)

    def __init__(self, label: str = "own picture"):
        super().__init__(label=label)


def own_image(content: bytes, size: tuple[int, int], channels: int = 3) -> Tensor:
    """A picture file of any mode as an image (channels, height, width) in [-1, 1].

    Its middle is cut out in the shape wanted, and reduced or enlarged to the size.

    Args:
        content: the file's bytes.
        size: (height, width).
        channels: 1 or 3.

    Raises:
        DataError: it is no picture, or has more than 16 million pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "the picture"
        path.write_bytes(content)
        try:
            image, _ = read(path, UPLOAD_PIXELS)
        except DataError as error:  # without the folder, and without advice for the command line
            raise DataError(str(error).replace(str(path), "the picture").partition(";")[0]) from error
    _, height, width = image.shape
    scale = min(height / size[0], width / size[1])
    rows, columns = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = image[None, :, top : top + rows, left : left + columns]
    fitted = F.interpolate(middle, size, mode="bilinear", antialias=True)[0].clamp(-1, 1)
    return fitted if channels == 3 else fitted.mean(0, keepdim=True)


def mask_bytes(mask: Tensor) -> bytes:
    """A boolean mask (H, W) in the form of [`Brush`][]'s `mask`."""
    return mask.to(torch.uint8).numpy().tobytes()


def wave_mask(preset: Window | Literal["all"], low: int, frequencies: int) -> Tensor:
    """Which cells of the centred spectrum hold the waves of a window, and their conjugates.

    Args:
        preset: `"quadrant"` or `"half_plane"`, as for [`spectrum_window`][] with n = `low`; or `"all"`.
        low: how many frequencies per axis, 0 included.
        frequencies: of the spectrum, whose middle cell is frequency 0.

    Returns:
        (2 * frequencies - 1, 2 * frequencies - 1), boolean, symmetric through the centre.
    """
    k = torch.arange(1 - frequencies, frequencies)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    if preset == "all":
        return torch.ones_like(ky, dtype=torch.bool)
    inside = (ky.abs() < low) & (kx.abs() < low)
    return inside & (ky * kx >= 0) if preset == "quadrant" else inside


def log_spectrum(image: Tensor, frequencies: int) -> Tensor:
    """The magnitude of an image's low frequencies as a picture, frequency 0 in the middle.

    Args:
        image: (C, H, W), real.
        frequencies: n, how many per axis, 0 included.

    Returns:
        (1, 2n-1, 2n-1) in [-1, 1]: the logarithm of the mean over channels, smallest to largest.
    """
    half = spectrum_window(image[None], "half_plane", frequencies)[0].abs().mean(0)
    full = torch.cat([half.flip(0, 1)[:, :-1], half], dim=1)  # |X(-k)| = |X(k)|
    logarithm = (full + 1e-4 * full.max()).log()
    low, high = logarithm.min(), logarithm.max()
    return ((logarithm - low) / (high - low) * 2 - 1)[None]


def image_of_waves(image: Tensor, kept: Tensor) -> Tensor:
    """Rebuild an image from those of its waves that are kept.

    Args:
        image: (C, H, W), real.
        kept: cells of the centred spectrum, (2n-1, 2n-1), boolean, symmetric through the centre. Waves of
            frequency n and more are left out.

    Returns:
        Like `image`. Waves count in full, other than in [`image_of_window`][] of a quadrant.
    """
    frequencies = (len(kept) + 1) // 2
    half = spectrum_window(image[None], "half_plane", frequencies) * kept[:, frequencies - 1 :]
    return image_of_window(half, "half_plane", *image.shape[1:])[0]
