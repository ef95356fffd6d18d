"""What chapters 4 and 5 say of the rows is so: where a comparison falls, the text falls with it."""

import math
from importlib import resources
from itertools import pairwise, product
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2gray
from skimage.feature import structure_tensor, structure_tensor_eigenvalues

from nca_lib.experiments import matrix
from nca_lib.experiments.comparison import (
    cost,
    distance,
    models,
    pooled_deviation,
    rows,
    seconds_per_step,
    t95,
)
from nca_lib.experiments.settings import Experiment

EYES = ("nca-features-1", "efficientnet-lite0-block-7")
TABLE = rows("shipped")


def final(name: str) -> dict[str, Any]:
    (row,) = [r for r in TABLE if r["name"] == name and r.get("weights") == "model"]
    return row


def budget(name: str) -> dict[str, Any]:
    """FourierDiff-NCA, trained for what a UNet costs."""
    (row,) = models("budgets")[f"faces-{name}"]
    return row


def all_rules(row: dict[str, Any]) -> float:
    """The share of portraits that keep all rules."""
    return float(row["metrics"]["coherence"]["all"])


def calibration(eye: str, data: str) -> dict[str, Any]:
    network = {EYES[0]: "nca-features-1", EYES[1]: "efficientnet-lite0 at 64"}[eye]
    (row,) = [
        r
        for r in rows(Path(matrix.__file__).parent / "results" / "extractors.jsonl")
        if (r["network"], r["data"], r["size"], r["count"]) == (network, data, 32, 512)
        and r["layer"] in ("all", "block-7")
    ]
    return row


@pytest.mark.parametrize("eye", EYES)
def test_at_equal_images_the_automaton_is_ahead_of_every_unet(eye: str) -> None:
    faces = models("faces")
    rivals = [row for name, group in faces.items() if "unet" in name for row in group]
    ours = faces["faces-fourier"]
    assert len(ours) >= 2 and len(faces["faces-unet"]) >= 2
    assert {row["images_seen"] for group in faces.values() for row in group} == {64_000}
    for mine, rival in product(ours, rivals):
        assert distance(mine, eye) < distance(rival, eye)
        assert all_rules(mine) > all_rules(rival)


@pytest.mark.parametrize("unet", ["unet", "unet-145k"])
def test_budgets_are_what_the_unets_cost(unet: str) -> None:
    rival, step = final(f"faces-{unet}"), seconds_per_step()
    for kind in ("operations", "seconds"):
        mine = budget(f"{kind}-of-{unet}")
        spent = mine["steps"] * step["faces-fourier"] if kind == "seconds" else cost(mine, kind)
        assert spent == pytest.approx(cost(rival, kind), rel=1e-3)


@pytest.mark.parametrize("eye", EYES)
def test_at_equal_operations_it_is_nearer_than_the_large_unet_and_behind_the_small_one(eye: str) -> None:
    large, small = final("faces-unet"), final("faces-unet-145k")
    mine = budget("operations-of-unet")
    assert distance(mine, eye) < distance(large, eye) and all_rules(mine) < all_rules(large)
    mine = budget("operations-of-unet-145k")
    assert distance(mine, eye) > distance(small, eye) and all_rules(mine) < all_rules(small)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("unet", ["unet", "unet-145k"])
def test_at_equal_time_it_is_ahead_of_both_unets(unet: str, eye: str) -> None:
    assert distance(budget(f"seconds-of-{unet}"), eye) < distance(final(f"faces-{unet}"), eye)


def test_a_core_computes_several_times_as_many_operations_of_the_automaton_a_second() -> None:
    rates = {n: cost(final(n), "operations") / cost(final(n), "seconds") for n in models("faces")}
    for unet in ("faces-unet", "faces-unet-145k"):
        assert rates["faces-fourier"] > 2.5 * rates[unet]


def test_more_parameters_help_the_unet_with_one_ruler_only() -> None:
    small, large = final("faces-unet-145k"), final("faces-unet")
    assert distance(large, EYES[0]) < distance(small, EYES[0])
    assert distance(large, EYES[1]) > distance(small, EYES[1])


