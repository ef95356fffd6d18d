"""What the chapters say in so many words holds in rows, records and recipes."""

import ast
import itertools
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected_pages import ROOT
from torch import Tensor, nn

from nca_lib.book.pages import WEB
from nca_lib.canvas.tiles import SMALLEST
from nca_lib.data.digits import Digits
from nca_lib.experiments.settings import Experiment
from nca_lib.weights import digest, load, record

Row = dict[str, Any]
EXTRACTORS = {"nca-features-1", "efficientnet-lite0-block-7"}
SHIPPED = {"tissue-diff-nca", "faces-fourier"}


def rows(name: str) -> list[Row]:
    lines = (ROOT / "nca_lib" / "experiments" / "results" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def edits(**where: Any) -> dict[str, Row]:
    return {row["method"]: row for row in rows("editing") if where.items() <= row.items()}


def nearer(a: Row, b: Row) -> bool:
    """By every extractor that measured both."""
    return all(a["distances"][name] < b["distances"][name] for name in a["distances"])


def error(share: float, count: int) -> float:
    return (share * (1 - share) / count) ** 0.5


def test_rows_of_shipped_weights_were_seen_by_both_extractors() -> None:
    edited = [row for row in rows("editing") if row["weights"] in SHIPPED]
    called = rows("calls")
    assert {row["weights"] for row in edited} == SHIPPED
    assert {row["model"] for row in called} == SHIPPED | {"tissue-resting"}
    for key in ("distances", "anywhere", "edge", "within"):
        measured = [row[key] for row in edited if key in row]
        assert measured and all(distances.keys() == EXTRACTORS for distances in measured), key
    assert all(row["extractors"].keys() == EXTRACTORS for row in called)


def test_the_smooth_fill_hides_its_seam_and_is_no_tissue() -> None:
    table = edits(edit="inpaint", data="tissue", hole="middle")
    assert min(table, key=lambda method: table[method]["seam"]) == "biharmonic"
    assert nearer(table["RePaint"], table["biharmonic"])


def test_going_back_helps_halves_agree_and_noise_alone_changes_little() -> None:
    table = edits(edit="inpaint", data="faces", hole="half")
    kept = {method: row["coherence"]["all"] for method, row in table.items()}
    count = table["RePaint"]["count"]
    gain = kept["RePaint"] - kept["noised, no jumps"]
    alone = kept["noised, no jumps"] - kept["published"]
    assert gain > 2 * error(kept["RePaint"], count)
    assert abs(alone) < gain


def test_chance_for_an_eye_is_far_from_nothing() -> None:
    chance = edits(edit="inpaint", data="faces", hole="eye")["another image's pixels"]["coherence"]["eyes"]
    assert 0.1 < chance < 0.5


@pytest.mark.parametrize(("data", "factor"), list(itertools.product(("tissue", "faces"), (2, 4, 8))))
def test_enlarging(data: str, factor: int) -> None:
    table = edits(edit="upscale", data=data, factor=factor)
    ddnm, more, less = table["DDNM"], table["published, T/10"], table["published, T/14"]
    assert ddnm["consistency"] < 1e-5
    assert nearer(ddnm, table["bicubic"])
    assert (ddnm["psnr"] > table["bicubic"]["psnr"]) == (data == "faces")
    assert nearer(more, less)
    assert more["consistency"] >= less["consistency"]


def test_faces_keep_their_plan_at_twice_the_size_and_lose_it_at_four_times() -> None:
    kept = {
        row["side"]: (row["coherence"]["all"], row["canvases"])
        for row in rows("editing")
        if row["edit"] == "size" and row["data"] == "faces"
    }
    share, count = kept[32]
    assert min(kept[48][0], kept[64][0]) > share - error(share, count)
    assert kept[128][0] < share - 4 * error(share, kept[128][1])


def test_second_order_needs_fewer_calls() -> None:
    found = {(row["model"], row["sampler"], row["calls"]): row["extractors"] for row in rows("calls")}
    for model, name in itertools.product(sorted(SHIPPED), sorted(EXTRACTORS)):
        second, first = found[model, "dpm_solver", 10][name], found[model, "ddim", 10][name]
        assert second["frechet_distance"] < first["frechet_distance"]


@pytest.mark.parametrize("extractor", sorted(EXTRACTORS))
def test_pieces_of_large_canvases_are_as_near_as_those_of_small_ones(extractor: str) -> None:
    found = {row["side"]: row for row in rows("editing") if (row["edit"], row["data"]) == ("size", "tissue")}
    assert sorted(found) == [32, 64, 128, 256, 512]
    for where in ("edge", "within"):
        values = [row[where][extractor] for row in found.values() if where in row]
        assert max(values) < 1.15 * min(values)
    assert all(row["pieces"] == 1024 for row in found.values())


def distilled(extractor: str) -> dict[str, float]:
    """Distances of the teacher and its students."""
    return {
        row["name"].removeprefix("tissue-"): row["metrics"]["extractors"][extractor]["frechet_distance"]
        for row in rows("results")
        if row["matrix"] == "distillation"
    }


@pytest.mark.parametrize("extractor", sorted(EXTRACTORS))
def test_a_teacher_brings_nothing_and_takes_longer(extractor: str) -> None:
    found = {row["name"]: row for row in rows("results") if row["matrix"] == "distillation"}
    near = distilled(extractor)
    assert near["10"] < near["distil-5"] < near["5-untrained"]
    assert abs(near["distil-5"] / near["5-without-teacher"] - 1) < 0.05
    taught, untaught = found["tissue-distil-5"], found["tissue-5-without-teacher"]
    assert taught["images_seen"] == untaught["images_seen"] == 16_000
    assert taught["training_seconds"] > untaught["training_seconds"]
    assert {row["evaluation"]["count"] for row in found.values()} == {512}


def test_training_brings_back_most_of_what_half_of_the_steps_cost_by_one_extractor() -> None:
    def back(extractor: str) -> float:
        near = distilled(extractor)
        return (near["5-untrained"] - near["distil-5"]) / (near["5-untrained"] - near["10"])

    assert back("nca-features-1") > 0.7 and 0.1 < back("efficientnet-lite0-block-7") < 0.5


def resting(extractor: str) -> dict[tuple[str, int, str], Row]:
    """Distances of the model whose cells rest, by sampler, calls and firing."""
    return {
        (row["sampler"], row["calls"], row["firing"]): row["extractors"][extractor]
        for row in rows("calls")
        if row["model"] == "tissue-resting"
    }


@pytest.mark.parametrize("extractor", sorted(EXTRACTORS))
def test_expected_updates_are_never_farther_and_never_beyond_luck(extractor: str) -> None:
    found = resting(extractor)
    for sampler, calls in {key[:2] for key in found}:
        expected, fresh = found[sampler, calls, "expected"], found[sampler, calls, "fresh"]
        off = fresh["frechet_distance"] - expected["frechet_distance"]
        assert 0 < off < 2 * math.hypot(fresh["standard_error"], expected["standard_error"])


@pytest.mark.parametrize("extractor", sorted(EXTRACTORS))
def test_fixed_masks_change_nothing(extractor: str) -> None:
    found = resting(extractor)
    compared = [(sampler, calls) for sampler, calls, firing in found if firing == "fixed"]
    assert compared
    for sampler, calls in compared:
        fixed, fresh = found[sampler, calls, "fixed"], found[sampler, calls, "fresh"]
        off = fixed["frechet_distance"] - fresh["frechet_distance"]
        assert abs(off) < fresh["standard_error"]


def test_ten_calls_of_second_order_are_twenty_of_the_others_by_one_extractor_only() -> None:
    """What the explorer of calls is asked in 00_explore."""
    found = {(row["model"], row["sampler"], row["calls"]): row["extractors"] for row in rows("calls")}
    ahead = {
        name: all(
            found["tissue-diff-nca", "dpm_solver", 10][name]["frechet_distance"]
            < found["tissue-diff-nca", other, 20][name]["frechet_distance"]
            for other in ("ddim", "ddpm")
        )
        for name in EXTRACTORS
    }
    assert sorted(ahead.values()) == [False, True]


def test_clearing_pages_takes_half_of_a_large_call_and_little_of_a_training() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "allocator-cpu.json").read_text())["rows"]
    calls = {row["of"]: row for row in found if row["work"] == "call"}
    default, kept = calls["512"]["default"], calls["512"]["kept"]
    assert default["system"] > 0.4 * (default["system"] + default["program"])
    assert kept["faults"] < default["faults"] / 100
    assert calls["64"]["ratio"] < calls["256"]["ratio"] < calls["512"]["ratio"]
    assert calls["512"]["ratio"] > 1.8  # "twice as fast"
    trained = [row["ratio"] for row in found if row["work"] == "training"]
    assert trained and all(0.85 < ratio < 1.15 for ratio in trained)


