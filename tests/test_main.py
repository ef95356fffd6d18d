"""The command line: same seed, same picture; one clear line and exit status 2 for what is wrong."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._inductor.exc import InductorError

import nca_lib
from nca_lib import weights
from nca_lib.__main__ import main
from nca_lib.cascade import Guided
from nca_lib.data import files
from nca_lib.data.conditional import class_planes
from nca_lib.experiments.settings import Experiment
from nca_lib.samplers import dpm_solver

TINY = ["--model.width", "16", "--training.steps", "4", "--training.batch", "4", "--training.save_every=2"]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_same_seed_gives_the_same_picture_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        out = str(tmp_path / f"{name}.png")
        assert (
            main(["sample", "digits-mlp", "--size", "8x8", "--steps", "5", "--seed", seed, "--out", out]) == 0
        )
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


def test_size_is_width_times_height_and_count_makes_a_grid(tmp_path: Path) -> None:
    out = tmp_path / "wide.png"
    assert main(["sample", "digits-mlp", "--steps", "2", "--out", str(tmp_path / "plain.png")]) == 0
    assert Image.open(tmp_path / "plain.png").size == (8, 8)  # of which its training images were
    arguments = ["sample", "tissue-diff-nca", "--size", "24x16", "--steps", "2", "--out", str(out)]
    assert main(arguments) == 0
    assert Image.open(out).size == (24, 16)
    assert main([*arguments, "--count", "3", "--columns", "3"]) == 2  # it exists
    assert Image.open(out).size == (24, 16)
    assert main([*arguments, "--count", "3", "--columns", "3", "--force"]) == 0
    assert Image.open(out).size == (3 * 24 + 4 * 2, 16 + 2 * 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "nonsense"], ["nonsense", "digits-mlp"]),
        (["sample", "digits-mlp", "--size", "big"], ["--size", "'big'", "256x256"]),
        (["sample", "digits-mlp", "--size", "9x9"], ["--size", "digits-mlp", "9x9"]),
        (["sample", "digits-mlp", "--size", "8x8", "--steps", "301"], ["301", "300"]),
        (
            ["sample", "digits-mlp", "--size", "8x8", "--out", "no/such/folder/x.png"],
            ["no/such/folder", "does not exist"],
        ),
        (["sample", "digits-mlp", "--size", "8x8", "--out", "x.txt"], [".txt", ".png"]),
        (["sample", "digits-mlp", "--size", "8x8", "--out", "x.psd"], ["x.psd", ".png"]),
        (
            [
                "sample",
                "tissue-diff-nca",
                "--size",
                "8200x2",
                "--count",
                "2",
                "--steps",
                "1",
                "--out",
                "x.webp",
            ],
            ["x.webp", "16406x6", ".png"],
        ),
        (["sample", "digits-mlp", "--size", "8x8", "--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["sample", "digits-mlp", "--size", "8x8", "--device", "meta"], ["meta", "cpu"]),
        (["sample", "digits-mlp", "--size", "8x8", "--device", "toaster"], ["toaster", "cpu"]),
        (["sample", "growing-grow"], ["GrowingNCA", "draws no images"]),
        (["sample", "digits-mlp", "--colour", "red"], ["--colour"]),
        (["train", "nonsense"], ["nonsense", "tissue-diff-nca"]),
        (["train", "digits-mlp", "--training.stepz", "3"], ["training.stepz", "'steps'"]),
        (["train", "digits-mlp", "--training.steps", "many"], ["training.steps", "'many'", "int"]),
        (["train", "digits-mlp", "--training.batch", "0"], ["training.batch", "0"]),
        (["train", "digits-mlp", "--minutes", "nan"], ["training.minutes", "nan"]),
        (["train", "digits-mlp", "--name", "../x"], ["name", "'../x'"]),
        (["show", "nonsense"], ["nonsense", "tissue-diff-nca"]),
        (["show", "faces/nonsense"], ["nonsense", "faces-fourier"]),
        (["train", "digits-mlp", "--training.steps"], ["--training.steps", "value"]),
        (
            ["train", "digits-mlp", "--data.kind", "folder", "--data.path", "no-such-folder"],
            ["no-such-folder"],
        ),
        (
            ["train", "digits-mlp", "--data.kind", "folder", "--data.path", "2026"],
            ["2026", "is not a directory"],
        ),
        (
            ["train", "digits-mlp", "--data.kind", "folder", "--data.path='2026'"],
            ["2026", "is not a directory"],
        ),
        (
            ["sample", "faces-by-attributes", "--size", "8x8", "--ask", "size=3"],
            ["size = '3' is no attribute of a portrait", "hair_colour"],
        ),
        (["evaluate", "digits-by-class", "--seed", "-1"], ["seed is -1", "from 0"]),
    ],
)
def test_wrong_arguments_exit_with_2_and_one_line(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_unknown_commands_and_choices_exit_with_2() -> None:
    for arguments in (
        [],
        ["dance"],
        ["sample", "digits-mlp", "--sampler", "euler"],
        ["sample", "x", "--count", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_train_writes_a_model_that_can_be_sampled_and_refuses_to_overwrite_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train = ["train", "digits-mlp", *TINY, "--out", str(run), "--device", "cpu"]
    assert main(train) == 0
    said = capsys.readouterr().out
    model = run / "model.safetensors"
    assert weights.record(model)["steps"] == 4
    assert "4 steps" in said
    assert "too few" in said
    assert (run / "samples-0000004.png").is_file()
    [draw] = [line.split("nca_lib ")[1] for line in said.splitlines() if "nca_lib sample" in line]
    assert main(draw.split()) == 0
    assert "calls" in capsys.readouterr().err
    assert (run / "drawn.png").is_file()
    assert main(train) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*train, "--resume"]) == 0


def test_what_train_says_is_next_can_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "my images"
    images.mkdir()
    for n in range(2):
        Image.new("RGB", (64, 32), (90 * n, 50, 60)).save(images / f"{n}.png")
    own = ["--data.kind", "folder", "--data.path", str(images), "--data.size", "8", *TINY[2:]]
    own += ["--training.compile", "false"]
    own += ["--model.kind", "diff-nca", "--model.channels", "12", "--model.hidden", "8", "--model.steps", "1"]
    assert main(["train", "tissue-diff-nca", *own, "--out", str(tmp_path / "own"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    [measure] = [line.split("nca_lib ")[1] for line in said if "nca_lib evaluate" in line]
    assert main([*shlex.split(measure), "--count", "105", "--steps", "2", "--device", "cpu"]) == 0
    assert "frechet_distance" in capsys.readouterr().out
    own += ["--model.context_channels", "4", "--context.factor", "2", "--out", str(tmp_path / "level")]
    assert main(["train", "tissue-diff-nca", *own, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert not any("nca_lib sample" in line or "nca_lib evaluate" in line for line in said)
    assert any(f"join COARSER {tmp_path / 'level' / 'model.safetensors'}" in line for line in said)


def test_show_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["show", "distillation/tissue-5-untrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tissue-5-untrained"
    assert any(re.match(r"  steps +0 +distillation +optimiser steps", line) for line in lines)
    assert max(map(len, lines)) <= 100


def test_levels_are_joined_and_a_sketch_stands_in_for_the_coarsest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = []
    for name, context in (("layout", {}), ("fine", {"context": {"factor": 4}})):
        model = {"kind": "diff-nca", "channels": 12, "hidden": 16, "steps": 2, "position": False}
        model |= {"context_channels": 4} if context else {}
        experiment = Experiment.from_dict({"name": name, "model": model, **context})
        paths.append(f"{name}.safetensors")
        record = {"experiment": experiment.to_dict(), "steps": 1, "images_seen": 1, "seed": 0}
        weights.save(experiment.build_model(), paths[-1], record)
    assert main(["join", *paths, "--out", "both.safetensors"]) == 0
    assert main(["join", *paths, "--out", "both.safetensors"]) == 2
    Image.new("RGB", (30, 20), "brown").save("sketch.png")
    sample = ["sample", "both.safetensors", "--size", "40x24", "--steps", "2", "--device", "cpu"]
    drawn = {}
    for out, options in {
        "free.png": [],
        "laid.png": ["--layout", "sketch.png"],
        "kept.png": ["--layout", "sketch.png", "--layout-strength", "0"],
    }.items():
        assert main([*sample, *options, "--out", out]) == 0
        drawn[out] = np.asarray(Image.open(out))
        assert drawn[out].shape == (24, 40, 3)
    assert len({picture.tobytes() for picture in drawn.values()}) == 3
    capsys.readouterr()
    for model, strength, word in (("layout", "0.5", "is no cascade"), ("both", "2", "--layout-strength: 2")):
        options = ["--layout", "sketch.png", "--layout-strength", strength, "--out", "no.png"]
        assert main(["sample", f"{model}.safetensors", *options]) == 2
        assert word in capsys.readouterr().err
    assert main(["sample", "both.safetensors", "--steps", "1", "--out", "plain.png"]) == 0
    assert Image.open("plain.png").size == (256, 256)  # four times the coarsest level's images
    capsys.readouterr()
    assert main(["sample", "fine.safetensors", "--out", "no.png"]) == 2
    assert "reads 4 channels of context" in capsys.readouterr().err


def test_what_is_asked_for_is_told_to_each_image_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, channels, planes in (("digits-by-class", 1, 10), ("faces-by-attributes", 3, 18)):
        model = {"kind": "diff-nca", "channels": 30, "hidden": 16, "steps": 2, "position": False}
        model |= {"context_channels": planes, "image_channels": channels}
        chosen = {
            "name": kind,
            "model": model,
            "data": {"kind": kind, "size": 32},
            "context": {"dropout": 0.1},
        }
        experiment = Experiment.from_dict(chosen)
        weights.save(
            experiment.build_model(), f"{kind}.safetensors", {"experiment": experiment.to_dict(), "steps": 1}
        )
    command = ["sample", "digits-by-class.safetensors", "--size", "9x8", "--steps", "2", "--device", "cpu"]
    assert main([*command, "--ask", "7", "1", "--count", "3", "--guidance", "3", "--out", "asked.png"]) == 0
    guided = Guided(weights.load("digits-by-class.safetensors"), class_planes([7, 1, 7], (8, 9)), 3.0)
    images = nca_lib.sample(guided, (8, 9), count=3, steps=2, sampler=dpm_solver)
    expected = np.asarray(files.sheet(images, 3).mul(127.5).add(127.5).round().byte()[0])
    np.testing.assert_allclose(np.asarray(Image.open("asked.png").convert("L")), expected, atol=1)
    assert main([*command, "--out", "untold.png"]) == 0  # one image, which is told nothing
    command = ["sample", "faces-by-attributes.safetensors", "--size", "8x8", "--steps", "1"]
    assert (
        main([*command, "--ask", "hair_colour=ginger,glasses=round", "skin=tan", "--out", "faces.png"]) == 0
    )
    capsys.readouterr()
    for wish, word in (
        ("hair_colour", "no attribute with a value"),
        ("hat=red", "known are hair_colour, skin"),
    ):
        assert main([*command, "--ask", wish, "--out", "no.png"]) == 2
        assert word in capsys.readouterr().err
    for model, options, word in (
        ("digits-fourier", ["--ask", "3"], "--ask: digits-fourier reads no wish"),
        ("digits-fourier", ["--guidance", "2"], "--guidance: digits-fourier reads no wish"),
        (
            "digits-by-class",
            ["--ask", "3", "--layout", "sketch.png"],
            "--layout: digits-by-class is no cascade",
        ),
        ("digits-by-class", ["--ask", "3", "--guidance", "nan"], "--guidance: nan is no strength"),
    ):
        assert main(["sample", model, *options, "--out", "no.png"]) == 2
        assert word in capsys.readouterr().err


def test_models_lists_everything_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    ends = set()
    for name in weights.names():
        assert name in table
        [line] = [line for line in table.splitlines() if line.startswith(f"{name} ")]
        parameters = f" {weights.record(name)['parameters']:,} "
        ends.add(line.index(parameters) + len(parameters))
    assert len(ends) == 1, "a column is shifted"


MATRIX = """
name = "one"
[evaluation]
count = 120
steps = 2
[[entry]]
base = "digits-mlp"
training = { steps = 2, compile = false }
model.width = 8
"""


def test_run_trains_evaluates_and_tells_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(MATRIX)
    assert main(["run", "one.toml", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    row = json.loads(Path("runs/results.jsonl").read_text())
    for name, distances in row["metrics"]["extractors"].items():
        assert f"{name}.frechet_distance {distances['frechet_distance']:.4g}" in said
    assert f"spectrum_distance {row['metrics']['spectrum_distance']:.4g}" in said
    assert "runs/results.jsonl: 1 rows of one" in said
    assert main(["run", "one.toml", "--only", "two"]) == 2
    assert "two: no such entry" in capsys.readouterr().err


def test_run_tells_what_diverged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wild = "{ steps = 9, compile = false, learning_rate = 1e30, clip = 1e30 }"
    Path("wild.toml").write_text(f'name = "wild"\n[[entry]]\nbase = "digits-mlp"\ntraining = {wild}\n')
    assert main(["run", "wild.toml", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^digits-mlp +diverged at step \d", said, re.MULTILINE)
    assert "runs/results.jsonl: 1 rows of wild" in said


def test_evaluate_prints_metrics_floor_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "digits-mlp", "--count", "120", "--steps", "3", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recipe"]["counts"]["generated"] == 120
    assert result["recipe"]["steps"] == 3
    assert set(result["metrics"]["extractors"]) == set(result["recipe"]["extractors"])
    for name, distances in result["metrics"]["extractors"].items():
        assert distances["frechet_distance"] > result["floor"]["extractors"][name]["frechet_distance"] > 0


def test_evaluations_that_would_mean_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "digits-mlp", "--count", "50"]) == 2
    assert "50 generated images are too few" in capsys.readouterr().err
    assert main(["evaluate", "growing-grow"]) == 2
    assert "GrowingNCA" in capsys.readouterr().err
    assert main(["evaluate", "digits-mlp", "--inception", "nowhere.pth"]) == 2
    assert "nowhere.pth" in capsys.readouterr().err


@pytest.mark.parametrize("data", [3, {"kind": ["digits"]}])
def test_a_record_whose_data_are_none_is_refused(
    data: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "stranger.safetensors")
    weights.save(weights.load("digits-mlp"), path, {"experiment": {"name": "x", "data": data}})
    assert main(["evaluate", path]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("nca_lib evaluate: data")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A half-transparent picture of 24x16 pixels."""
    levels = np.random.default_rng(0).integers(0, 255, (16, 24, 4), np.uint8)
    levels[..., 3] = 128
    Image.fromarray(levels, "RGBA").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def mask(path: Path, width: int, height: int) -> str:
    hole = np.zeros((height, width), np.uint8)
    hole[4:9, 6:15] = 255
    Image.fromarray(hole).save(path)
    return str(path)


