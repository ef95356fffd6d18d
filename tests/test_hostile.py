"""Hypothesis drives the command line and the public functions: what is wrong is a line, never a traceback."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from nca_lib import weights
from nca_lib.__main__ import main
from nca_lib.data.files import read
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.editing import inpaint, interpolate, upscale, vary
from nca_lib.errors import NCAError
from nca_lib.experiments.settings import Experiment
from nca_lib.samplers import SAMPLERS, sample

few = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# Small enough to be done, or such as no machine can do; nothing between.
HUGE = "9" * 30
NUMBERS = ["1", "2", "8", "0", "-1", "1e3", "2.5", "nan", "inf", "", "x", HUGE, f"-{HUGE}", "0x10", "٣"]
DEVICES = ["cpu", "cpu:0", "cpu:99", "CPU", "cuda", "cuda:99", "cuda:-1", "mps", "meta", "xla", "", ":", "\0"]
SIZES = ["8x8", "8X8", "8", "x", "8x", "0x8", "-8x8", "8x8x8", "999999999x8", "1x1", "nanx8", "8.0x8", ""]
PATHS = ["x.png", "x.txt", "x.psd", ".", "", "no/x.png", "x" * 300 + ".png", "/dev/null", "x\0.png"]
MODELS = ["digits-mlp", "growing-grow", "nonsense", "", "x.safetensors", "../digits-mlp", "\0"]
number, size, path = st.sampled_from(NUMBERS), st.sampled_from(SIZES), st.sampled_from(PATHS)
device, model = st.sampled_from(DEVICES) | st.text(), st.sampled_from(MODELS)
protocol = st.sampled_from(["quick", "sound", "x", ""])

buffer = BytesIO()
Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
PICTURE = buffer.getvalue()


def check(command: str, what: str, options: dict[str, str]) -> None:
    """Run a command in a folder of its own: done, or refused with a word; a bug would have status 1."""
    said = StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        chdir(folder),
        redirect_stderr(said),
        redirect_stdout(StringIO()),
    ):
        Path("in.png").write_bytes(PICTURE)
        try:
            status = main([command, what, *(f"--{key}={value}" for key, value in options.items())])
        except SystemExit as stop:  # argparse's
            status = int(stop.code or 0)
    assert status in (0, 2), said.getvalue()
    assert status == 0 or said.getvalue().strip()
    assert "Traceback" not in said.getvalue()


def options(needed: dict[str, Any], **more: Any) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries(needed, optional=more)


@few
@given(
    model,
    options(
        {"size": size, "device": device}, count=number, steps=number, seed=number, columns=number, out=path
    ),
)
@example("digits-mlp", {"size": "8x8", "device": "cpu", "steps": "2", "seed": f"-{HUGE}"})
@example("digits-mlp", {"size": "8x8", "device": "cpu", "count": HUGE})
def test_sample(name: str, given: dict[str, str]) -> None:
    check("sample", name, given)


@few
@given(
    st.sampled_from(["inpaint", "upscale", "vary"]),
    options(
        {"model": model, "steps": number, "mask": st.sampled_from(["in.png", "none.png", "."])},
        device=device,
        seed=number,
        out=path,
        factor=number,
        strength=number,
    ),
)
@example("upscale", {"model": "digits-mlp", "steps": "2", "factor": HUGE})
def test_edits(command: str, given: dict[str, str]) -> None:
    kept = {key: value for key, value in given.items() if key != "mask" or command == "inpaint"}
    check(command, "in.png", kept)


value = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 10**30]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
SECTIONS = {
    "model": ["width", "size", "channels", "kind", "x.y"],
    "data": ["size", "kind", "path"],
    "diffusion": ["timesteps", "target", "schedule"],
    "training": ["batch", "steps", "seed", "workers", "ema", "clip", "minutes", "log_every", "accumulate"],
    "name": ["x"],
}
KEYS = [*SECTIONS, *(f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys), "", ".", "x"]
TINY = {"training.compile": "false", "model.width": "8", "training.batch": "2", "out": "run"}


@few
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), value, min_size=1, max_size=3))
@example({"model": None, "model.width": 3})
def test_settings(changes: dict[str, Any]) -> None:
    try:
        Experiment.read("digits-mlp", changes)
    except NCAError as error:
        assert str(error)


@few
@given(
    st.dictionaries(st.sampled_from(KEYS), number | st.sampled_from(["[]", "{}", "true", "'"]), max_size=2),
    device,
)
def test_train(changes: dict[str, str], where: str) -> None:
    check("train", "digits-mlp", {**TINY, **changes, "training.steps": "1", "device": where})


@few
@given(
    model,
    options(
        {"count": st.sampled_from(["0", "-1", "nan", "50", HUGE, ""])},
        device=device,
        seed=number,
        steps=number,
        protocol=protocol,
    ),
)
def test_evaluate(name: str, given: dict[str, str]) -> None:
    check("evaluate", name, given)


@few
@given(
    st.sampled_from(["show", "run", "export-web", "canvas"]),
    model | st.text(max_size=8),
    options({}, size=size, region=size, out=path, device=device, tile=number, mpp=number, minutes=number),
)
def test_the_other_commands(command: str, what: str, given: dict[str, str]) -> None:
    check(command, what, given)


@few
@given(
    st.sampled_from(["models", "cost", "join"]),
    model | st.text(max_size=8),
    st.fixed_dictionaries(
        {}, optional={"device": st.sampled_from(["h100", "here", "", "x"]), "price": number}
    )
    | st.fixed_dictionaries({"out": path}),
)
@example("cost", "digits-mlp", {"price": "nan"})
@example("cost", "digits-mlp", {"price": "-1"})
@example("join", "digits-mlp", {"out": "x.safetensors"})
@example("join", "tissue-cascade", {"out": "x.png"})
def test_commands_that_compute_nothing(command: str, what: str, given: dict[str, str]) -> None:
    check(command, what, given)


def tensor(shape: list[int], fill: float, kind: torch.dtype) -> Tensor:
    return (
        torch.full(shape, fill).nan_to_num(0, 0).to(kind)
        if not kind.is_floating_point
        else torch.full(shape, fill, dtype=kind)
    )


tensors = st.builds(
    tensor,
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from([0.0, 1.0, -1.0, 2.0, float("nan"), float("inf"), -128.0]),
    st.sampled_from([torch.float32, torch.float64, torch.uint8, torch.bool, torch.int64]),
)
torch.manual_seed(0)
DENOISER = Denoiser(DiffNCA(8, 8, 1), noise_schedule("cosine", 8)).eval()
EDITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "repaint": lambda image, mask: inpaint(DENOISER, image, mask, steps=2, jump=1, repeats=2),
    "published": lambda image, mask: inpaint(DENOISER, image, mask, steps=2, method="published"),
    "upscale": lambda image, mask: upscale(DENOISER, image, 2, steps=2),
    "vary": lambda image, mask: vary(DENOISER, image, 0.5, steps=2),
}


@settings(few, max_examples=60)
@given(st.sampled_from(sorted(EDITS)), tensors, tensors)
@example("repaint", torch.zeros(2, 3, 4, 4), torch.ones(1, 1, 4, 4) > 0)
@example("repaint", torch.zeros(3, 4, 4), torch.ones(1, 1, 4, 4) > 0)
@example("upscale", torch.zeros(1, 3, 2, 2).double(), torch.zeros(0))
def test_edits_of_any_tensors(edit: str, image: Tensor, mask: Tensor) -> None:
    try:
        result = EDITS[edit](image, mask)
    except NCAError as error:
        assert str(error)
    else:
        assert result.isfinite().all()
        assert result.abs().max() <= 1


@settings(few, max_examples=60)
@given(
    st.tuples(st.integers(-2, 5), st.integers(-2, 5)),
    st.sampled_from([-1, 0, 1, 2, 10**12]),
    st.sampled_from([None, -1, 0, 1, 3, 8, 9]),
    st.integers(),
    st.sampled_from(sorted(SAMPLERS)),
)
def test_sizes_counts_and_seeds(
    size: tuple[int, int], count: int, steps: int | None, seed: int, sampler: str
) -> None:
    given: dict[str, Any] = {"count": count, "steps": steps, "sampler": SAMPLERS[sampler]}
    try:
        assert sample(DENOISER, size, seed=seed, **given).shape == (count, 3, *size)
        interpolate(DENOISER, (seed, 0), size=size, **given)
    except NCAError as error:
        assert str(error)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PLACES = ["", "experiment", "experiment.model", "experiment.model.width", "experiment.data", "tensors_sha256"]


@few
@given(json_value, st.sampled_from([*PLACES, "experiment.diffusion.timesteps"]))
@example(10**9, "experiment.diffusion.timesteps")
@example(10**9, "experiment.model.width")
def test_records(value: Any, place: str) -> None:
    record: Any = {"experiment": weights.record("digits-mlp")["experiment"]}
    *above, last = place.split(".")
    inner = record
    for key in above:
        inner = inner[key]
    if last:
        inner[last] = value
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/x.safetensors"
        text = json.dumps(record if last else value)
        save_file(weights.load("digits-mlp").state_dict(), file, metadata={"record": text})
        try:
            weights.load(file)
        except NCAError as error:
            assert "x.safetensors" in str(error)


@settings(few, max_examples=100)
@given(st.integers(0, len(PICTURE)), st.binary(max_size=4), st.booleans())
def test_hurt_pictures(place: int, instead: bytes, cut: bool) -> None:
    hurt = PICTURE[:place] + (b"" if cut else instead + PICTURE[place + len(instead) :])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "hurt.png")
        file.write_bytes(hurt)
        try:
            assert read(file)[0].isfinite().all()
        except NCAError as error:
            assert "hurt.png" in str(error)
