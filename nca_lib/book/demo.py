"""What computes in the reader's browser, in notebooks and in pages alike (chapters 1 to 9).

In Jupyter these are widgets that need no kernel once they are shown; while the book is built (environment
variable `NCA_LIB_BOOK`) they are HTML that holds everything needed.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor

from nca_lib import weights
from nca_lib.automaton import GrowingNCA
from nca_lib.book.export import export, rounded
from nca_lib.book.figures import to_uint8
from nca_lib.book.film import encoded, stills
from nca_lib.book.pages import WEB, bundle, page
from nca_lib.book.painting import image_of_waves, wave_mask
from nca_lib.book.players import LivingAutomaton, message_states
from nca_lib.canvas.tiles import sample_region
from nca_lib.cascade import Cascade
from nca_lib.diffusion import Denoiser, ScheduleName, noise_schedule
from nca_lib.errors import UsageError
from nca_lib.evaluation.metrics import measurements, numbers
from nca_lib.extras import extra
from nca_lib.samplers import sample

with extra("book"):
    import anywidget
    import traitlets
    from IPython.display import HTML

COSTS = ("parameters", "operations", "training_seconds", "images_seen")
_LOWER = ("distance", "loss", "copies", "seconds", "operations", "parameters", "calls")
_HIGHER = ("precision", "recall", "coherence", "accuracy", "digits.")


class Demo(anywidget.AnyWidget):
    """A component of `web/` with the traits that it is given."""

    def __init__(self, module: str, data: dict[str, Any]):
        self.module = module
        self.add_traits(**{name: traitlets.Any().tag(sync=True) for name in data})
        super().__init__(_esm=bundle(module), **data)


def growing_demo() -> Demo | HTML:
    """The growing automaton, trained to grow, to persist or to regenerate; erase it, plant it."""
    names = {regime: f"growing-{regime}" for regime in ("grow", "persist", "regenerate")}

    def still() -> Tensor:
        living = LivingAutomaton(cast(GrowingNCA, weights.load("growing-regenerate")), 40)
        living.live(80)
        return living.picture()

    on_paper = "Grown in 80 steps. In the web page and in Jupyter (make lab) it lives on, and can be hurt."
    return _automaton("growing.js", names, "a growing automaton", still, on_paper)


def diffusion_demo(name: str = "web-tissue") -> Demo | HTML:
    """Diffusion by an automaton: draw tissue from noise step by step, look inside, take a hand.

    Args:
        name: of a model in `web/`, as `python -m nca_lib export-web` writes it.

    Raises:
        FileNotFoundError: there is no such model.
    """

    def still() -> Tensor:
        return sample(weights.load(name), (40, 40), steps=20, seed=1)[0]

    on_paper = "Seed 1, twenty calls. In the web page and in Jupyter (make lab) you stop it, and take a hand."
    return _automaton("diffusion.js", {name: name}, "tissue, drawn by an automaton", still, on_paper)


def digits_demo(name: str = "web-digits") -> Demo | HTML:
    """Sixteen digits at once by the dense network: sampler, calls and seed act while they are moved.

    Args:
        name: of a model in `web/`, as `python -m nca_lib export-web` writes it.
    """
    model = json.loads((WEB / f"{name}.json").read_text())
    del model["golden"]
    label = "sixteen digits, drawn from noise"
    return _shown("digits.js", {"weights": {name: model}, "label": label}, {})


def endless_plane(
    model: Denoiser,
    name: str = "web-tissue",
    *,
    y: int = 0,
    x: int = 0,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
    steps: int = 6,
) -> Demo | HTML:
    """Move a window over the endless image of [`sample_region`][nca_lib.canvas.tiles.sample_region].

    Args:
        model: what [`export`][nca_lib.book.export.export] takes; some 25,000 parameters are swift enough.
        name: of the model, for the code that is shown.
        y: row of the first window's first pixel.
        x: its column.
        height: of the window.
        width: of the window.
        seed: of the image.
        steps: denoiser calls, by DDIM.

    Raises:
        ExportError: the browser cannot run the model; the message names the setting.
    """
    exported = export(model, steps)
    del exported["golden"]
    first = sample_region(rounded(model), y, x, height, width, seed, steps=steps)  # type: ignore[arg-type]
    data = {
        "engine": bundle("sampling.js"),
        "weights": {name: exported},
        "image": _bytes(first),
        "label": "a window of an endless image",
        **{"height": height, "width": width, "y": y, "x": x, "seed": seed, "steps": steps},
    }
    on_paper = "A window of the endless image. In the web page and in Jupyter (make lab) you move it."
    return _shown(
        "plane.js", data, {"a window of an endless image, drawn by an automaton": first[0]}, on_paper
    )


# A layout's colours, in [-1, 1]: close to the photograph's at an eighth of its scale.
_TISSUE = {"gland": (0.2, -0.1, -0.4), "stroma": (0.52, 0.46, 0.42), "lumen": (0.85, 0.85, 0.88)}


def layout_painter(model: Cascade, code: str, *, side: int = 32, steps: int = 8) -> Demo | HTML:
    """Paint where glands are to be; a coarse level draws the sketch anew, and a finer one tissue in it.

    Args:
        model: a cascade of two levels that [`export`][nca_lib.book.export.export] takes.
        code: what loads it, for the code that is shown.
        side: height and width of the sketch, in cells of the coarse level.
        steps: denoiser calls of each level, by DDIM.

    Raises:
        ExportError: the browser cannot run the model; the message names the setting.
    """
    weights = export(model, steps)
    del weights["golden"]
    sketch, size = gland_sketch(side)[None], (side * model.factor, side * model.factor)
    drawn = sample(rounded(model).laid_out(sketch), size, steps=steps)  # type: ignore[operator]
    data = {
        "engine": bundle("sampling.js"),
        "weights": {code: weights},
        "layout": _bytes(sketch),
        "image": _bytes(drawn),
        "side": side,
        "colours": {name: list(colour) for name, colour in _TISSUE.items()},
        "label": "a sketch of tissue, and the tissue that is drawn in it",
    }
    still = {"a sketch of a gland": sketch[0], "tissue drawn in the sketch": drawn[0]}
    return _shown("layout.js", data, still)


def gland_sketch(side: int) -> Tensor:
    """A gland as a child would draw it, a ring around a lumen in stroma: (3, side, side) in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = ((y - (side - 1) / 2) ** 2 + (x - (side - 1) / 2) ** 2).sqrt() / side
    gland, stroma, lumen = (torch.tensor(colour).view(3, 1, 1) for colour in _TISSUE.values())
    return torch.where(distance < 0.16, lumen, torch.where(distance < 0.38, gland, stroma))