@pytest.mark.parametrize("model", ["digits-by-class", "faces-by-attributes"])
def test_what_is_asked_for_is_drawn_and_guidance_costs_variety(model: str) -> None:
    by = {row["strength"]: row for row in rows("guidance") if row["model"] == model}
    for row in by.values():
        assert row["weights"] == digest(load(model).state_dict())
    for name, share in by[1.0]["heeded"].items():
        assert share > by[0.0]["heeded"][name] + 2 * error(share, by[1.0]["count"])
        pushed_too_far = by[4.0]["heeded"][name] < share - 2 * error(share, by[1.0]["count"])
        assert pushed_too_far == (name == "skin")
    recall = {w: by[w]["metrics"]["extractors"]["nca-features-1"]["recall"] for w in (1.0, 4.0)}
    assert recall[4.0] < recall[1.0]


def test_cascades_are_measured_with_the_weights_that_ship() -> None:
    whole: Any = load("tissue-cascade")
    drawn = {"cascade, 1": whole, "cascade, 1/2": whole.below, "plain, 1/2": load("tissue-diff-nca")}
    first = [row for row in rows("cascade") if row["training"] == 0]
    weights = [(row["model"], row["weights"]) for row in first if row["model"] in drawn]
    assert set(weights) == {(name, digest(model.state_dict())) for name, model in drawn.items()}


