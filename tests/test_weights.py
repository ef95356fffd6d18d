"""Weights: parity with the public implementation, and files that say what they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

import nca_lib
from nca_lib import automaton, weights
from nca_lib.cascade import Cascade, cascade_of
from nca_lib.diff_nca import DiffNCA
from nca_lib.experiments.settings import Experiment
from nca_lib.weights import WeightsError, from_reference

GOLDEN = Path(__file__).parent / "golden" / "reference_c8_h16.npz"
TINY = Experiment.from_dict(
    {"name": "tiny", "model": {"kind": "diff-nca", "channels": 8, "hidden": 16, "steps": 2}}
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def image_stage(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {name.removeprefix("weights/"): name for name in golden if name.startswith("weights/")}
    return {name: golden[full] for name, full in names.items() if "rgb" in name}


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 2e-6)])
def test_the_image_stage_reproduces_the_public_implementation(
    golden: dict[str, Tensor], case: int, dtype: torch.dtype, tolerance: float
) -> None:
    steps = int(golden[f"case{case}/steps"])
    model = from_reference(image_stage(golden), steps=steps, update_probability=1.0).to(dtype)
    noisy = golden[f"case{case}/image"].permute(0, 3, 1, 2).to(dtype)
    expected = golden[f"case{case}/image_only_state"].permute(0, 3, 1, 2).to(dtype)
    with torch.no_grad():
        *_, state = model.rollout(model.seed(noisy), golden[f"case{case}/t"].to(dtype))
    assert float((state - expected).abs().max() / expected.abs().max()) < tolerance


def test_from_reference_takes_the_probability_that_a_cell_does_update(golden: dict[str, Tensor]) -> None:
    model = from_reference(image_stage(golden), steps=5, update_probability=0.9)
    assert isinstance(model, DiffNCA)
    assert (model.channels, model.steps, model.update_probability) == (8, 5, 0.9)
    assert not model.training


def test_missing_and_unknown_names_are_refused_by_name(golden: dict[str, Tensor]) -> None:
    short = image_stage(golden)
    del short["fc1_rgb.weight_g"]
    with pytest.raises(WeightsError, match=r"missing \['fc1_rgb.weight_g'\], unknown \[\]"):
        from_reference(short, steps=1, update_probability=1.0)
    with pytest.raises(WeightsError, match=r"missing \[\], unknown \['extra.bias'\]"):
        from_reference(image_stage(golden) | {"extra.bias": torch.zeros(1)}, steps=1, update_probability=1.0)


def test_a_saved_model_is_loaded_with_the_same_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = TINY.build_model(), tmp_path / "tiny.safetensors"
    weights.save(model, path, {"experiment": TINY.to_dict(), "seed": 3})
    loaded = weights.load(path)
    saved, found = model.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_the_record_describes_the_file(tmp_path: Path) -> None:
    model, path = TINY.build_model(), tmp_path / "tiny.safetensors"
    weights.save(model, path, {"experiment": TINY.to_dict(), "seed": 3})
    record = weights.record(path)
    assert record["seed"] == 3
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert record["tensors_sha256"] == weights.digest(model.state_dict())
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.with_suffix(".json").read_text()) | {"training_seconds": None} == record
    assert record["library_version"] == nca_lib.__version__
    assert Experiment.from_dict(record["experiment"]) == TINY


def test_equal_trainings_write_equal_files_however_long_they_take(tmp_path: Path) -> None:
    model, paths = TINY.build_model(), [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seconds, path in enumerate(paths):
        weights.save(model, path, {"experiment": TINY.to_dict(), "training_seconds": seconds})
        assert weights.record(path)["training_seconds"] == seconds
    assert paths[0].read_bytes() == paths[1].read_bytes()
    paths[1].with_suffix(".json").unlink()
    assert weights.record(paths[1])["training_seconds"] is None


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    weights.save(TINY.build_model(), path, {"experiment": TINY.to_dict()})
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*sha256"):
        weights.load(path)


def test_weights_are_one_file_that_holds_its_record(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    weights.save(TINY.build_model(), path, {"experiment": TINY.to_dict(), "seed": 3})
    path.with_suffix(".json").unlink()
    weights.load(path)
    assert weights.record(path)["seed"] == 3


def test_a_pair_of_files_as_written_before_loads_and_needs_both(tmp_path: Path) -> None:
    path, model = tmp_path / "old.safetensors", TINY.build_model()
    blob = to_safetensors(model.state_dict())
    path.write_bytes(blob)
    record = {"experiment": TINY.to_dict(), "sha256": hashlib.sha256(blob).hexdigest()}
    with pytest.raises(WeightsError, match=r"old\.json is missing"):
        weights.load(path)
    path.with_suffix(".json").write_text(json.dumps(record))
    assert weights.digest(weights.load(path).state_dict()) == weights.digest(model.state_dict())


def hostile(path: Path, tensors: dict[str, Tensor], record: object) -> None:
    if isinstance(record, dict):
        record = {"tensors_sha256": weights.digest(tensors)} | record
    text = record if isinstance(record, str) else json.dumps(record)
    path.write_bytes(to_safetensors(tensors, metadata={"record": text}))


def changed(**model: object) -> dict[str, object]:
    return {"experiment": TINY.to_dict() | {"model": dict(TINY.model) | model}}


GOOD = {"experiment": TINY.to_dict()}
RECORDS = {
    "not JSON": ("{", "not JSON"),
    "nested deep": ("[" * 100_000 + "]" * 100_000, "not JSON"),
    "a list": ([1], "a list, not an object"),
    "empty": ({}, "no 'experiment'"),
    "another hash": (GOOD | {"tensors_sha256": "0"}, "sha256 differs"),
    "a hash of no text": (GOOD | {"tensors_sha256": {}}, "sha256 differs"),
    "no name": ({"experiment": {}}, "name: missing"),
    "unknown kind": (changed(kind="virus"), "model.kind: 'virus' is unknown"),
    "a billion channels": (changed(channels=10**9), "no model that can be built"),
    "some thousand channels": (changed(channels=3000), "a layer of .* weights"),
    "no such size": (changed(channels=3), "channels is 3"),
    "more layers": (changed(hidden=8), "'network.cell.modulate_hidden"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_hostile_record_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    record, message = RECORDS[case]
    path = tmp_path / "stranger.safetensors"
    hostile(path, TINY.build_model().state_dict(), record)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(path)
    assert "stranger.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_too_large_is_refused_before_fixed_filters_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"experiment": {"name": "tiny", "model": {"kind": "growing-nca", "channels": 3000}}}
    hostile(tmp_path / "stranger.safetensors", TINY.build_model().state_dict(), record)
    monkeypatch.setattr(automaton, "sobel_filters", lambda: pytest.fail("filters are made"))
    with pytest.raises(WeightsError, match=r"a layer of .* weights"):
        weights.load(tmp_path / "stranger.safetensors")


def test_hostile_tensors_are_refused_by_name(tmp_path: Path) -> None:
    path, whole = tmp_path / "stranger.safetensors", TINY.build_model().state_dict()
    bias = "network.cell.narrow.bias"
    tensors = {
        f"{bias}' is missing": {key: value for key, value in whole.items() if key != bias},
        "'extra' is none of the model": whole | {"extra": torch.zeros(1)},
        f"{bias}' is torch.float64": whole | {bias: whole[bias].double()},
        f"{bias}' is torch.float32 .4,. instead of": whole | {bias: whole[bias][:4]},
        f"{bias}' holds values that are not finite": whole | {bias: whole[bias] * float("nan")},
    }
    for message, given in tensors.items():
        hostile(path, given, GOOD)
        with pytest.raises(WeightsError, match=message):
            weights.load(path)


@pytest.mark.parametrize("blob", [b"", b"x", b"\xff" * 8, (2**43).to_bytes(8, "little") + b"{}", b"\0" * 100])
def test_a_file_that_is_no_safetensors_is_refused(blob: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stranger.safetensors"
    path.write_bytes(blob)
    path.with_suffix(".json").write_text(json.dumps(GOOD | {"sha256": hashlib.sha256(blob).hexdigest()}))
    with pytest.raises(WeightsError, match=r"stranger\.safetensors.*damaged"):
        weights.load(path)


def test_numbers_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    path, whole = tmp_path / "half.safetensors", TINY.build_model().state_dict()
    hostile(path, {key: value.bfloat16() for key, value in whole.items()}, GOOD)
    with pytest.raises(WeightsError, match=r"is torch.bfloat16 .* instead of torch.float32"):
        weights.load(path)
    header = json.dumps(
        {
            "__metadata__": {"record": json.dumps(GOOD)},
            "x": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(WeightsError, match="not a safetensors file, or damaged"):
        weights.load(path)


def test_the_digest_is_of_names_and_bytes() -> None:
    tensors = {"b": torch.tensor(3.0), "a": torch.arange(6).view(2, 3).T}
    by_hand = hashlib.sha256(b"a" + np.arange(6).reshape(2, 3).T.tobytes() + b"b" + np.float32(3).tobytes())
    assert weights.digest(tensors) == by_hand.hexdigest()


def test_levels_without_a_training_are_joined_too(tmp_path: Path) -> None:
    paths = [level("layout", tmp_path), level("half", tmp_path, context={"factor": 4})]
    for path in paths:
        weights.save(weights.load(path), path, {"experiment": weights.record(path)["experiment"]})
    weights.join(paths, tmp_path / "joined.safetensors")
    assert weights.record(tmp_path / "joined.safetensors")["steps"] == 0


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="no weights 'nonsense'") as caught:
        weights.load("nonsense")
    assert weights.names()
    assert all(name in str(caught.value) for name in weights.names())


def level(name: str, folder: Path, **settings: object) -> Path:
    """Weights of an untrained level of a cascade."""
    torch.manual_seed(len(name))
    model = {"kind": "diff-nca", "channels": 12, "hidden": 16, "steps": 2, "position": False}
    model |= {"context_channels": 4} if settings else {}
    model |= settings.pop("model", {})  # type: ignore[operator]
    experiment = Experiment.from_dict({"name": name, "model": model, **settings})
    path = folder / f"{name}.safetensors"
    record = {
        "experiment": experiment.to_dict(),
        "seed": 3,
        "steps": 5,
        "images_seen": 80,
        "training_seconds": 9,
    }
    weights.save(experiment.build_model(), path, record)
    return path


def test_joined_levels_load_as_the_cascade_of_them(tmp_path: Path) -> None:
    levels = [level("layout", tmp_path), level("half", tmp_path, context={"factor": 4})]
    levels.append(level("full-scale", tmp_path, context={"factor": 2}))
    weights.join(levels, tmp_path / "joined.safetensors")
    joined, record = (
        weights.load(tmp_path / "joined.safetensors"),
        weights.record(tmp_path / "joined.safetensors"),
    )
    by_hand = cascade_of([(s, weights.load(p)) for s, p in zip((8, 2, 1), levels, strict=True)])  # type: ignore[misc]
    images = [nca_lib.sample(model, (32, 40), steps=2) for model in (joined, by_hand)]
    assert torch.equal(*images)
    assert record["parameters"] == sum(weights.record(path)["parameters"] for path in levels)
    assert (record["steps"], record["images_seen"], record["training_seconds"]) == (15, 240, 27)
    assert [each["experiment"]["name"] for each in record["levels"]] == ["layout", "half", "full-scale"]
    assert record["experiment"]["name"] == "joined"


def test_a_cascade_is_no_level(tmp_path: Path) -> None:
    levels = [level("layout", tmp_path), level("half", tmp_path, context={"factor": 4})]
    weights.join(levels, tmp_path / "joined.safetensors")
    for wrong in ([tmp_path / "joined.safetensors", levels[1]], [levels[0], tmp_path / "joined.safetensors"]):
        with pytest.raises(WeightsError, match=r"joined.* is itself a cascade; give the levels"):
            weights.join(wrong, tmp_path / "again.safetensors")


def test_one_rule_of_several_scales_is_joined_to_be_each(tmp_path: Path) -> None:
    layout, told = level("layout", tmp_path), {"kind": "tissue-scales", "coarsest": 2}
    rule = level("rule", tmp_path, context={"factor": 2}, data=told, model={"context_channels": 5})
    weights.join([layout, rule, rule], tmp_path / "joined.safetensors")
    joined, below, one = (weights.load(p) for p in (tmp_path / "joined.safetensors", layout, rule))
    by_hand = Cascade(Cascade(below, one, 2, scale=0.5), one, 2, scale=1.0)  # type: ignore[arg-type]
    images = [nca_lib.sample(model, (32, 40), steps=2) for model in (joined, by_hand)]
    assert torch.equal(*images)


def test_what_is_no_cascade_is_not_joined(tmp_path: Path) -> None:
    levels = [level("layout", tmp_path), level("other", tmp_path)]
    with pytest.raises(WeightsError, match=r"other was not trained with context.factor"):
        weights.join(levels, tmp_path / "joined.safetensors")
    with pytest.raises(WeightsError, match="at least two levels"):
        weights.join(levels[:1], tmp_path / "joined.safetensors")
    with pytest.raises(WeightsError, match="must end in"):
        weights.join(levels, tmp_path / "joined.toml")
    assert len(list(tmp_path.iterdir())) == 4


def test_levels_that_do_not_fit_each_other_are_not_joined(tmp_path: Path) -> None:
    factor: dict[str, object] = {"context": {"factor": 2}}
    layout, half = level("layout", tmp_path), level("half", tmp_path, **factor)
    full = level("full-scale", tmp_path, **factor)
    grey = level("grey", tmp_path, model={"image_channels": 1, "context_channels": 0})
    five = level("five", tmp_path, model={"context_channels": 5}, **factor)
    plain = level("plain", tmp_path, data={"kind": "tissue-scales"}, **factor)
    for levels, message in (
        ([half, full], "half reads 4 channels of context; the coarsest level, which comes first, reads none"),
        ([grey, half], "half draws 3 channels, the level below it 1; they must be as many"),
        ([layout, five], "five reads 5 channels of context; as a level of a cascade it is told 4"),
        ([layout, plain], "plain reads 4 channels of context; as a level of a cascade it is told 5"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights.join(levels, tmp_path / "joined.safetensors")
    assert not (tmp_path / "joined.safetensors").exists()


def test_a_joined_file_whose_record_misses_a_level_is_refused(tmp_path: Path) -> None:
    levels = [level("layout", tmp_path), level("half", tmp_path, context={"factor": 4})]
    weights.join(levels, path := tmp_path / "joined.safetensors")
    model, record = weights.load(path), weights.record(path)
    for broken in ([], record["levels"][:1], [{}, {}], record["levels"][::-1]):
        weights.save(model, path, record | {"levels": broken})
        with pytest.raises(WeightsError):
            weights.load(path)


@pytest.mark.parametrize("name", weights.names())
def test_shipped_weights_load_and_their_records_are_complete(name: str) -> None:
    model, record = weights.load(name), weights.record(name)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    expected = {"experiment", "data_fingerprint", "seed", "images_seen", "hardware", "training_seconds"}
    assert expected | {"training_loss", "held_out_loss", "sha256", "library_version"} <= record.keys()
    assert record["experiment"]["name"] == name
    assert record["images_seen"] > 0
