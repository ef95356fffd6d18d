"""The browser's engine, run by Node, does what PyTorch does; and what it cannot run is refused by name."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import playwright
import pytest
import torch
from IPython.display import HTML
from torch import Tensor, nn

from nca_lib import weights
from nca_lib.__main__ import main
from nca_lib.automaton import GrowingNCA, states
from nca_lib.book.demo import Demo, diffusion_demo, growing_demo
from nca_lib.book.export import ExportError, export, rounded
from nca_lib.cascade import Cascade
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import MLP, Denoiser, clean_of, noise_schedule
from nca_lib.editing import KnownPixels
from nca_lib.fourier import FourierDiffNCA
from nca_lib.noise import CounterNoise, Purpose, firing_from, philox
from nca_lib.samplers import SAMPLERS, log_snr_array, sample, timestep_array

WEB = Path(__file__).parents[2] / "nca_lib" / "book" / "web"
NODE = Path(playwright.__file__).parent / "driver" / "node"  # Playwright brings its own
GROWING = ["growing-grow", "growing-persist", "growing-regenerate"]
PARITY = 1e-3

# What a script is given: `given` (JSON), the engine `E`, and the way to and from base64.
PRELUDE = """
import * as E from "{engine}";
import {{ readFileSync }} from "node:fs";
const given = JSON.parse(readFileSync(0, "utf8"));
const floats = (text) => new Float32Array(Uint8Array.from(Buffer.from(text, "base64")).buffer);
const text = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
"""


def node(script: str, **given: Any) -> Any:
    """Run a module that prints JSON."""
    module = PRELUDE.format(engine=(WEB / "sampling.js").as_uri()) + script
    command = [str(NODE), "--input-type=module", "--eval", module]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def array(text: str, *shape: int) -> Tensor:
    """Channels last in base64 to (C, H, W)."""
    values = np.frombuffer(base64.b64decode(text), np.float32).reshape(*shape)
    return torch.from_numpy(values.copy()).movedim(-1, 0)


def base64_of(image: Tensor) -> str:
    return base64.b64encode(image.movedim(0, -1).contiguous().numpy().tobytes()).decode()


def untrained(target: str = "v", **settings: Any) -> Denoiser:
    """A denoiser with weights at random, also in its last layer."""
    torch.manual_seed(0)
    network = DiffNCA(**{"channels": 12, "hidden": 16, "steps": 3, "position": False} | settings)
    return Denoiser(network, noise_schedule(), target).requires_grad_(False)  # type: ignore[arg-type]


MODELS = {
    "web-tissue's form": {"update_probability": 1.0, "encoding": "sinusoidal"},
    "masks, reference encoding": {"update_probability": 0.7, "target": "epsilon"},
    "odd sizes, grey, plain": {
        "channels": 7,
        "hidden": 10,
        "image_channels": 1,
        "modulation": False,
        "weight_norm": False,
        "update_probability": 1.0,
        "target": "x0",
    },
}


def test_philox_is_pytorchs_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    cases = rng.integers(0, 2**32, (200, 6))
    cases[0], cases[1] = 0, 2**32 - 1
    script = """
    const out = new Uint32Array(4);
    console.log(JSON.stringify(given.cases.map((c) => (E.philox(...c, out), [...out]))));
    """
    c0, c1, c2, c3, k0, k1 = torch.from_numpy(cases).unbind(1)
    expected = torch.stack(philox((c0, c1, c2, c3), (k0, k1)), dim=1)
    assert node(script, cases=cases.tolist()) == expected.tolist()


def test_noise_has_the_same_addresses() -> None:
    script = """
    const noise = new E.CounterNoise(given.seed, 5, -3), uniform = new Float32Array(7 * 9);
    for (let i = 0; i < 63; i++) uniform[i] = noise.uniform(Math.floor(i / 9), i % 9, 2, 4242, 6);
    console.log(JSON.stringify([text(uniform), text(noise.normal(7, 9, 6, 1, 1234))]));
    """
    uniform, normal = node(script, seed=2**31 + 5)
    noise, like = CounterNoise(2**31 + 5, origin=(5, -3)), torch.empty(1, 6, 7, 9)
    assert torch.equal(array(uniform, 7, 9, 1), noise.uniform(like, Purpose.FIRING, 4242, 6)[0])
    expected = noise.normal(like, Purpose.SAMPLER, 1234)[0]
    torch.testing.assert_close(array(normal, 7, 9, 6), expected, atol=2e-6, rtol=2e-6)


def test_timesteps_and_repaints_path_are_the_libraries() -> None:
    script = """
    const ways = [];
    for (let steps = 1; steps <= 300; steps++) ways.push(E.timestepArray(300, steps));
    const snr = ways.map((_, i) => E.logSnrArray(given.alpha_bar, i + 1));
    console.log(JSON.stringify([ways, E.repaintPath(E.timestepArray(300, 23), 4, 3), snr]));
    """
    schedule = noise_schedule()
    ways, path, snr = node(script, alpha_bar=schedule.alpha_bar.tolist())
    assert ways == [timestep_array(300, steps) for steps in range(1, 301)]
    assert snr == [log_snr_array(schedule, steps) for steps in range(1, 301)]
    image = torch.zeros(1, 3, 4, 4)
    known = KnownPixels(image, torch.ones(1, 1, 4, 4, dtype=torch.bool), jump=4, repeats=3)
    assert path == known.path(timestep_array(300, 23))


def grown(model: GrowingNCA, size: tuple[int, int], seed: int) -> list[Tensor]:
    with firing_from(model, CounterNoise(seed)), torch.no_grad():
        return [state[0] for state in states(model, model.seed(size), 50)]


GROW = """
const model = E.load(given.model), [height, width] = given.size, noise = new E.CounterNoise(given.seed);
const state = model.seed(height, width), kept = [];
for (let step = 0; step < 50; step += 10) {
  model.run(state, height, width, 10, noise, step);
  kept.push(text(state));
}
console.log(JSON.stringify(kept));
"""


@pytest.mark.parametrize("name", GROWING)
def test_fifty_growing_steps_equal_pytorchs(name: str) -> None:
    model, size = weights.load(name), (28, 33)
    exported = json.loads((WEB / f"{name}.json").read_text())
    expected = grown(rounded(model), size, seed=11)[9::10]  # type: ignore[arg-type]
    assert expected[-1][3].max() > 0.9, "nothing has grown: this would compare zeros"
    for text, state in zip(node(GROW, model=exported, size=size, seed=11), expected, strict=True):
        torch.testing.assert_close(array(text, *size, 16), state, atol=PARITY, rtol=0)


def test_growing_models_of_other_sizes_run_too() -> None:
    torch.manual_seed(3)
    model = GrowingNCA(channels=9, hidden=13, update_probability=0.8)
    nn.init.normal_(model.narrow.weight, std=0.02)
    nn.init.constant_(model.narrow.weight[3], 0.02)  # opacity, without which nothing lives
    expected = grown(rounded(model), (16, 12), seed=1)[9::10]  # type: ignore[arg-type]
    assert expected[-1].abs().max() > 0.1
    found = node(GROW, model=export(model), size=(16, 12), seed=1)
    for text, state in zip(found, expected, strict=True):
        torch.testing.assert_close(array(text, 16, 12, 9), state, atol=PARITY, rtol=PARITY)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_samples_equal_pytorchs(kind: str, sampler: str) -> None:
    model = untrained(**MODELS[kind])
    copy, channels = rounded(model), model.network.image_channels
    script = """
    let frame;
    const settings = { height: 9, width: 14, seed: 5, steps: 12, sampler: given.sampler };
    for (frame of E.load(given.model).sample(settings));
    console.log(JSON.stringify([text(frame.image), frame.call]));
    """
    image, calls = node(script, model=export(model), sampler=sampler)
    expected = sample(copy, (9, 14), sampler=SAMPLERS[sampler], steps=12, seed=5)
    assert calls == 12
    torch.testing.assert_close(array(image, 9, 14, channels), expected[0], atol=PARITY, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_ddim_with_fresh_noise_equals_pytorchs(kind: str) -> None:
    model = untrained(**MODELS[kind])
    script = """
    let frame;
    const settings = { height: 9, width: 14, seed: 5, steps: 12, sampler: "ddim", eta: given.eta };
    for (frame of E.load(given.model).sample(settings));
    console.log(JSON.stringify(text(frame.image)));
    """
    found = [
        array(node(script, model=export(model), eta=eta), 9, 14, model.network.image_channels)
        for eta in (0, 0.35)
    ]
    noisy = partial(SAMPLERS["ddim"], eta=0.35)
    expected = sample(rounded(model), (9, 14), sampler=noisy, steps=12, seed=5)[0]
    torch.testing.assert_close(found[1], expected, atol=PARITY, rtol=0)
    assert (found[0] - found[1]).abs().max() > 100 * PARITY


def test_a_filled_hole_equals_the_librarys_and_keeps_what_is_known() -> None:
    model = untrained(update_probability=0.9, encoding="sinusoidal")
    picture = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(1)) * 2 - 1
    known = torch.ones(1, 1, 12, 10, dtype=torch.bool)
    known[..., 3:8, 2:7] = False
    script = """
    let frame;
    const known = Uint8Array.from(given.known.flat(), Number);
    for (frame of E.load(given.model).sample({
      height: 12, width: 10, seed: 2, steps: 10, sampler: "ddpm", jump: 3, repeats: 2,
      picture: floats(given.picture), known,
    }));
    console.log(JSON.stringify([text(frame.image), frame.call, frame.calls]));
    """
    exported, given = export(model), base64_of(picture[0])
    text, calls, promised = node(script, model=exported, picture=given, known=known[0, 0].tolist())
    filled = array(text, 12, 10, 3)
    assert torch.equal(filled[:, known[0, 0]], picture[0][:, known[0, 0]])
    assert calls == promised > 10
    copy, edit = rounded(model), KnownPixels(picture, known, jump=3, repeats=2)
    expected = sample(copy, (12, 10), sampler=SAMPLERS["ddpm"], steps=10, seed=2, constraint=edit)
    torch.testing.assert_close(filled, expected[0], atol=PARITY, rtol=0)


def test_golden_frames_let_any_engine_be_checked() -> None:
    """As they stand in the shipped files, so that a forgotten export is found out."""
    script = """
    const difference = (a, b) => Math.max(...b.map((v, i) => Math.abs(v - a[i])));
    const found = given.growing.map(({ golden: g, ...model }) => {
      const automaton = E.load(model), state = automaton.seed(g.size, g.size);
      automaton.run(state, g.size, g.size, g.steps, new E.CounterNoise(g.seed));
      return difference(state.filter((_, i) => i % g.every === 0), floats(g.state));
    });
    const { golden: g, ...model } = given.diffusion, denoiser = E.load(model), [height, width] = g.size;
    const noise = new E.CounterNoise(g.seed), start = noise.normal(height, width, model.image_channels, 0, 0);
    const time = Math.fround(g.timestep / model.alpha_bar.length);
    found.push(difference(denoiser.network.forward(start, height, width, time, noise), floats(g.output)));
    let frame;
    for (frame of denoiser.sample({ height, width, seed: g.seed, steps: model.sampler_steps }));
    found.push(difference(frame.image, floats(g.sample)));
    console.log(JSON.stringify(found));
    """
    read = {name: json.loads((WEB / f"{name}.json").read_text()) for name in [*GROWING, "web-tissue"]}
    differences = node(script, growing=[read[name] for name in GROWING], diffusion=read["web-tissue"])
    assert len(differences) == 5
    assert max(differences) < PARITY


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_dense_networks_draw_pytorchs_batch(sampler: str) -> None:
    torch.manual_seed(0)
    models = [weights.load("web-digits"), Denoiser(MLP(5, 3, width=18), noise_schedule(), "v")]
    script = """
    const draw = (sample) => [...E.load(given.model).sample({
      height: given.side, width: given.side, seed: 4, steps: 12, sampler: given.sampler, sample,
    })].at(-1).image;
    console.log(JSON.stringify([0, 1, 2].map((sample) => text(draw(sample)))));
    """
    for model, side, channels in zip(models, (8, 5), (1, 3), strict=True):
        found = node(script, model=export(model), side=side, sampler=sampler)
        settings: dict[str, Any] = {"sampler": SAMPLERS[sampler], "steps": 12, "seed": 4, "count": 3}
        expected = sample(rounded(model), (side, side), **settings)
        for text, image in zip(found, expected, strict=True):
            torch.testing.assert_close(array(text, side, side, channels), image, atol=PARITY, rtol=0)


def test_golden_digits_are_the_shipped_files() -> None:
    script = """
    const { golden: g, ...model } = given.model, [height, width] = g.size;
    const frames = [...E.load(model).sample({ height, width, seed: g.seed, steps: model.sampler_steps })];
    console.log(JSON.stringify(text(frames.at(-1).image)));
    """
    model = json.loads((WEB / "web-digits.json").read_text())
    golden = array(model["golden"]["sample"], 8, 8, 1)
    torch.testing.assert_close(array(node(script, model=model), 8, 8, 1), golden, atol=PARITY, rtol=0)


@pytest.mark.parametrize("name", [*GROWING, "web-tissue", "web-digits"])
def test_the_shipped_files_hold_the_shipped_weights(name: str) -> None:
    shipped, exported = json.loads((WEB / f"{name}.json").read_text()), export(weights.load(name))
    assert {**shipped, "golden": None} == {**exported, "golden": None}


def test_files_are_small_enough_for_a_page() -> None:
    assert max((WEB / f"{name}.json").stat().st_size for name in GROWING) <= 40_000
    for name in ("web-tissue", "web-digits"):
        assert (WEB / f"{name}.json").stat().st_size <= 300_000


def test_exporting_leaves_the_model_as_it_was() -> None:
    model, start = untrained(update_probability=1.0), torch.randn(1, 3, 6, 6)
    before = model(start, torch.tensor([150]))
    export(model)
    assert torch.equal(model(start, torch.tensor([150])), before)
    model.requires_grad_(True)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (GrowingNCA(perception="learned"), "perception"),
        (untrained(position=True), "position"),
        (untrained(norm="group"), "norm"),
        (untrained(context_channels=3), "context_channels"),
        (Denoiser(FourierDiffNCA(12, 16, 2), noise_schedule()), "FourierDiffNCA"),
        (nn.Linear(2, 2), "Linear"),
    ],
)
def test_what_cannot_run_in_a_browser_is_refused_by_name(model: nn.Module, name: str) -> None:
    with pytest.raises(ExportError, match=name):
        export(model)


def test_the_command_writes_the_file_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.json"
    assert main(["export-web", "growing-grow", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == export(weights.load("growing-grow"))
    assert main(["export-web", "growing-persist", "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["export-web", "growing-persist", "--out", str(out), "--force"]) == 0
    assert json.loads(out.read_text()) == export(weights.load("growing-persist"))
    assert main(["export-web", "digits-fourier", "--out", str(tmp_path / "fourier.json")]) == 2
    assert "FourierDiffNCA" in capsys.readouterr().err


def test_demos_are_widgets_in_jupyter_and_self_contained_html_in_the_book(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NCA_LIB_BOOK", raising=False)
    widgets = [growing_demo(), diffusion_demo()]
    assert all(isinstance(widget, Demo) for widget in widgets)
    monkeypatch.setenv("NCA_LIB_BOOK", "1")
    pages = [growing_demo(), growing_demo(), diffusion_demo()]
    assert all(isinstance(page, HTML) for page in pages)
    mounts = {str(page.data).split('"')[1] for page in pages}
    assert len(mounts) == 3, "demos on one page share an element"
    assert not any("golden" in str(page.data) for page in pages), "tests' numbers weigh the page down"
    assert not any(re.search(' src="(?!data:)|https:', str(page.data)) for page in pages)
    stills = [str(page.data).split("<noscript>")[0] for page in pages]
    assert all(still.count("data:image/png;base64,") == still.count("<figcaption>") == 1 for still in stills)
    assert max(len(str(page.data)) for page in pages) < 200_000


def test_going_on_from_the_middle_ends_where_the_whole_way_ends() -> None:
    script = """
    const settings = { height: 8, width: 9, seed: 3, steps: 9, sampler: given.sampler };
    const model = E.load(given.model);
    const whole = [...model.sample(settings)], half = whole[4];
    const rest = [...model.sample({ ...settings, from: { image: half.image, t: half.t } })];
    console.log(JSON.stringify([text(whole.at(-1).image), text(rest.at(-1).image), rest.length, half.t]));
    """
    for sampler in ("ddim", "ddpm"):
        whole, rest, length, t = node(script, model=export(untrained()), sampler=sampler)
        assert whole == rest
        assert length == 6  # the beginning, and five calls
        assert t > 0


def test_inside_a_call_are_the_automatons_states_and_a_cells_influence_moves_a_cell_a_step() -> None:
    model = untrained(encoding="sinusoidal", update_probability=0.8, steps=4)
    noisy, t = torch.randn(1, 3, 13, 15, generator=torch.Generator().manual_seed(2)), 120
    script = """
    const told = { image: floats(given.image), height: 13, width: 15, t: given.t, seed: 9, cell: [6, 7] };
    const found = E.load(given.model).inside(told);
    const texts = (step) => [text(step.clean), text(step.hidden), text(step.influence)];
    console.log(JSON.stringify(found.map(texts)));
    """
    found = node(script, model=export(model), image=base64_of(noisy[0]), t=t)
    copy = rounded(model)
    time = copy.schedule.time(torch.tensor([t]))  # type: ignore[operator, union-attr]
    with firing_from(copy, CounterNoise(9)), torch.no_grad():
        rollout = list(copy.network.rollout(copy.network.seed(noisy), time))  # type: ignore[operator, union-attr]
    for step, (state, (clean, hidden, influence)) in enumerate(zip(rollout, found, strict=True), 1):
        expected = clean_of("v", copy.schedule, state[:, 3:6], noisy, torch.tensor([t])).clamp(-1, 1)  # type: ignore[arg-type]
        torch.testing.assert_close(array(clean, 13, 15, 3), expected[0], atol=PARITY, rtol=0)
        torch.testing.assert_close(array(hidden, 13, 15, 6), state[0, 6:], atol=PARITY, rtol=PARITY)
        reached = (array(influence, 13, 15, 1)[0] > 0).nonzero()
        assert (reached - torch.tensor([6, 7])).abs().max() <= step
        assert len(reached) > step


def told(channels: int, steps: int) -> Denoiser:
    return untrained(channels=channels, steps=steps, context_channels=4, update_probability=0.8)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
def test_a_cascade_tells_its_cells_what_pytorchs_does(strength: float, sampler: str) -> None:
    model = Cascade(untrained(update_probability=0.7), told(14, 4), 3, noise=0.2)
    layout = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    script = """
    const frames = [...E.load(given.model).sample({
      layout: floats(given.layout), height: 4, width: 5,
      strength: given.strength, seed: 2 ** 32 - 3, steps: 6, sampler: given.sampler,
    })];
    const calls = [0, 1].map((level) => frames.filter((f) => f.level === level && f.call).length);
    console.log(JSON.stringify([text(frames.at(-1).image), calls, frames.at(-1).t]));
    """
    given = {"layout": base64_of(layout[0]), "strength": strength, "sampler": sampler}
    image, calls, last = node(script, model=export(model), **given)
    assert (calls, last) == ([6 if strength else 0, 6], -1)
    copy: Any = rounded(model)
    expected = sample(
        copy.laid_out(layout, strength), (12, 15), sampler=SAMPLERS[sampler], steps=6, seed=2**32 - 3
    )
    torch.testing.assert_close(array(image, 12, 15, 3), expected[0], atol=PARITY, rtol=0)


@pytest.mark.parametrize("factor", [2, 5])
def test_golden_frames_of_a_cascade_let_any_engine_be_checked(factor: int) -> None:
    exported = export(Cascade(untrained(), told(14, 4), factor), steps=6)
    script = """
    const { size: [height, width], seed, strength, layout } = given.model.golden;
    const settings = { height, width, seed, strength, steps: given.model.sampler_steps, sampler: "ddim" };
    const frames = [...E.load(given.model).sample({ layout: floats(layout), ...settings })];
    console.log(JSON.stringify(text(frames.at(-1).image)));
    """
    height, width = (side * factor for side in exported["golden"]["size"])
    image = array(node(script, model=exported), height, width, 3)
    torch.testing.assert_close(
        image, array(exported["golden"]["sample"], height, width, 3), atol=PARITY, rtol=0
    )


def test_the_context_is_read_and_never_written() -> None:
    script = """
    const { network } = E.load(given.model).level, noise = new E.CounterNoise(3);
    network.context = noise.normal(5, 6, 4, 3, 0);
    const image = noise.normal(5, 6, 3, 0, 0), found = [];
    for (const state of network.states(image, 5, 6, 0.5, noise)) {
      found.push(text(network.part(state, 5, 6, 6, 10)));
    }
    console.log(JSON.stringify([found.every((kept) => kept === text(network.context)), found.length]));
    """
    model = Cascade(untrained(), told(14, 4), 3)
    assert node(script, model=export(model)) == [True, 4]


def test_of_a_cascade_two_levels_run_in_the_browser() -> None:
    middle = Cascade(untrained(), told(14, 4), 2)
    with pytest.raises(ExportError, match="two levels"):
        export(Cascade(middle, told(14, 4), 2))
    with pytest.raises(ExportError, match="context_channels"):
        export(told(14, 4))
    rule = untrained(channels=14, context_channels=5)
    with pytest.raises(ExportError, match="told its scale"):
        export(Cascade(untrained(), rule, 2, scale=1.0))
