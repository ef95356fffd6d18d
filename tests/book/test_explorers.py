"""Explorers: alive in Jupyter, a film in the built book."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
import torch
from IPython.display import HTML

import nca_lib
from nca_lib import weights
from nca_lib.book import demo, explorers
from nca_lib.book.figures import image_bytes
from nca_lib.book.film import PAGE_BYTES, PAGE_FRAMES, View, film_page
from nca_lib.book.panel import Explorer
from nca_lib.book.subjects import (
    Subject,
    digits_by_class,
    faces_by_attributes,
    level_words,
    radial_power,
    states,
)
from nca_lib.cascade import Guided
from nca_lib.data.conditional import asked_for, class_planes
from nca_lib.data.digits import Digits
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.experiments.settings import Experiment
from nca_lib.samplers import SAMPLERS, sample


@pytest.fixture
def in_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCA_LIB_BOOK", raising=False)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return Subject("digits", nca_lib.load("digits-mlp"), Digits(8).images[:3], "digits-mlp")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tissue() -> Subject:
    model: Any = nca_lib.load("tissue-diff-nca")
    model.network.steps = 1
    return Subject("tissue", model, torch.zeros(1, 3, 16, 16), "tissue-diff-nca")


def traits(shown: HTML) -> dict[str, Any]:
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', shown.data, re.DOTALL)
    return json.loads(data)


@pytest.mark.usefixtures("in_book")
def test_in_the_book_an_explorer_is_a_film_with_a_still_picture(digits: Subject) -> None:
    shown = explorers.sampler_explorer(digits, steps=30)
    assert isinstance(shown, HTML)
    told = traits(shown)
    assert len(told["frames"]) == PAGE_FRAMES
    assert told["frames"][-1]["caption"] == "Call 30, finished."
    still = shown.data.split("<noscript>")[0]
    assert 'alt="a sample and its clean estimate: noisy image"' in still
    assert "data:image/webp;base64," in still


@pytest.mark.usefixtures("in_book")
def test_a_film_says_what_was_set_and_no_time_of_the_machine_that_made_it(digits: Subject) -> None:
    told = traits(explorers.compare_explorer(digits, steps=(4, 2)))
    assert re.search(
        r"A: model digits, A: sampler ddim, A: steps 4, .*B: sampler dpm_solver, B: steps 2", told["note"]
    )
    captions = [frame["caption"] for frame in told["frames"]]
    assert [re.match(r"A: (\d) calls; B: (\d) calls\. Difference", c).groups() for c in captions] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "2"),
        ("4", "2"),
    ]


def test_a_film_in_a_page_is_thinned_until_it_is_light() -> None:
    noise = [View({"noise": torch.randn(3, 96, 96)}, f"{n}") for n in range(40)]
    frames = traits(film_page(noise, "noise", "frame", ""))["frames"]
    assert sum(len(picture["src"]) for frame in frames for picture in frame["pictures"]) <= PAGE_BYTES
    captions = [int(frame["caption"]) for frame in frames]
    assert captions == sorted(set(captions))
    assert captions[-1] == 39
    assert len(frames) > 3


@pytest.mark.usefixtures("in_book")
def test_only_outside_the_book_are_widgets_made(monkeypatch: pytest.MonkeyPatch, digits: Subject) -> None:
    made: list[ipw.Widget] = []
    monkeypatch.setattr(ipw.Widget, "open", lambda widget: made.append(widget))
    explorers.sampler_explorer(digits, steps=2)
    demo.noise_explorer(digits.images)
    assert not made, "a widget in a page without a kernel is a dead slider"


@pytest.mark.usefixtures("in_book")
def test_every_explorer_draws_in_the_book(digits: Subject, tissue: Subject) -> None:
    grower = nca_lib.load("growing-grow")
    for shown in (
        explorers.sampler_explorer(digits, tissue, steps=2),
        explorers.compare_explorer(digits, steps=(4, 2)),
        explorers.size_explorer(tissue, "heart", (16, 24)),
        explorers.inpainting_painter(digits),
        explorers.growing_player(grower, size=16, steps=80),  # type: ignore[arg-type]
    ):
        assert isinstance(shown, HTML)
        assert len(traits(shown)["frames"]) > 1


@pytest.mark.usefixtures("live")
def test_a_changed_control_draws_another_film(digits: Subject) -> None:
    explorer = explorers.sampler_explorer(digits, steps=4)
    assert isinstance(explorer, Explorer)
    explorer.wait(10)
    before = explorer.film.frames
    assert len(before) == 4
    explorer.controls["steps"].value = 6
    explorer.wait(10)
    assert len(explorer.film.frames) == 6
    assert explorer.film.frames[-1] != before[-1]
    assert explorer.message.value.startswith("done: 6 frames")
    assert explorer._stopper.disabled
    explorer.close()


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("kind", ["sampler", "compare", "size", "inpainting"])
def test_the_code_that_is_handed_out_runs_and_makes_what_is_shown(
    kind: str, digits: Subject, tissue: Subject
) -> None:
    makers: dict[str, Callable[[], Explorer | HTML]] = {
        "sampler": lambda: explorers.sampler_explorer(digits, steps=3),
        "compare": lambda: explorers.compare_explorer(digits, steps=(3, 2)),
        "size": lambda: explorers.size_explorer(
            Subject("tissue", nca_lib.load("web-tissue"), tissue.images, "web-tissue"),  # type: ignore[arg-type]
            "disc",
            (16, 24),
        ),
        "inpainting": lambda: explorers.inpainting_painter(digits),
    }
    explorer = makers[kind]()
    assert isinstance(explorer, Explorer)
    explorer.wait(60)
    explorer.close()
    names: dict[str, Any] = {"images": digits.images}
    exec(explorer.film.code, names)
    shown = names["a" if kind == "compare" else "filled" if kind == "inpainting" else "image"]
    values = {name: control.value for name, control in explorer.controls.items()}
    *_, last = explorer._views(**values)
    picture = next(image for label, image in last.pictures.items() if label != "what is known")
    torch.testing.assert_close(shown[0].clamp(-1, 1), picture.clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("live")
def test_guidance_is_compared_where_a_model_reads_what_it_is_asked_for(digits: Subject) -> None:
    torch.manual_seed(0)
    network = DiffNCA(channels=16, hidden=8, steps=2, image_channels=1, context_channels=10)
    model = Denoiser(network, noise_schedule("cosine", 30), "v")
    contexts = {str(digit): class_planes([digit], (8, 8)) for digit in (3, 8)}
    explorer = explorers.compare_explorer(
        Subject("asked", model, digits.images, "asked", contexts), steps=(3, 3)
    )
    assert isinstance(explorer, Explorer)
    explorer.set(wish="8", guidance_a=1, guidance_b=5, b="ddim")
    explorer.wait(30)
    explorer.close()
    values = {name: control.value for name, control in explorer.controls.items()}
    *_, last = explorer._views(**values)
    for picture, strength in zip(last.pictures.values(), (1, 5), strict=False):
        asked = Guided(model, contexts["8"], strength)
        torch.testing.assert_close(picture, sample(asked, (8, 8), steps=3)[0].clamp(-1, 1))
    names: dict[str, Any] = {"contexts": contexts}
    exec(explorer.film.code.replace('nca_lib.load("asked")', "asked"), names | {"asked": model}, names)
    torch.testing.assert_close(names["b"], sample(Guided(model, contexts["8"], 5), (8, 8), steps=3))
    plain = explorers.compare_explorer(digits, steps=(1, 1))
    assert isinstance(plain, Explorer)
    plain.close()
    assert not {"wish", "guidance_a", "guidance_b"} & plain.controls.keys()


@pytest.mark.parametrize(
    ("ask", "wish", "others"), [(digits_by_class, "7", 10), (faces_by_attributes, "glasses=round", 18)]
)
def test_what_is_asked_for_is_what_the_model_is_told(
    tmp_path: Path, ask: Callable[..., Subject], wish: str, others: int
) -> None:
    subject, t = ask(), torch.tensor([200])
    assert len(subject.contexts) == others
    context = asked_for(weights.record(subject.weights)["experiment"]["data"]["kind"], [wish], (32, 32))
    told = subject.guided(wish, 1.0)(subject.images[:1], t)
    torch.testing.assert_close(told, subject.model.given(context)(subject.images[:1], t))
    experiment = Experiment.read(subject.weights)
    file = tmp_path / "model.safetensors"  # one that is trained here
    weights.save(experiment.build_model(), file, {"experiment": experiment.to_dict()})
    assert ask(str(file)).contexts.keys() == subject.contexts.keys()


@pytest.mark.usefixtures("live")
def test_a_hole_is_painted_into_the_image_that_is_chosen_or_brought_along(digits: Subject) -> None:
    explorer = explorers.inpainting_painter(digits)
    assert isinstance(explorer, Explorer)
    explorer.set(image=2)
    assert explorer.controls["hole"].picture == image_bytes(digits.images[2])
    explorer.set(own=image_bytes(torch.ones(3, 20, 30)))
    assert explorer.controls["hole"].picture == image_bytes(torch.ones(1, 8, 8))
    explorer.wait(30)
    words = explorer.film.frames[-1]["caption"]
    assert re.search(r"distance to the truth \d\.\d\d; of other images of its kind \d\.\d\d", words)
    explorer.set(own=b"no picture")
    explorer.wait(30)
    assert explorer.message.value.startswith("the picture: unreadable")
    explorer.close()


@pytest.mark.usefixtures("live")
def test_an_empty_hole_costs_no_call(digits: Subject) -> None:
    explorer = explorers.inpainting_painter(digits)
    assert isinstance(explorer, Explorer)
    explorer.controls["hole"].mask = bytes(64)
    explorer.wait(30)
    assert [frame["caption"] for frame in explorer.film.frames] == [
        "No hole: nothing to fill, no denoiser call."
    ]
    explorer.close()


def test_states_end_with_the_librarys_sample(digits: Subject) -> None:
    for sampler in SAMPLERS:
        *_, last = states(digits.model, (8, 8), sampler=sampler, steps=5, seed=3, count=2)
        expected = sample(digits.model, (8, 8), sampler=SAMPLERS[sampler], steps=5, seed=3, count=2)
        assert torch.equal(last.image, expected)


def test_radial_power_of_white_noise_is_flat_and_a_wave_has_its_own_frequency() -> None:
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    power = torch.tensor(radial_power(noise))
    assert power.mean() == pytest.approx(1, abs=0.1)
    wave = torch.cos(torch.arange(32) * 2 * torch.pi * 5 / 32).expand(1, 32, 32)
    found = radial_power(wave)
    assert found.index(max(found)) + 1 == 5


def test_a_new_choice_cancels_the_computation_before_it() -> None:
    seen: list[int] = []

    def views(number: int) -> Iterator[View]:
        for _ in range(1000):
            seen.append(number)
            time.sleep(0.005)
            yield View({"nothing": torch.zeros(3, 4, 4)})

    explorer = Explorer({"number": ipw.IntSlider(1)}, views)
    first = explorer._thread
    time.sleep(0.05)
    explorer.controls["number"].value = 2
    assert first is not None
    first.join(5)
    assert not first.is_alive()
    time.sleep(0.05)
    explorer.close()
    explorer.wait(5)
    assert explorer._thread is not None
    assert not explorer._thread.is_alive()
    assert {1, 2} == set(seen)
    assert len(seen) < 1000


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("too\nlarge"), "too large"), (RuntimeError("a\nb"), "RuntimeError: a b")],
)
def test_whatever_goes_wrong_is_told_in_a_line_without_an_old_picture(error: Exception, told: str) -> None:
    def views(steps: int) -> Iterator[View]:
        yield View({"nothing": torch.zeros(3, 4, 4)})
        if steps > 5:
            raise error

    explorer = Explorer({"steps": ipw.IntSlider(9)}, views)
    explorer.wait(5)
    assert explorer.message.value == told
    assert not explorer.film.frames
    assert explorer._stopper.disabled
    explorer.controls["steps"].value = 2
    explorer.wait(5)
    assert explorer.message.value.startswith("done")
    assert len(explorer.film.frames) == 1
    explorer.close()


def test_a_page_that_comes_later_sees_all_frames_and_a_chosen_cell_sets_the_controls() -> None:
    def views(y: int, x: int) -> Iterator[View]:
        yield View({"cell": torch.zeros(3, 4, 4)}, f"{y} {x}")

    explorer = Explorer({"y": ipw.IntSlider(0), "x": ipw.IntSlider(0)}, views)
    explorer.wait(5)
    explorer.film._hear(None, {"event": "cell", "picture": 0, "y": 3, "x": 2}, [])
    explorer.wait(5)
    assert explorer.film.frames[0]["caption"] == "3 2"
    sent: list[Any] = []
    explorer.film.send = lambda content, buffers=None: sent.append(content)
    explorer.film._hear(None, {"event": "ready"}, [])
    assert sent == [{"event": "all", "frames": explorer.film.frames}]
    explorer.close()


def test_as_much_signal_as_noise_is_a_ratio_of_zero() -> None:
    schedule = noise_schedule("cosine", 1000)
    t = int((schedule.alpha_bar < 0.5).nonzero()[0])  # a little below 0
    assert level_words(schedule, t).endswith("log-SNR 0.0")