def test_context_brings_architecture_and_the_quarter_order() -> None:
    by: dict[str, list[Row]] = {}
    for row in rows("cascade"):
        by.setdefault(row["model"], []).append(row)
    (photo,) = by["photograph"]
    for plain, told in (("plain, 1/2", "cascade, 1/2"), ("plain, 1", "cascade, 1")):
        for name in ("32", "48"):
            closest = max(row["correlation"][name] for row in by[plain])
            assert closest < min(row["correlation"][name] for row in by[told])
            assert closest < photo["correlation"][name]
        assert max(row["order"] for row in by[plain]) < min(row["order"] for row in by[told])
    first, four = ([row["order"] for row in by[f"{name}, 1/2"]] for name in ("three levels", "cascade"))
    assert max(first) < min(four) < photo["order"]  # "ran as they liked"


def test_the_single_level_saw_as_many_crops_as_all_levels_together() -> None:
    crops = {}
    for name in ("full-untold", "layout", "quarter", "half", "full"):
        training = Experiment.read(f"tissue-{name}").training
        crops[name] = training.steps * training.batch
    assert crops.pop("full-untold") == sum(crops.values()) == 107_200


@pytest.mark.parametrize("scale", ["1/2", "1"])
def test_cascades_differ_less_by_their_training_than_from_a_single_level(scale: str) -> None:
    by: dict[str, list[Row]] = {}
    for row in rows("cascade"):
        by.setdefault(row["model"], []).append(row)
    told, plain = by[f"cascade, {scale}"], by[f"plain, {scale}"]
    assert {row["training"] for row in told} == {0, 1, 2}  # "trained three times"
    assert len({row["weights"] for row in told}) == 3
    (photo,) = by["photograph"]
    spread = {}
    for name, read in {
        "order": lambda r: r["order"],
        "chord": lambda r: r["chord"],
        "correlation": lambda r: r["correlation"]["32"],
    }.items():
        ours = [read(row) for row in told]
        spread[name] = (max(ours) - min(ours)) / (min(ours) - max(read(row) for row in plain))
    assert spread["order"] < 1 / 3 and spread["correlation"] < 1 / 3
    assert 0 < spread["chord"] < 1 / 2
    assert scale == "1/2" or spread["chord"] == max(spread.values())  # "agree on no number less"
    assert min(row["chord"] for row in told) > photo["chord"]  # "too long"


def test_one_rule_does_the_work_of_several_levels() -> None:
    first = [row for row in rows("cascade") if row["training"] == 0]
    by: dict[tuple[str, int], Row] = {(row["model"], row["seed"]): row for row in first}
    for scale, seeds in (("1/2", 3), ("1", 1)):
        for seed in range(seeds):
            one, many = by[f"one rule, {scale}", seed], by[f"cascade, {scale}", seed]
            assert 0 < one["order"] - many["order"] < 0.03  # "a little more in order"
            assert one["cpu_seconds_per_megapixel"] > 1.2 * many["cpu_seconds_per_megapixel"]
            for reduction, seen in many["reductions"].items():
                for eye, told in seen["metrics"]["extractors"].items():
                    other = one["reductions"][reduction]["metrics"]["extractors"][eye]
                    assert near(other["kernel_distance"], told["kernel_distance"], 0.25)
    assert 2 * by["one rule, 1", 0]["parameters"] == by["cascade, 1", 0]["parameters"]
    work = {n: Experiment.read(f"tissue-{n}") for n in ("scales", "quarter", "half", "full")}
    steps = {
        name: e.training.steps * e.training.batch * e.model["steps"] * e.data["size"] ** 2
        for name, e in work.items()
    }
    assert steps.pop("scales") == pytest.approx(sum(steps.values()), rel=1e-3)