@pytest.mark.parametrize("eye", EYES)
def test_vnca_is_behind_all_unets_with_an_encoder_for_most_of_its_parameters(eye: str) -> None:
    row = final("faces-vnca")
    assert row["images_seen"] == 64_000
    for rival in ("faces-unet", "faces-unet-145k", "faces-fourier"):
        assert distance(row, eye) > 2 * distance(final(rival), eye)
    model = Experiment.from_dict(row["experiment"]).build_model()
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert encoder > 0.5 * row["parameters"]


def test_vnca_gained_most_in_its_last_half_by_our_ruler() -> None:
    told = [distance(r) for r in TABLE if r["name"] == "faces-vnca"]
    gains = [a / b for a, b in pairwise(told)]
    assert len(gains) == 3 and max(gains) == gains[-1]


def test_precision_of_the_extractors_about_diff_nca() -> None:
    ours, theirs = (final("faces-diff-nca")["metrics"]["extractors"][eye]["precision"] for eye in EYES)
    assert ours > 0.5 and theirs < 0.05


def test_the_extractors_quarrel_about_tissue() -> None:
    row = final("tissue-diff-nca")
    assert distance(row, EYES[0]) < distance(final("faces-fourier"), EYES[0])
    for name in models("tissue"):
        assert distance(final(name), EYES[0]) < calibration(EYES[0], "tissue")["glued"]
        assert distance(final(name), EYES[1]) > calibration(EYES[1], "tissue")["glued"]
    ours, theirs = (calibration(eye, "tissue")["curves"]["noise"][1] for eye in EYES)
    assert ours < 3 and theirs > max(calibration(EYES[1], "tissue")["curves"]["colour"])


def common_direction(name: str) -> float:
    """Of the samples that the chapter shows, within six pixels."""
    with resources.as_file(resources.files("nca_lib") / "experiments" / "results" / f"{name}.png") as path:
        grid = rgb2gray(np.asarray(Image.open(path).convert("RGB")))[1:, 1:]
    pieces = [
        grid[y : y + 32, x : x + 32] for y in range(0, len(grid), 33) for x in range(0, grid.shape[1], 33)
    ]
    roots = [structure_tensor_eigenvalues(structure_tensor(p, sigma=6, mode="reflect")) for p in pieces]
    return float(np.mean([(a - b).sum() / (a + b).sum() for a, b in roots]))


def test_on_tissue_diff_nca_is_ahead_by_both_and_efficientnets_order_is_that_of_common_direction() -> None:
    names = list(models("tissue"))
    ours, theirs = (sorted(names, key=lambda n: distance(final(n), eye)) for eye in EYES)
    by_direction = sorted(names, key=common_direction, reverse=True)
    assert ours[0] == theirs[0] == "tissue-diff-nca"
    assert theirs == by_direction != ours


def test_every_rate_of_muon_beats_every_rate_of_adam_and_plain_weights_learn_more() -> None:
    losses = {
        r["name"].removeprefix("rates-"): r.get("held_out_loss", math.inf)
        for r in TABLE
        if r["matrix"] == "learning-rates"
    }
    for kind in ("fourier", "diff-nca", "unet"):
        muon, adam = (
            [loss for name, loss in losses.items() if name.startswith(f"{kind}-{optimizer}")]
            for optimizer in ("muon", "adam")
        )
        assert len(muon) == len(adam) == 3 and max(muon) < min(adam)
    best = {
        kind: min(losses[f"{kind}-muon-{rate}"] for rate in ("0.01", "0.02", "0.04"))
        for kind in ("fourier", "plain-weights", "batch-8", "batch-32", "plain-weights-batch-8")
    }
    assert best["plain-weights"] < best["fourier"] and best["plain-weights-batch-8"] < best["batch-8"]
    assert losses["plain-weights-adam-1.6e-3"] < losses["fourier-adam-1.6e-3"]
    for more, less in product(("batch-8",), ("fourier", "batch-32")):
        assert best[more] < best[less]


