"""What the benchmarks compare with computes the same as the library; their controls are told apart."""

import json
from pathlib import Path

import gpu  # from benchmarks/
import guidance
import literal
import numpy as np
import originality
import pytest
import run
import torch

from nca_lib.data.faces import Faces
from nca_lib.diff_nca import DiffNCA
from nca_lib.fourier import FourierDiffNCA


@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
def test_the_literal_computation_equals_the_librarys(kind: type[DiffNCA], position: bool) -> None:
    torch.manual_seed(0)
    options = {"frequencies": 4} if kind is FourierDiffNCA else {}
    model = kind(10, 16, 3, update_probability=1.0, position=position, **options)
    noisy, time = torch.randn(2, 3, 12, 14), torch.full((2,), 0.3)
    with torch.no_grad():
        expected = literal.call(model, noisy, time)
        torch.testing.assert_close(model(noisy, time), expected, rtol=1e-4, atol=1e-5)
        model.fast = False
        torch.testing.assert_close(model(noisy, time), expected, rtol=1e-4, atol=1e-5)


def test_the_gpu_benchmark_runs_where_it_can_be_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gpu, run):  # compiling takes a minute, and is tested elsewhere
        monkeypatch.setattr(module, "compile_step", lambda *_: None)
    targets = gpu.measure(torch.device("cpu"), gpu.SMALL, tmp_path)
    (written,) = tmp_path.glob("gpu-*.json")
    result = json.loads(written.read_text())
    assert result["targets"] == targets
    for kind in ("diff-nca", "fourier"):
        rows = result[f"training, {kind}"]
        best = max(row["ratio"] for row in rows.values())
        assert list(rows)[:2] == ["literal", "authors' order"]
        assert 0 < rows["authors' order"]["of_matrix_rate"] < 1
        assert targets[f"training, {kind}, times the literal images/s"]["found"] <= best
    assert targets["seconds of a sheet of faces"]["met"] == (
        targets["seconds of a sheet of faces"]["found"] < 1
    )


def test_where_memory_is_too_little_half_the_batch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def training(kind: str, setting: gpu.Setting, device: torch.device, rates: object) -> dict[str, int]:
        if setting.batch > 4:
            raise torch.OutOfMemoryError
        return {"batch": setting.batch}

    monkeypatch.setattr(gpu, "_training", training)
    assert gpu.training("fourier", gpu.PUBLISHED, torch.device("cpu"), {}) == {"batch": 4}


def test_originality_tells_copies_of_tissue_from_held_out_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originality, "PATCHES", (16,))
    parts = originality.TissueParts()
    rows = {row["images"]: row for row in originality.tissue_copying(parts, parts.crops(4), 4)}
    for copies in ("samples", "copies", "copies, noised", "copies, blurred"):
        assert rows[copies]["ratio"]["nearer"] > 0.95
        assert (rows[copies]["count"], rows[copies]["patches"]) == (4, 16)
    assert rows["held-out, blurred"]["ratio"]["nearer"] < 0.75
    assert rows["held-out, blurred"]["distance"]["nearer"] > rows["held-out, blurred"]["ratio"]["nearer"]


def test_originality_tells_copies_of_faces_from_other_faces() -> None:
    data = Faces(32)
    drawn = torch.stack([data.image(i, np.random.default_rng(0)) for i in range(8)])
    rows = {row["images"]: row for row in originality.faces_copying(drawn, 8, training=600)}
    assert rows["samples"]["distance"]["median"] == 0
    assert rows["copies, noised"]["ratio"]["nearer"] > 0.95


def test_originality_measures_tissue_as_tissue() -> None:
    parts = originality.TissueParts()
    rows = {row["images"]: row for row in originality.tissue_histology(parts, parts.training)}
    assert rows["samples"] == rows["training"] | {"images": "samples"}
    assert (
        rows["training, blurred"]["nucleus_area"]["value"] > 1.15 * rows["training"]["nucleus_area"]["value"]
    )
    low, high = rows["training"]["nuclei"]["interval"]
    assert low < rows["training"]["nuclei"]["value"] < high


def test_classifiers_read_what_held_out_images_show_and_chance_is_low() -> None:
    with_context, _, kinds = guidance.MODELS["digits-by-class"]
    lessons, held = (guidance.shown(with_context(16, split=split), 250) for split in ("train", "test"))
    readers = guidance.Readers(lessons[:, :1], lessons[:, 1:], kinds)
    assert readers.heeded(held[:, :1], held[:, 1:])["class"] > 0.7
    assert readers.heeded(held[:, :1], held[:, 1:].roll(1, 0))["class"] < 0.3