def near(value: float, said: float, part: float = 0.1) -> bool:
    return abs(value - said) <= part * said


def size(name: str) -> int:
    return record(name)["parameters"]


def web(name: str) -> dict[str, Any]:
    return json.loads((WEB / f"{name}.json").read_text())


def rollouts(name: str) -> tuple[int, int]:
    growing = Experiment.read(name).growing
    return growing.min_rollout, growing.max_rollout


def cells_of(chapter: str) -> list[str]:
    (path,) = (ROOT / "book").glob(f"{chapter}_*.ipynb")
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


class Counting(nn.Module):
    """Counts the cells of the windows that it is called for."""

    schedule, cells = None, 0

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        self.cells += math.prod(noisy.shape[2:])
        return noisy


def work(name: str) -> float:
    """How many cells chapter 7's way to draw in pieces computes for each cell of the chapter's canvas."""
    (code,) = (cell for cell in cells_of("07") if f"class {name}(" in cell)
    definition = next(node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))
    model = Counting()
    steps = load("web-tissue").network.steps  # type: ignore[union-attr]
    names: dict[str, Any] = {"torch": torch, "itertools": itertools, "K": steps, "model": model}
    exec(ast.unparse(definition), names)
    (made,) = re.findall(rf"draw\(({name}\(.*?\)), start\)", code)
    (shape,) = re.findall(r"start = noise\.normal\(torch\.empty\((.*?)\)", "\n".join(cells_of("07")))
    canvas = torch.zeros(*map(int, shape.split(",")))
    eval(made, names)(canvas, torch.tensor([0]))
    return model.cells / math.prod(canvas.shape[2:])


# In which chapter, what it says, and whether that is so.
SAID: list[tuple[str, str, Callable[[], bool]]] = [
    ("01", "same rule of six thousand numbers", lambda: near(size("growing-regenerate"), 6_000)),
    ("01", "of a rule with 96 hidden units", lambda: Experiment.read("growing-grow").model["hidden"] == 96),
    ("01", "with rollouts of 40 to 60 steps", lambda: rollouts("growing-grow") == (40, 60)),
    (
        "02",
        "twice as wide, that was trained for 20,000 steps",
        lambda: record("digits-mlp")["steps"] == 20_000,
    ),
    ("02", "a sixth of the weights", lambda: near(6 * size("web-digits"), size("digits-mlp"))),
    ("02", "1,500 infinitely narrow", lambda: len(Digits(8).images) == 1_500),
    ("03", "about 70 thousand parameters", lambda: near(size("tissue-diff-nca"), 70_000, 0.03)),
    ("03", "with 25 thousand parameters", lambda: near(size("web-tissue"), 25_000, 0.03)),
    ("03", "20 denoiser calls of eight steps", lambda: web("web-tissue")["sampler_steps"] == 20),
    ("03", "20 denoiser calls of eight steps", lambda: web("web-tissue")["steps"] == 8),
    ("03", "to the right, up to 232 cells", lambda: "WIDEST = 232;" in (WEB / "diffusion.js").read_text()),
    ("06", "1,024 other held-out", lambda: "range(1024)" in (ROOT / "benchmarks/editing.py").read_text()),
    ("06", "an automaton of 25 thousand parameters", lambda: near(size("web-tissue"), 25_000, 0.03)),
    ("07", "at most 20,480 numbers", lambda: SMALLEST == 20_480),
    ("07", "windows hold 1.46 times", lambda: round(work("ByHand"), 2) == 1.46),
    ("07", "the overlapping tiles 2.25 times", lambda: work("Blended") == 2.25),
    ("08", "an eighth of the parameters", lambda: near(8 * size("faces-fourier"), 1.1e6)),
    ("08", "256 samples each", lambda: counts("tissue-resting") == {256}),
    ("09", "four rules of 70 thousand parameters", lambda: near(size("tissue-cascade"), 280_000, 0.03)),
]


def counts(model: str) -> set[int]:
    return {row["count"] for row in rows("calls") if row["model"] == model}


@pytest.mark.parametrize(("chapter", "words", "so"), SAID, ids=[words for _, words, _ in SAID])
def test_numbers_in_prose_are_those_of_records_and_recipes(
    chapter: str, words: str, so: Callable[[], bool]
) -> None:
    text = re.sub(r"\s+", " ", " ".join(cells_of(chapter)))
    assert words in text, "the sentence has changed: change it here too"
    assert so()
