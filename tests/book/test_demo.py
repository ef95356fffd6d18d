"""What computes in the browser equals the library's mathematics; run by Node."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from IPython.display import HTML
from test_export import PARITY, array, base64_of, node, untrained

from nca_lib.book import demo
from nca_lib.book.export import export, rounded
from nca_lib.book.pages import WEB, bundle
from nca_lib.book.painting import image_of_waves, wave_mask
from nca_lib.book.players import message_states
from nca_lib.canvas.tiles import sample_region
from nca_lib.data.faces import Faces
from nca_lib.fourier import spectrum_window

COMPONENTS = sorted(path.name for path in WEB.glob("*.js") if "export default" in path.read_text())
ROWS: list[dict[str, Any]] = [
    {
        "name": name,
        "matrix": "faces",
        "experiment": {"model": {"kind": kind}, "data": {"kind": "faces"}},
        "parameters": size,
        "operations": 1e9,
        "training_seconds": 600.0,
        "images_seen": 1000,
        "metrics": {
            "extractors": {"eye": {"frechet_distance": 9.0 * size, "note": "text", "kid": None}},
            "coherence": {"all": 0.5},
        },
        "floor": {"extractors": {"eye": {"frechet_distance": 2.0}}, "coherence": {"all": 1.0}},
    }
    for name, kind, size in (("one", "unet", 10), ("two", "diff-nca", 20))
]


@pytest.fixture
def face() -> torch.Tensor:
    return Faces(32).image(0, np.random.default_rng(0))


def test_a_message_is_the_librarys_in_both_spaces() -> None:
    script = """
    const M = await import(given.module), numbers = (a) => text(Float32Array.from(a));
    const found = M.messageStates(10, 12, 17, 6).map((s) => [numbers(s.local), numbers(s.everywhere)]);
    console.log(JSON.stringify(found));
    """
    found = node(script, module=(WEB / "messages.js").as_uri())
    for (local, everywhere), expected in zip(found, message_states(10, 12, 17, 6), strict=True):
        for text, state in zip((local, everywhere), expected, strict=True):
            torch.testing.assert_close(array(text, 17, 17, 1)[0], state.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_message_fills_a_square_in_image_space_and_everything_in_frequency_space(steps: int) -> None:
    local, everywhere = list(message_states(10, 12, 25, 6))[steps]
    assert int((local > 0).sum()) == (2 * steps + 1) ** 2
    assert int((everywhere > 1e-9).sum()) == (625 if steps else 1)


def test_painted_waves_make_the_librarys_image(face: torch.Tensor) -> None:
    script = """
    const S = await import(given.module), image = floats(given.image), n = 9;
    const kept = Uint8Array.from(given.kept.flat());
    const coefficients = S.coefficientsOf(image, 32, 32, 3, n), numbers = (a) => text(Float32Array.from(a));
    console.log(JSON.stringify([numbers(coefficients[0]), numbers(coefficients[1]),
      text(S.imageOfWaves(coefficients, kept, 32, 32, 3, n)),
      ["quadrant", "half plane", "all"].map((p) => [...S.windowMask(p, 5, n)])]));
    """
    kept = torch.rand(17, 17, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = kept & kept.flip(0, 1)
    module = (WEB / "spectrum.js").as_uri()
    real, imaginary, image, masks = node(
        script, module=module, image=base64_of(face), kept=kept.int().tolist()
    )
    expected = spectrum_window(face[None], "half_plane", 9)[0]
    torch.testing.assert_close(array(real, 17, 9, 3), expected.real, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(array(imaginary, 17, 9, 3), expected.imag, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(array(image, 32, 32, 3), image_of_waves(face, kept), atol=PARITY, rtol=0)
    for found, window in zip(masks, ("quadrant", "half_plane", "all"), strict=True):
        assert found == wave_mask(window, 5, 9).int().flatten().tolist()  # type: ignore[arg-type]


def test_principal_components_are_those_of_the_covariance() -> None:
    vectors = torch.randn(60, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [3, 0.2, 2, 1, 0.1]
    )
    script = """
    const I = await import(given.module), { mean, axes } = I.principal(floats(given.vectors), 5);
    console.log(JSON.stringify([[...mean], axes.map(({ axis, deviation }) => [[...axis], deviation])]));
    """
    given = base64_of(vectors.T[:, None])
    mean, axes = node(script, module=(WEB / "inside.js").as_uri(), vectors=given)
    torch.testing.assert_close(torch.tensor(mean), vectors.mean(0), atol=1e-5, rtol=1e-5)
    centred = (vectors - vectors.mean(0)).double()
    values, expected = torch.linalg.eigh(centred.T @ centred / 60)
    for number, (axis, deviation) in enumerate(axes, 1):
        assert deviation == pytest.approx(float(values[-number].sqrt()), rel=1e-3)
        assert abs(float(torch.tensor(axis).double() @ expected[:, -number])) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_joined_component_is_one_module_without_imports(name: str) -> None:
    text = bundle(name)
    assert "\nimport " not in text
    assert text.count("\nexport ") == 1
    node(f"new Function({json.dumps(text.replace('export default', 'return'))}); console.log(1);")


def test_the_results_explorer_holds_numbers_with_words_and_which_way_is_better() -> None:
    explorer = demo.results_explorer(ROWS)
    assert isinstance(explorer, demo.Demo)
    assert explorer.words["eye.frechet_distance"] == "Fréchet distance (eye)"
    assert explorer.better["eye.frechet_distance"] == "lower"
    assert explorer.better["coherence.all"] == "higher"
    assert [row["numbers"]["eye.frechet_distance"] for row in explorer.rows] == [90, 180]
    assert explorer.rows[0]["floor"] == {"eye.frechet_distance": 2.0, "coherence.all": 1.0}
    explorer.close()
    with pytest.raises(ValueError, match="no results to show"):
        demo.results_explorer([])


def test_the_calls_explorer_counts_seconds_for_one_image_and_leaves_out_other_firing_masks() -> None:
    row = {"model": "m", "sampler": "ddim", "calls": 5, "count": 256, "seconds": 128.0, "firing": "fresh"}
    row |= {"extractors": {"eye": {"frechet_distance": 30.0, "standard_error": 2.0, "floor": 8.0}}}
    explorer = demo.calls_explorer([row, row | {"firing": "fixed"}])
    assert isinstance(explorer, demo.Demo)
    (point,) = explorer.rows
    assert point["numbers"] == {"calls": 5, "seconds": 0.5, "eye": 30.0}
    assert (point["name"], point["errors"]["eye"], point["floor"]["eye"]) == ("5", 2.0, 8.0)
    explorer.close()


def test_in_the_book_each_is_alive_and_a_still_without_scripts(
    monkeypatch: pytest.MonkeyPatch, face: torch.Tensor
) -> None:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")
    for shown in (demo.message_player(17), demo.spectrum_painter(face), demo.noise_explorer(face[None])):
        assert isinstance(shown, HTML)
        still, script = shown.data.split("<noscript>")
        assert still.count("data:image/png;base64,") == still.count('alt="') == 2
        assert '<script type="module">' in script
    with pytest.raises(ValueError, match="16 frequencies need at least 32x32"):
        demo.spectrum_painter(torch.zeros(3, 40, 31))


def test_a_moving_window_shows_the_librarys_endless_image() -> None:
    model = untrained(update_probability=0.8, encoding="sinusoidal")
    script = """
    const plane = () => E.planeOf(E.load(given.model), given.seed, given.steps), one = plane();
    const last = (way) => [...way].pop(), seen = given.windows.map((window) => last(one.look(window)));
    one.look({ ...given.windows[0], x: 40 }).next(); // one that is given up does no harm
    seen.push(last(one.look(given.windows[0])));
    const afresh = last(plane().look(given.windows[2]));
    console.log(JSON.stringify([seen.map(({ values }) => text(values)), text(afresh.values), afresh.call]));
    """
    # Strips on one and on two sides, a window inside of the last one, and one far away.
    places = [(-3, 5, 9, 12), (-3, 9, 9, 12), (2, 6, 9, 12), (4, 8, 3, 4), (2**31, -(2**31), 9, 12)]
    windows = [dict(zip(("y", "x", "height", "width"), place, strict=True)) for place in places]
    seen, afresh, calls = node(script, model=export(model), seed=9, steps=4, windows=windows)
    assert calls == 4
    for found, (y, x, height, width) in zip(seen, [*places, places[0]], strict=True):
        expected = sample_region(rounded(model), y, x, height, width, 9, steps=4)
        torch.testing.assert_close(array(found, height, width, 3), expected[0], atol=PARITY, rtol=0)
    assert seen[2] == afresh, "what a window shows depends on where it was before"


def test_the_endless_plane_begins_with_the_librarys_window() -> None:
    model = untrained(update_probability=1.0)
    shown = demo.endless_plane(model, "mine", y=5, x=-7, height=8, width=10, steps=3)
    assert isinstance(shown, demo.Demo)
    assert list(shown.weights) == ["mine"]
    assert "golden" not in shown.weights["mine"]
    image = sample_region(rounded(model), 5, -7, 8, 10, steps=3)[0]
    pixels = np.frombuffer(base64.b64decode(shown.image), np.uint8).reshape(8, 10, 3)
    assert np.abs(pixels / 127.5 - 1 - image.movedim(0, -1).numpy()).max() < 0.005
    shown.close()