def test_inpaint_fills_what_is_white_and_keeps_the_rest(picture: Path, tmp_path: Path) -> None:
    out, hole = tmp_path / "filled.png", mask(tmp_path / "mask.png", 24, 16)
    assert main(["inpaint", str(picture), "--mask", hole, "--steps", "2", "--out", str(out)]) == 0
    before, after = pixels(picture), pixels(out)
    filled = pixels(Path(hole)) > 0
    assert after.shape == before.shape
    assert (after[~filled] == before[~filled]).all()
    assert (after[filled][:, :3] != before[filled][:, :3]).mean() > 0.9
    assert (after[..., 3] == 128).all()


def test_upscale_enlarges_and_its_blocks_average_to_the_input(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "large.png"
    assert main(["upscale", str(picture), "--factor", "2", "--steps", "2", "--out", str(out)]) == 0
    large = pixels(out)[..., :3].astype(float)
    assert large.shape == (32, 48, 3)
    blocks = large.reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(blocks - pixels(picture)[..., :3]).max() <= 1


def test_vary_keeps_the_size_and_nothing_is_overwritten_without_force(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "varied.png"
    command = ["vary", str(picture), "--steps", "2", "--out", str(out)]
    assert main(command) == 0
    first = out.read_bytes()
    assert pixels(out).shape == pixels(picture).shape
    assert main([*command, "--seed", "1"]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == first
    assert main([*command, "--seed", "1", "--force"]) == 0
    assert out.read_bytes() != first


def test_a_mask_of_another_size_is_refused_by_name(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hole = mask(tmp_path / "mask.png", 20, 16)
    assert main(["inpaint", str(picture), "--mask", hole, "--out", str(tmp_path / "x.png")]) == 2
    assert "20x16" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_importing_the_library_loads_nothing_that_takes_seconds() -> None:
    heavy = ("torchvision", "sklearn", "skimage", "matplotlib", "diffusers", "torch._dynamo", "IPython")
    code = f"import sys, nca_lib; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_strangers_record_opens_no_folder_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.read("digits-mlp").to_dict()
    experiment["data"] = {"kind": "celeba", "root": "theirs", "download": True, "size": 8}
    weights.save(weights.load("digits-mlp"), "stranger.safetensors", {"experiment": experiment})
    before = sorted(tmp_path.iterdir())
    assert main(["evaluate", "stranger.safetensors", "--device", "cpu"]) == 2
    assert "--data.root FOLDER" in capsys.readouterr().err
    assert main(["evaluate", "stranger.safetensors", "--device", "cpu", "--data.root", "mine"]) == 2
    assert "mine" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_is_evaluated_on_another_kind_of_data_than_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (400, 400), "brown").save(tmp_path / "brown.png")
    own = ["--data.kind", "folder", "--data.path", str(tmp_path), "--count", "5"]
    assert main(["evaluate", "tissue-cascade", *own, "--device", "cpu"]) == 2
    assert "images are too few" in capsys.readouterr().err  # it was read: no key of tissue's stood in the way
    assert main(["evaluate", "tissue-cascade", *own, "--data.offsets", "true"]) == 2
    assert "data.offsets: unknown key" in capsys.readouterr().err
    assert main(["evaluate", "tissue-cascade", "--data.size.x", "2"]) == 2
    assert "data.size: unknown key" in capsys.readouterr().err


def test_where_compiling_fails_sampling_goes_on_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: Any, device: Any) -> None:
        def fail(*args: Any) -> None:
            raise InductorError(OSError("/tmp/cache/x.so: file too short"), None)

        model.register_forward_pre_hook(fail)

    monkeypatch.setattr("nca_lib.drawing.worth_compiling", lambda pixels: True)
    monkeypatch.setattr("nca_lib.drawing.compile_step", broken)
    out = tmp_path / "x.png"
    command = ["sample", "digits-mlp", "--size", "8x8", "--steps", "2", "--device", "cpu", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("going on uncompiled: compiling failed")
    assert len(said) == 2
    assert out.is_file()


def test_memory_that_ends_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nca_lib.drawing._size", lambda text: torch.empty(2**60))
    assert main(["sample", "digits-mlp", "--size", "8x8"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nca_lib sample: out of memory; ask for fewer")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train growing-grow --model.channels 3", "channels is 3; "),
        ("train tissue-diff-nca --model.hidden 2", "hidden is 2; "),
        ("train tissue-diff-nca --data.downscale 1000", "downscale is 1000; "),
        ("evaluate tissue-diff-nca --data.kind [1]", "data.kind: '[1]' is unknown; "),
    ],
)
def test_a_value_that_no_model_or_data_can_have_is_one_line(
    command: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nca_lib {command.split()[0]}: {said}")


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("sample own.safetensors --size 8x8", "own.safetensors"),
        ("show own.toml", "own.toml"),
        ("run matrix.toml", "matrix.toml"),
        ("run digits --table rows.jsonl", "rows.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    command: str,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusing(read: Any) -> Any:
        def refuse(path: Path, **options: Any) -> Any:
            if path.name == file:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, **options)

        return refuse

    monkeypatch.chdir(tmp_path)
    Path(file).touch()
    for read in ("read_bytes", "read_text"):  # whoever runs the tests may read everything
        monkeypatch.setattr(Path, read, refusing(getattr(Path, read)))
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{file}: cannot be read (Permission denied)")


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[str]:
        raise ValueError("a bug")

    monkeypatch.setattr("nca_lib.drawing._size", lambda text: broken())
    assert main(["sample", "digits-mlp", "--size", "8x8"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "please report it" in said


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE")
@pytest.mark.parametrize("command", [["models"], ["show", "digits-mlp"]])
def test_a_reader_that_has_enough_is_no_error(command: list[str]) -> None:
    code = "import sys; from nca_lib.__main__ import main; sys.exit(main(sys.argv[1:]))"  # as `nca-lib` does
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([sys.executable, "-c", code, *command], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert ran.stderr == b""
    assert ran.returncode == 141
