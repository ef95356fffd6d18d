"""Make the pictures of the book that take minutes: `python book/make_pictures.py`.

Each is what `python -m nca_lib sample` gives for the size, seed and steps below, saved as JPEG.
"""

from importlib import resources
from pathlib import Path

import torch
from PIL import Image

import nca_lib
from nca_lib.automaton import states, to_rgb
from nca_lib.book.figures import to_uint8
from nca_lib.devices import compile_step, computes_bf16
from nca_lib.noise import CounterNoise, firing_from
from nca_lib.samplers import dpm_solver

STATIC = Path(__file__).parent / "_static"
GAP = 6  # pixels between pictures


def tissue(
    model: torch.nn.Module,
    size: tuple[int, int],
    count: int,
    seed: int,
    steps: int,
) -> torch.Tensor:
    """Images in [-1, 1], in mixed precision where the processor has it."""
    cpu = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16(cpu)):
        return nca_lib.sample(
            model,
            size,
            count=count,
            steps=steps,
            seed=seed,
        )


def tissue_from_coarse_to_fine() -> torch.Tensor:
    """Glands and stroma at the photograph's full scale, (3, 512, 1040)."""
    cascade = nca_lib.load("tissue-cascade")
    return nca_lib.sample(
        cascade, (512, 1040), sampler=dpm_solver, steps=12, seed=5
    )[0]


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height in a row."""
    width = sum(picture.width + GAP for picture in pictures) - GAP
    row = Image.new("RGB", (width, pictures[0].height), "white")
    x = 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width + GAP
    return row


def below(rows: list[Image.Image]) -> Image.Image:
    """Pictures of one width in a column."""
    height = sum(row.height + GAP for row in rows) - GAP
    column = Image.new("RGB", (rows[0].width, height), "white")
    y = 0
    for row in rows:
        column.paste(row, (0, y))
        y += row.height + GAP
    return column


def save(picture: Image.Image, name: str) -> None:
    """Write a JPEG and say so."""
    picture.save(STATIC / name, quality=86, optimize=True)
    print(f"{name}: {picture.width}x{picture.height}", flush=True)


def growth() -> Image.Image:
    """Six moments of a growing automaton, in a row."""
    automaton = nca_lib.load("growing-regenerate")
    with firing_from(automaton, CounterNoise(0)), torch.no_grad():
        grown = list(states(automaton, automaton.seed(36), 80))
    moments = [grown[k] for k in (0, 8, 16, 28, 44, 79)]
    stills = [
        Image.fromarray(to_uint8(to_rgb(state)[0] * 2 - 1)) for state in moments
    ]
    return beside(
        [still.resize((168, 168), Image.Resampling.NEAREST) for still in stills]
    )


def portraits() -> Image.Image:
    """The first sixteen samples of the shipped model of faces, enlarged."""
    grid = (
        resources.files("nca_lib")
        / "experiments"
        / "results"
        / "faces-fourier.png"
    )
    with resources.as_file(grid) as path:
        rows = Image.open(path).convert("RGB")
    rows = rows.crop((0, 0, rows.width, 67))
    size = rows.width * 3, rows.height * 3
    return rows.resize(size, Image.Resampling.NEAREST)


def main() -> None:
    """Make them all."""
    model = nca_lib.load("tissue-diff-nca")
    compile_step(model, torch.device("cpu"))
    four = [
        Image.fromarray(to_uint8(image))
        for image in tissue(model, (256, 256), 4, 0, 50)
    ]
    save(below([beside(four[:2]), beside(four[2:])]), "tissue-256.jpg")
    large = Image.fromarray(to_uint8(tissue(model, (512, 512), 1, 0, 50)[0]))
    save(large, "tissue-512.jpg")
    strip = Image.fromarray(to_uint8(tissue(model, (512, 2048), 1, 1, 25)[0]))
    save(strip, "tissue-strip.jpg")
    portraits().save(STATIC / "portraits.png", optimize=True)
    glands = Image.fromarray(to_uint8(tissue_from_coarse_to_fine()))
    save(glands, "tissue-glands.jpg")
    cells = growth()
    save(below([cells, glands.crop((0, 0, cells.width, 360))]), "banner.jpg")


if __name__ == "__main__":
    main()
