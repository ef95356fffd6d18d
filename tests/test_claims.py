"""What chapters 6 and 8 say in so many words holds in the rows that they show."""

import json
from itertools import product
from typing import Any

import pytest
from expected_pages import ROOT

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
    for row in rows("editing"):
        if row["weights"] in SHIPPED:
            for distances in (row.get(key) for key in ("distances", "anywhere", "edge", "within")):
                assert distances is None or distances.keys() == EXTRACTORS, row
    for row in rows("calls"):
        if row["model"] in SHIPPED:
            assert row["extractors"].keys() == EXTRACTORS


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


@pytest.mark.parametrize(("data", "factor"), list(product(("tissue", "faces"), (2, 4, 8))))
def test_enlarging(data: str, factor: int) -> None:
    table = edits(edit="upscale", data=data, factor=factor)
    ddnm, more, less = table["DDNM"], table["published, T/10"], table["published, T/14"]
    assert ddnm["consistency"] < 1e-5
    assert nearer(ddnm, table["bicubic"])
    assert (ddnm["psnr"] > table["bicubic"]["psnr"]) == (data == "faces")
    assert nearer(more, less)
    assert more["consistency"] >= less["consistency"]


def test_second_order_needs_fewer_calls() -> None:
    found = {(row["model"], row["sampler"], row["calls"]): row["extractors"] for row in rows("calls")}
    for model, name in product(sorted(SHIPPED), sorted(EXTRACTORS)):
        second, first = found[model, "dpm_solver", 10][name], found[model, "ddim", 10][name]
        assert second["frechet_distance"] < first["frechet_distance"]


def test_fixed_masks_change_nothing() -> None:
    found = {
        (row["sampler"], row["calls"], row["firing"]): row["extractors"]["nca-features-1"]
        for row in rows("calls")
        if row["model"] == "tissue-resting"
    }
    for sampler, calls, firing in found:
        fixed, fresh = found[sampler, calls, "fixed"], found[sampler, calls, "fresh"]
        off = fixed["frechet_distance"] - fresh["frechet_distance"]
        assert firing != "fixed" or abs(off) < fresh["standard_error"]
