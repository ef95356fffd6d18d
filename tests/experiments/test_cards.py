"""Model cards say what the records and rows say, and leave nothing out."""

import pytest

from nca_lib import weights
from nca_lib.__main__ import main
from nca_lib.experiments.cards import STATEMENTS, card, statement
from nca_lib.experiments.kinds import DATASETS
from nca_lib.experiments.matrix import rows

SECTIONS = ["What", "Made by", "Trained on", "Recipe", "Budget", "Measured", "Limits", "Not for", "File"]


@pytest.mark.parametrize("name", weights.names())
def test_every_model_has_a_whole_card(name: str) -> None:
    text = card(name)
    assert [line.split("**")[1] for line in text.splitlines() if line.startswith("- ")] == SECTIONS
    record = weights.record(name)
    for said in (f"{record['parameters']:,} parameters", f"{record['steps']:,} steps", record["sha256"]):
        assert said in text
    assert f"held-out loss {record['held_out_loss']:.3f}" in text
    assert "None" not in text


def test_numbers_are_those_of_the_row_of_these_very_weights() -> None:
    [row] = [row for row in rows("shipped") if row.get("sha256") == weights.record("faces-fourier")["sha256"]]
    for extractor, found in row["metrics"]["extractors"].items():
        assert f"by {extractor} {found['frechet_distance']:.3g} (" in card("faces-fourier")
    assert "no shipped row" in card("tissue-cascade")


def test_a_cascade_has_the_recipe_of_each_level() -> None:
    levels = weights.record("tissue-cascade")["levels"]
    assert all(level["experiment"]["name"] in card("tissue-cascade") for level in levels)


def test_statements_have_all_sections_and_are_of_known_data() -> None:
    assert STATEMENTS.keys() <= {*DATASETS, "ladybird"}
    for name in STATEMENTS:
        assert statement(name).count("\n- **") == 6


def test_the_command_prints_a_card_or_names_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "digits-mlp"]) == 0
    assert capsys.readouterr().out == card("digits-mlp") + "\n"
    assert main(["models", "mine"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "digits-mlp" in said
