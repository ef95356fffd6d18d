"""Model cards: what shipped weights are, from their records, the shipped rows, and a statement on their data.

The form is that of Mitchell et al., "Model Cards for Model Reporting" (2019, arXiv 1810.03993), the data's
that of Gebru et al., "Datasheets for Datasets" (2021, arXiv 1803.09010), cut down to what can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nca_lib import weights
from nca_lib.errors import WeightsError
from nca_lib.experiments.matrix import rows

SMALL = 1_000_000  # images seen; those who publish train on millions


@dataclass(frozen=True)
class Statement:
    """What is to be said of a data set that shipped weights were trained on.

    Attributes:
        source: where the images come from.
        licence: theirs.
        split: what is held out.
        holds: what is in it.
        lacks: what is not, so that a model cannot know it.
        unfit: what its models must not be used for.
    """

    source: str
    licence: str
    split: str
    holds: str
    lacks: str
    unfit: str


STATEMENTS = {
    "tissue": Statement(
        source="`skimage.data.immunohistochemistry`: one photograph, 512x512 pixels, by the Center for "
        "Microscopy And Molecular Imaging (CMMI)",
        licence="no known copyright restrictions, as scikit-image says; CMMI is to be acknowledged",
        split="four of its sixteen blocks of 128x128 pixels are held out; training crops keep 8 pixels away",
        holds="human colon glands, stained for the protein FHL2 (brown) and with haematoxylin (blue)",
        lacks="any other patient, organ, stain, laboratory or scanner; any label; any known disease",
        unfit="diagnosis, teaching pathology, or training and testing of what serves these: all is from a "
        "single field of view, and what looks like tissue is no finding",
    ),
    "digits": Statement(
        source="`sklearn.datasets.load_digits`: the test part of Alpaydin and Kaynak's Optical Recognition "
        "of Handwritten Digits (UCI, 1998)",
        licence="CC BY 4.0, as UCI says; Alpaydin and Kaynak are to be named",
        split="the first 1,500 of 1,797 images train, the rest is held out",
        holds="grey digits of 8x8 pixels and 17 levels, written by 13 people; larger ones are resampled",
        lacks="who wrote what; strokes finer than 8x8 pixels can hold; other signs than ten digits",
        unfit="judging or training readers of handwriting that matter to somebody",
    ),
    "faces": Statement(
        source="drawn by this library, `nca_lib.data.faces`: signed distances, random attributes",
        licence="MIT, as the library",
        split="portraits of other seeds are held out; none is in both parts",
        holds="cartoons with seven skin tones, eight hair colours, glasses and beards, by fixed chances",
        lacks="photographs and real people; the tones are colours of a palette and stand for no population",
        unfit="any statement on people, and recognising, judging or imitating them",
    ),
    "ladybird": Statement(
        source="drawn by this library, `nca_lib.experiments.growing`: a single picture of a ladybird",
        licence="MIT, as the library",
        split="none: the automaton grows this picture and no other",
        holds="one picture of 40x40 cells",
        lacks="everything else",
        unfit="anything but studying how it grows",
    ),
}


def statement(name: str) -> str:
    """The data statement of a key of [`STATEMENTS`][], as Markdown."""
    said = STATEMENTS[name]
    lines = {
        "Source": said.source,
        "Licence": said.licence,
        "Split": said.split,
        "In it": said.holds,
        "Not in it": said.lacks,
        "Not for": said.unfit,
    }
    return _listed(name.capitalize(), lines)


def card(name: str) -> str:
    """The model card of shipped weights, as Markdown.

    Raises:
        WeightsError: no weights of this name ship with the library.
    """
    if name not in weights.names():
        raise WeightsError(f"no shipped weights {name!r}; choose one of: {', '.join(weights.names())}")
    record = weights.record(name)
    levels = record.get("levels", [record])
    data = _data(record["experiment"])
    said = STATEMENTS[data.partition("-by-")[0]]  # the same images, with what they show
    lines = {
        "What": _what(record, levels),
        "Made by": "`nca_lib`, 2026; MIT licence, weights included",
        "Trained on": f"{data}: {said.source}. Licence: {said.licence}. Held out: {said.split}",
        "Recipe": ". Then ".join(_recipe(level["experiment"]) for level in levels),
        "Budget": _budget(record),
        "Measured": "; ".join(_measured(record)),
        "Limits": "; ".join(_limits(record, said)),
        "Not for": said.unfit,
        "File": f"sha256 {record['sha256']}, written by version {record['library_version']}",
    }
    return _listed(name, lines)


def _listed(title: str, lines: Mapping[str, str]) -> str:
    return "\n".join([f"### {title}", "", *(f"- **{key}**: {text}." for key, text in lines.items()), ""])


def _data(experiment: Mapping[str, Any]) -> str:
    grows = experiment["model"]["kind"] == "growing-nca"
    return str(experiment["growing"]["picture"] if grows else experiment["data"]["kind"])


def _what(record: Mapping[str, Any], levels: list[Mapping[str, Any]]) -> str:
    model = record["experiment"]["model"]
    said = [model["kind"], f"{record['parameters']:,} parameters"]
    if len(levels) > 1:
        said.insert(0, f"cascade of {len(levels)} levels")
    if "steps" in model:
        said.append(f"{model['steps']} automaton steps a call")
    if model["kind"] != "growing-nca":
        size = record["experiment"]["data"]["size"]
        said.append(f"trained on images of {size}x{size} pixels")
    return ", ".join(said)


def _recipe(experiment: Mapping[str, Any]) -> str:
    training, model = experiment["training"], experiment["model"]
    shape = [f"{key} {value}" for key, value in model.items() if key not in ("kind", "steps") and value]
    optimizer = training.get("optimizer", "adam")  # of records from before there was a choice
    rate = training["muon_learning_rate" if optimizer == "muon" else "learning_rate"]
    said = [f"{experiment['name']} with {', '.join(shape)}", f"{optimizer} at {rate:g}"]
    said.append(f"batch {training['batch']}")
    if model["kind"] != "growing-nca":
        diffusion = experiment["diffusion"]
        said.append(f"{diffusion['schedule']} schedule of {diffusion['timesteps']} steps")
        said.append(f"predicts {diffusion['target']}")
    return "; ".join([*said, f"seed {training['seed']}"])


def _budget(record: Mapping[str, Any]) -> str:
    return (
        f"{record['steps']:,} steps, {record['images_seen']:,} images, {record['training_seconds'] / 60:.0f} "
        f"minutes on {record['hardware']}, PyTorch {record['torch_version']}"
    )


def _measured(record: Mapping[str, Any]) -> list[str]:
    """The held-out loss, and what the shipped row of these very weights says, if there is one."""
    said = [f"held-out loss {record['held_out_loss']:.3f}"]
    for row in rows("shipped"):
        if row.get("sha256") == record["sha256"]:
            floors, counts = row["floor"]["extractors"], row["recipe"]["counts"]
            for name, found in row["metrics"]["extractors"].items():
                floor = floors[name]["frechet_distance"]
                said.append(
                    f"Frechet distance by {name} {found['frechet_distance']:.3g} (real images: "
                    f"{floor:.3g}), precision {found['precision']:.2f}, recall {found['recall']:.2f}"
                )
            return [*said, f"{counts['generated']} samples against {counts['real']} held-out images"]
    return [*said, "no shipped row measures these very weights"]


def _limits(record: Mapping[str, Any], said: Statement) -> list[str]:
    found = [f"its data lacks {said.lacks}"]
    if record["images_seen"] < SMALL:
        found.append(f"{record['images_seen']:,} images are far fewer than published trainings see")
    if record["experiment"]["model"]["kind"] == "mlp":
        found.append("draws images of its training size only")
    return found
