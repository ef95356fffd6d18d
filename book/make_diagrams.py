"""Draw the book's diagrams: `python book/make_diagrams.py` writes them as SVG into `_static`.

They are 360 units wide, so that their letters are still read on a telephone, and have no ground and no ink of
their own: pages hold them as part of their text (`_extensions/nca_pages.py`), in the ink of their theme.
"""

import itertools
import math
from pathlib import Path
from xml.sax.saxutils import escape

from nca_lib.baselines import UNET_SIZES, UNet
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.experiments.matrix import operations

STATIC = Path(__file__).parent / "_static"
WIDTH = 360
BLUE, ORANGE, GREEN, PLAIN = "#4a80b8", "#c9622a", "#4f963e", "#808080"
INK = "#79797d"  # where the file is seen by itself, on white or on black


class Drawing:
    """Shapes on a sheet whose y axis points down."""

    def __init__(self, height: int):
        self.height, self.shapes = height, []

    def box(
        self, x: float, y: float, width: float, height: float, colour: str
    ) -> None:
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'fill="{colour}" fill-opacity="0.18" stroke="{colour}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        bold: bool = False,
        size: int = 12,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a tip at the last."""
        (x0, y0), (x, y) = points[-2:]
        length = math.hypot(x - x0, y - y0)
        dx, dy = 6 * (x - x0) / length, 6 * (y - y0) / length
        path = " L".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(
            f'<path d="M{path}" fill="none" stroke="currentColor"/>'
            f'<path d="M{x:g},{y:g} L{x - dx - dy / 2:.4g},{y - dy + dx / 2:.4g} '
            f'L{x - dx + dy / 2:.4g},{y - dy - dx / 2:.4g} z"/>'
        )

    def row(self, y: float, name: str, shape: str, colour: str) -> None:
        """A box of what is computed, with the shape of the result at its right."""
        self.box(44, y, 204, 30, colour)
        self.text(146, y + 19, name, anchor="middle")
        self.text(258, y + 19, shape, size=11)

    def svg(self) -> str:
        body = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" class="diagram" '
            f'color="{INK}" fill="currentColor" font-family="system-ui, sans-serif">\n{body}\n</svg>\n'
        )


def channels(
    drawing: Drawing, y: float, parts: list[tuple[str, int, str]]
) -> None:
    """The numbers of one cell, a square for each; parts are (name, count, colour)."""
    total = sum(count for _, count, _ in parts)
    side, x = 204 / total, 44.0
    for name, count, colour in parts:
        for n in range(count):
            drawing.box(x + n * side, y, side, 16, colour)
        drawing.text(
            x + count * side / 2, y + 30, name, anchor="middle", size=11
        )
        x += count * side


def steps_down(drawing: Drawing, tops: list[float], height: float = 30) -> None:
    """An arrow from each row to the next."""
    for above, below in itertools.pairwise(tops):
        drawing.arrow((146, above + height), (146, below - 1))


def growing_cell() -> str:
    """Chapter 1: one step of a growing automaton."""
    drawing = Drawing(384)
    drawing.text(44, 14, "what a cell holds: 16 numbers", bold=True)
    channels(
        drawing,
        22,
        [("colour", 3, ORANGE), ("α", 1, GREEN), ("hidden", 12, PLAIN)],
    )
    drawing.text(258, 34, "(B, 16, H, W)", size=11)
    rows = [
        ("perceive: itself, d/dx, d/dy", "(B, 48, H, W)", BLUE),
        ("dense layer, ReLU", "(B, 128, H, W)", PLAIN),
        ("dense layer: the update", "(B, 16, H, W)", PLAIN),
        ("× firing mask (0 or 1)", "(B, 1, H, W)", BLUE),
        ("+ what the cell held", "(B, 16, H, W)", ORANGE),
        ("× alive, before and after", "(B, 1, H, W)", GREEN),
    ]
    tops = [72 + 50 * n for n in range(len(rows))]
    for top, row in zip(tops, rows, strict=True):
        drawing.row(top, *row)
    drawing.arrow((146, 56), (146, 71))
    steps_down(drawing, tops)
    drawing.arrow((40, 30), (18, 30), (18, 287), (43, 287))
    drawing.arrow((146, 352), (146, 368))
    drawing.text(156, 372, "the state, one step later")
    return drawing.svg()


def denoising_cell() -> str:
    """Chapter 3: one step of Diff-NCA."""
    drawing = Drawing(452)
    drawing.text(44, 14, "what a cell holds: C numbers", bold=True)
    channels(
        drawing,
        22,
        [("noisy", 3, ORANGE), ("answer", 3, GREEN), ("hidden", 9, PLAIN)],
    )
    drawing.text(258, 34, "(B, C, H, W)", size=11)
    drawing.text(258, 14, "C = 48, h = 192", size=11)
    rows = [
        ("beside it: the embedding e", "(B, C + 4, H, W)", BLUE),
        ("beside that: 3×3 convolution", "(B, 2C + 4, H, W)", BLUE),
        ("× modulation by e", "(1, 2C + 4, 1, 1)", PLAIN),
        ("dense layer, norm, leaky ReLU", "(B, h, H, W)", PLAIN),
        ("× modulation by e", "(1, h, 1, 1)", PLAIN),
        ("dense layer: the update", "(B, C, H, W)", PLAIN),
        ("+ held; the noisy 3 stay", "(B, C, H, W)", ORANGE),
    ]
    tops = [84 + 48 * n for n in range(len(rows))]
    for top, row in zip(tops, rows, strict=True):
        drawing.row(top, *row)
    drawing.arrow((146, 58), (146, 83))
    steps_down(drawing, tops)
    drawing.text(258, 72, "e: t/T and k/K", size=11)
    drawing.arrow((290, 77), (290, 88), (250, 94))
    drawing.arrow((40, 30), (18, 30), (18, 387), (43, 387))
    drawing.arrow((146, 402), (146, 430))
    drawing.text(156, 436, "the state, one step later")
    return drawing.svg()


def loops() -> str:
    """Chapter 3: sampler, call, step."""
    drawing = Drawing(396)
    drawing.box(4, 4, 352, 388, BLUE)
    drawing.text(16, 24, "A sample: the sampler runs, once", bold=True)
    drawing.text(16, 42, "from noise to an image, 25 calls here;", size=11)
    drawing.text(16, 57, "it keeps the noisy image between them", size=11)
    drawing.box(22, 72, 316, 270, ORANGE)
    drawing.text(34, 92, "A call: the denoiser answers, 25 times", bold=True)
    drawing.text(34, 110, "noisy image and t in, clean estimate out;", size=11)
    drawing.text(34, 125, "answer and hidden channels start at zero", size=11)
    drawing.box(40, 140, 280, 150, GREEN)
    drawing.text(
        52, 160, "A step: the automaton runs, K = 10 a call", bold=True, size=11
    )
    drawing.text(52, 178, "every cell reads its 3×3 neighbours", size=11)
    drawing.text(52, 193, "and adds an update to what it holds", size=11)
    for row in range(4):
        for column in range(10):
            near = abs(row - 1.5) < 2 and abs(column - 3) < 2 and row < 3
            colour = (
                ORANGE if (row, column) == (1, 3) else GREEN if near else PLAIN
            )
            drawing.box(80 + 20 * column, 204 + 20 * row, 18, 18, colour)
    drawing.text(52, 310, "after K steps a cell has heard of", size=11)
    drawing.text(52, 325, "2K + 1 = 21 cells across, in this call", size=11)
    drawing.text(
        22, 362, "after 25 calls of 10 steps: 250 steps of each", size=11
    )
    drawing.text(
        22, 377, "cell, and news has come up to 250 cells far", size=11
    )
    return drawing.svg()


def two_stages() -> str:
    """Chapter 4: FourierDiff-NCA, after figure 2 of arXiv 2401.06291."""
    drawing = Drawing(520)
    drawing.row(4, "noisy image x", "(B, 3, H, W)", ORANGE)
    drawing.box(26, 56, 326, 242, BLUE)
    drawing.text(158, 75, "1  frequency space: far, coarse", bold=True, size=11)
    first = [
        ("Fourier transform", "(B, 3, H, W)", PLAIN),
        ("keep the n×n lowest", "(B, 3, n, n)", BLUE),
        ("real | imaginary, hidden: 0", "(B, 2C, n, n)", BLUE),
        ("automaton, 2n steps", "(B, 2C, n, n)", BLUE),
    ]
    tops = [86.0 + 42 * n for n in range(4)]
    for top, row in zip(tops, first, strict=True):
        drawing.row(top, *row)
    steps_down(drawing, tops)
    drawing.row(260, "back to pixels, without x", "(B, C−3, H, W)", PLAIN)
    drawing.arrow((146, 242), (146, 259))
    drawing.arrow((146, 34), (146, 85))
    drawing.box(26, 318, 326, 136, GREEN)
    drawing.text(158, 337, "2  image space: near, fine", bold=True, size=11)
    drawing.row(348, "x beside what 1 wrote", "(B, C, H, W)", ORANGE)
    drawing.row(406, "automaton, K steps", "(B, C, H, W)", GREEN)
    drawing.arrow((146, 290), (146, 347))
    drawing.arrow((146, 378), (146, 405))
    drawing.arrow((40, 19), (14, 19), (14, 363), (43, 363))
    drawing.arrow((146, 436), (146, 477))
    drawing.row(478, "its answer: 3 channels", "(B, 3, H, W)", ORANGE)
    return drawing.svg()


def _cost(model: Denoiser) -> tuple[str, str]:
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"{parameters:,} parameters",
        f"{operations(model, 64) / 1e9:.1f} GFLOP a call",
    )


def unet_and_nca() -> str:
    """Chapter 3: both networks to one scale, with what one call at 64x64 costs."""
    schedule = noise_schedule()
    published = DiffNCA(96, 512, 20)
    widths, _ = UNET_SIZES["M"]
    drawing = Drawing(384)
    drawing.text(86, 16, "a UNet", anchor="middle", bold=True)
    drawing.text(272, 16, "Diff-NCA", anchor="middle", bold=True)
    levels = [*range(len(widths)), *reversed(range(len(widths) - 1))]
    for n, level in enumerate(levels):
        width = 120 / 2**level
        drawing.box(86 - width / 2, 34 + 52 * n, width, 30, BLUE)
        drawing.text(
            86, 53 + 52 * n, f"{64 // 2**level}²", anchor="middle", size=11
        )
        if n + 1 < len(levels):
            drawing.arrow((86, 64 + 52 * n), (86, 85 + 52 * n))
    drawing.arrow((27, 49), (12, 49), (12, 257), (25, 257))
    drawing.arrow((57, 101), (40, 101), (40, 205), (55, 205))
    for n in range(20):
        drawing.box(212, 34 + 12 * n, 120, 9, GREEN)
    drawing.text(272, 288, "64² at each of 20 steps", anchor="middle", size=11)
    drawing.text(86, 288, "other weights each time", anchor="middle", size=11)
    drawing.text(272, 304, "one set of weights", anchor="middle", size=11)
    drawing.text(86, 304, "few places at the bottom", anchor="middle", size=11)
    for x, model in ((86, UNet("M")), (272, published)):
        parameters, work = _cost(Denoiser(model, schedule))
        drawing.text(x, 334, parameters, anchor="middle", bold=True)
        drawing.text(x, 352, work, anchor="middle", bold=True)
    drawing.text(
        180,
        376,
        "size M and as published, one image of 64×64",
        anchor="middle",
        size=11,
    )
    return drawing.svg()


DIAGRAMS = {
    "cell-growing.svg": growing_cell,
    "cell-denoising.svg": denoising_cell,
    "loops.svg": loops,
    "two-stages.svg": two_stages,
    "unet-and-nca.svg": unet_and_nca,
}


def main() -> None:
    """Draw them all."""
    for name, draw in DIAGRAMS.items():
        (STATIC / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