def noise_explorer(images: Tensor, timesteps: int = 300) -> Demo | HTML:
    """See images sink into noise, and where on the schedule: choose schedule, timestep and image.

    Args:
        images: (N, C, H, W) in [-1, 1].
        timesteps: T of the schedules.
    """
    names = get_args(ScheduleName)
    data = {
        "schedules": {name: noise_schedule(name, timesteps).alpha_bar.tolist() for name in names},
        "images": _bytes(images),
        "count": len(images),
        **_shape(images[0]),
        "label": "an image, noise, and the image with the noise",
    }
    half = noise_schedule("cosine", timesteps).add_noise(
        images[:1], torch.tensor([timesteps // 3]), torch.randn_like(images[:1])
    )
    still = {"an image": images[0], "the same image with noise": half[0]}
    return _shown("forward.js", data, still)


def message_player(size: int = 33) -> Demo | HTML:
    """See how far one message has travelled after k steps: in image space, and by way of the spectrum.

    Args:
        size: height and width of the grid.
    """
    local, everywhere = list(message_states(size // 2, size // 2, size, size // 4))[-1]
    still = {
        "a message in image space": (1 - 2 * (local > 0).float())[None],
        "the message in frequency space": (1 - 2 * (everywhere > 0).float())[None],
    }
    data = {"size": size, "label": "how far a message has come in image space and in frequency space"}
    return _shown("messages.js", data, still)


def spectrum_painter(image: Tensor, frequencies: int = 16) -> Demo | HTML:
    """Paint on the spectrum of an image, frequency 0 in the middle, and see what the painted waves make.

    What is painted at a frequency is painted at its negative too: both belong to the same wave. Waves outside
    of the spectrum shown are always left out.

    Args:
        image: (C, H, W) in [-1, 1].
        frequencies: how many per axis are shown, 0 included.

    Raises:
        UsageError: an image smaller than `2 * frequencies`.
    """
    if min(image.shape[1:]) < 2 * frequencies:
        raise UsageError(
            f"the image is {image.shape[2]}x{image.shape[1]} (width x height); {frequencies} frequencies "
            f"need at least {2 * frequencies}x{2 * frequencies}"
        )
    kept = wave_mask("half_plane", frequencies // 2, frequencies)
    still = {"an image": image, "the image rebuilt from some of its waves": image_of_waves(image, kept)}
    data = {
        "image": _bytes(image[None]),
        **_shape(image),
        "frequencies": frequencies,
        "label": "the spectrum of an image, and the image of its painted waves",
    }
    return _shown("spectrum.js", data, still)


def results_explorer(rows: list[dict[str, Any]]) -> Demo | HTML:
    """Plot any measured quantity of the results table against any other, one data set at a time.

    Of a training with snapshots only its end is shown. A dashed line is the floor: what real images score
    against real images.

    Args:
        rows: of the results table that `python -m nca_lib run` writes.

    Raises:
        UsageError: no row has a metric.
    """
    ends: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        training = (row["matrix"], row["name"])
        if "metrics" in row and row["images_seen"] >= ends.get(training, row)["images_seen"]:
            ends[training] = row  # some rows are of trainings without an evaluation
    rows = list(ends.values())
    metrics = list(dict.fromkeys(name for row in rows for name in measurements(row["metrics"])))
    if not metrics:
        raise UsageError("no results to show: `python -m nca_lib run MATRIX.toml` makes some")
    points = [
        {
            "name": row["name"],
            "group": row["experiment"]["model"]["kind"],
            "data": row["experiment"]["data"]["kind"],
            "numbers": numbers({c: row.get(c) for c in COSTS}) | measurements(row["metrics"]),
            "floor": measurements(row["floor"]),
        }
        for row in rows
    ]
    quantities = [*COSTS, *metrics]
    data = {
        "rows": points,
        "costs": list(COSTS),
        "words": {name: _words(name) for name in quantities},
        "better": {name: _better(name) for name in quantities},
        "kind": "data",
        "joined": False,
        "label": "results of models against each other",
    }
    return _shown("results.js", data, {})


def calls_explorer(rows: list[dict[str, Any]]) -> Demo | HTML:
    """Plot quality against denoiser calls, or against seconds: a line for each sampler, one model at a time.

    Bars are one standard error, a dashed line is what real images score against real images.

    Args:
        rows: as `benchmarks/calls.py` writes them; those whose cells fire otherwise than in training are left
            out.
    """
    points = [
        {
            "name": str(row["calls"]),
            "group": row["sampler"],
            "data": row["model"],
            "numbers": {
                "calls": row["calls"],
                "seconds": row["seconds"] / row["count"],
                **{eye: found["frechet_distance"] for eye, found in row["extractors"].items()},
            },
            "errors": {eye: found["standard_error"] for eye, found in row["extractors"].items()},
            "floor": {eye: found["floor"] for eye, found in row["extractors"].items()},
        }
        for row in rows
        if row["firing"] == "fresh"
    ]
    words = {"calls": "denoiser calls", "seconds": "seconds an image"}
    words |= {eye: f"Fréchet distance ({eye})" for row in rows for eye in row["extractors"]}
    data = {
        "rows": points,
        "costs": ["calls", "seconds"],
        "words": words,
        "better": {name: "lower" for name in words},
        "kind": "model",
        "joined": True,
        "note": " The number at a point counts calls; bars are one standard error.",
        "label": "quality against denoiser calls",
    }
    return _shown("results.js", data, {})


def _words(name: str) -> str:
    """A quantity of the results as a reader calls it: `eye.frechet_distance` is "Fréchet distance (eye)"."""
    *where, what = name.split(".")
    shown = what.replace("_", " ").replace("frechet", "Fréchet")
    return f"{shown} ({' '.join(where).replace('_', ' ')})" if where else shown


def _better(name: str) -> str:
    """`"lower"` or `"higher"`, whichever is better; empty where neither is."""
    if name.endswith("_std"):
        return ""
    if any(word in name for word in _HIGHER):
        return "higher"
    return "lower" if any(word in name for word in _LOWER) else ""


def _automaton(
    module: str, names: dict[str, str], label: str, still: Callable[[], Tensor], on_paper: str
) -> Demo | HTML:
    models: dict[str, Any] = {}
    for shown, name in names.items():
        models[shown] = json.loads((WEB / f"{name}.json").read_text())
        del models[shown]["golden"]  # for tests; the page needs none
    data = {"engine": bundle("sampling.js"), "weights": models, "label": label}
    pictures = {label: still()} if "NCA_LIB_BOOK" in os.environ else {}
    return _shown(module, data, pictures, on_paper)


def _shown(module: str, data: dict[str, Any], still: dict[str, Tensor], on_paper: str = "") -> Demo | HTML:
    if "NCA_LIB_BOOK" not in os.environ:
        return Demo(module, data)
    return page(module, data, stills({label: encoded(image) for label, image in still.items()}), on_paper)


def _shape(image: Tensor) -> dict[str, int]:
    return {"channels": image.shape[0], "height": image.shape[1], "width": image.shape[2]}


def _bytes(images: Tensor) -> str:
    """Images (N, C, H, W) in [-1, 1] as bytes, channels last, in base64."""
    pixels = [to_uint8(image)[..., : image.shape[0]] for image in images]
    return base64.b64encode(b"".join(values.tobytes() for values in pixels)).decode()