def trials(eye: str) -> dict[str, tuple[float, float]]:
    """Of each ablation: the change of the logarithm of its distance, and how far luck goes."""
    found = {
        name.removeprefix("digits-"): [math.log(distance(row, eye)) for row in group]
        for name, group in models("ablations").items()
    }
    deviation, freedom = pooled_deviation(list(found.values()))
    start = found.pop("reference")
    reach = t95(freedom) * deviation
    return {
        name: (mean(values) - mean(start), reach * (1 / len(start) + 1 / len(values)) ** 0.5)
        for name, values in found.items()
    }


def test_each_ablation_has_three_runs_of_equal_length() -> None:
    table = models("ablations")
    assert len(table) == 15  # thirteen switches, the reference, and what wins together
    for group in table.values():
        assert [row["seed"] for row in sorted(group, key=lambda row: row["seed"])] == [0, 1, 2]
        assert {row["steps"] for row in group} == {3000}


def test_improved_is_what_wins_by_both_extractors_and_wins_by_more() -> None:
    found = [trials(eye) for eye in EYES]
    wins = {name for name in found[0] if all(changes[name][0] < -changes[name][1] for changes in found)}
    assert wins == {"optimizer", "schedule", "improved"}
    for changes in found:
        assert changes["improved"][0] < min(changes["optimizer"][0], changes["schedule"][0])
    quarter, other, half = (math.exp(found[1][name][0]) for name in ("optimizer", "schedule", "improved"))
    assert min(quarter, other) > 0.7 and max(quarter, other) < 0.8
    assert half < 0.5


def test_min_snr_leaves_grain_that_one_extractor_minds() -> None:
    ours, other = (trials(eye)["weighting"] for eye in EYES)
    assert -2 * ours[1] < ours[0] < 0  # "a small gain"
    assert other[0] > 6 * other[1]
    grain = {}
    for name in ("digits-reference", "digits-weighting"):
        grids = [
            plt.imread(Path(matrix.__file__).parent / "results" / f"{row['name']}.png")[1:, 1:]
            for row in models("ablations")[name]
        ]
        tiles = np.stack([grid[17 * y :, 17 * x :][:16, :16] for grid in grids for y, x in np.ndindex(4, 8)])
        rim = np.ones((16, 16), bool)
        rim[1:-1, 1:-1] = False
        grain[name] = (tiles[:, rim] > 2 / 255).mean()
    assert 7 < grain["digits-weighting"] / grain["digits-reference"] < 14  # "ten times as many"


@pytest.mark.parametrize("eye", EYES)
def test_on_digits_the_frequency_stage_halves_the_distance(eye: str) -> None:
    first, second = final("digits-fourier"), final("digits-diff-nca")
    assert {row["images_seen"] for row in (first, second)} == {32_000}
    assert distance(first, eye) < 0.52 * distance(second, eye)
    assert {row["metrics"]["digits"]["classes"] for row in (first, second)} == {10}


def test_the_unets_digits_are_nearest_by_one_ruler_and_furthest_by_the_other_for_their_grain() -> None:
    names = ("digits-fourier", "digits-diff-nca", "digits-unet")
    ours, theirs = ({name: distance(final(name), eye) for name in names} for eye in EYES)
    assert min(ours, key=lambda n: ours[n]) == max(theirs, key=lambda n: theirs[n]) == "digits-unet"
    grain = {}
    for name in names:
        grid = plt.imread(Path(matrix.__file__).parent / "results" / f"{name}.png")
        tiles = np.stack([grid[1 + 33 * y :, 1 + 33 * x :][:32, :32] for y, x in np.ndindex(4, 8)])
        rim = np.ones((32, 32), bool)
        rim[1:-1, 1:-1] = False
        grain[name] = (tiles[:, rim] > 2 / 255).mean()
    assert grain["digits-unet"] > 0.05 > 0.001 > max(grain["digits-fourier"], grain["digits-diff-nca"])


def told(model: str, message: str) -> dict[str, Any]:
    """The measurements of a model whose message was replaced."""
    table = rows(Path(matrix.__file__).parent / "results" / "messages.jsonl")
    (row,) = [r for r in table if (r["model"], r["message"]) == (model, message)]
    return dict(row["metrics"])


def test_place_makes_the_face_and_news_makes_its_parts_agree() -> None:
    own, mean, nothing = (
        final("faces-fourier")["metrics"]["coherence"],
        told("faces-fourier", "mean")["coherence"],
        told("faces-fourier", "nothing")["coherence"],
    )
    assert mean["face"] == 1 and nothing["face"] == 0
    assert abs(mean["eyes"] - 0.23) < 0.04 < own["eyes"] - 0.23  # what glued halves keep
    assert mean["light"] < 0.5 and own["light"] > 0.9


@pytest.mark.parametrize("eye", EYES)
def test_for_digits_place_alone_is_nearly_as_good_as_the_whole_message(eye: str) -> None:
    own, none = distance(final("digits-fourier"), eye), distance(final("digits-diff-nca"), eye)
    mean = told("digits-fourier", "mean")["extractors"][eye]["frechet_distance"]
    assert own < mean < own + 0.25 * (none - own)
    faces = told("faces-fourier", "mean")["extractors"][eye]["frechet_distance"]
    assert faces > 5 * distance(final("faces-fourier"), eye)


def test_a_diff_nca_that_is_told_its_place_paints_faces_and_keeps_no_rule_better_than_glue() -> None:
    row = final("faces-diff-nca-position")
    kept, glued = row["metrics"]["coherence"], {"eyes": 0.23, "hair": 0.09, "light": 0.15, "background": 0.15}
    assert row["images_seen"] == 64_000
    assert kept["face"] > 0.98 and kept["all"] == 0
    assert all(kept[rule] < share + 0.02 for rule, share in glued.items() if rule != "hair")
    assert kept["hair"] < 0.3 < final("faces-fourier")["metrics"]["coherence"]["hair"]
    for eye in EYES:
        assert (
            distance(final("faces-fourier"), eye)
            < distance(row, eye)
            < distance(final("faces-diff-nca"), eye)
        )


@pytest.mark.parametrize("eye", EYES)
def test_told_its_place_it_stands_level_with_the_large_unet_and_keeps_no_rule(eye: str) -> None:
    placed, unet = final("faces-diff-nca-position"), final("faces-unet")
    assert abs(distance(placed, eye) / distance(unet, eye) - 1) < 0.1
    assert placed["metrics"]["coherence"]["all"] == 0 < 0.2 < unet["metrics"]["coherence"]["all"]


def test_of_the_losses_only_muons_is_far_from_the_starts() -> None:
    losses = {name: [row["held_out_loss"] for row in group] for name, group in models("ablations").items()}
    start = losses.pop("digits-reference")
    apart = max(start) - min(start)
    asked_otherwise = {f"digits-{name}" for name in ("schedule", "target", "weighting", "improved")}
    far = {name for name, found in losses.items() if abs(mean(found) - mean(start)) > 2 * apart}
    assert far - asked_otherwise == {"digits-optimizer"}


def original(model: str, images: str, **where: Any) -> dict[str, Any]:
    table = rows(Path(matrix.__file__).parent / "results" / "originality.jsonl")
    found = [
        r for r in table if {"model": model, "images": images, "canvas": 32, **where}.items() <= r.items()
    ]
    (row,) = [r for r in found if r["measure"] == where.get("measure", "copying")]
    return row


@pytest.mark.parametrize("key", ["distance", "ratio"])
def test_samples_are_no_copies_and_copies_are_found_under_noise(key: str) -> None:
    cases = [("tissue-diff-nca", {"patch": size}) for size in (8, 16, 32)]
    for model, where in (*cases, ("faces-fourier", {}), ("faces-diff-nca", {})):
        assert original(model, "samples", **where)[key]["nearer"] < 0.55
        assert original(model, "copies, noised", **where)[key]["nearer_interval"][0] > 0.5


def test_stains_and_nuclei_of_samples_agree_with_the_photograph() -> None:
    drawn, real = (
        original("tissue-diff-nca", images, measure="histology") for images in ("samples", "held-out")
    )
    for key in ("haematoxylin", "dab", "nuclei", "nucleus_area"):
        assert drawn[key]["interval"][0] < real[key]["interval"][1]
        assert real[key]["interval"][0] < drawn[key]["interval"][1]
