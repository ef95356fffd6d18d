"""Living automata, shapes, and copies of a model that two threads may sample from."""

import itertools
from collections.abc import Iterator

import ipywidgets as ipw
import pytest
import torch

import nca_lib
from nca_lib.automaton import GrowingNCA, rollout, to_rgb
from nca_lib.book import explorers as widgets
from nca_lib.book.painting import mask_bytes
from nca_lib.book.panel import Explorer, Player
from nca_lib.book.players import LivingAutomaton, shape_mask, sharing_weights
from nca_lib.book.subjects import Subject
from nca_lib.noise import CounterNoise, firing_from


@pytest.fixture(autouse=True)
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCA_LIB_BOOK", raising=False)


@pytest.fixture(scope="module")
def grower() -> GrowingNCA:
    return nca_lib.load("growing-regenerate")


@pytest.fixture
def tissue() -> Subject:
    model = nca_lib.load("tissue-diff-nca")
    model.network.steps, model.network.update_probability = 4, 0.5
    return Subject("tissue", model, torch.zeros(1, 3, 16, 16))


@pytest.fixture
def player(grower: GrowingNCA) -> Iterator[Player]:
    made = widgets.growing_player(grower, size=20)
    assert isinstance(made, Player)
    yield made
    made.close()
    made._thread.join(10)
    assert not made._thread.is_alive()


def test_a_living_automaton_makes_the_steps_of_a_rollout(grower: GrowingNCA) -> None:
    living = LivingAutomaton(grower, 20, seed=3)
    living.live(7)
    living.live(5)
    with torch.no_grad(), firing_from(grower, CounterNoise(3)):
        expected = rollout(grower, grower.seed(20), 12)
    torch.testing.assert_close(living.picture(), to_rgb(expected)[0] * 2 - 1)


def test_erased_cells_are_empty_and_the_others_as_before(grower: GrowingNCA) -> None:
    living = LivingAutomaton(grower, 20)
    living.live(30)
    before, cells = living.picture(), torch.zeros(20, 20, dtype=torch.bool)
    cells[:, :9] = True
    living.erase(cells)
    after = living.picture()
    assert (before[:, cells] < 1).any()
    assert (after[:, cells] == 1).all()
    assert torch.equal(after[:, ~cells], before[:, ~cells])


def test_two_explorers_of_one_model_do_not_disturb_each_other(tissue: Subject) -> None:
    first, second = widgets.size_explorer(tissue), widgets.sampler_explorer(tissue)
    assert isinstance(first, Explorer)
    assert isinstance(second, Explorer)
    for explorer in (first, second):
        explorer.close()
        explorer.wait(60)
    settings = {"shape": "disc", "height": 16, "width": 24, "steps": 4, "seed": 1}
    alone = list(first._views(**settings))
    # As threads take turns: the second begins after the first, and ends before it.
    other = second._views(subject=0, sampler="ddim", steps=2, seed=5)
    together = [view for view, _ in itertools.zip_longest(first._views(**settings), other)]
    assert len(together) == 4
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.pictures["clean estimate"], b.pictures["clean estimate"])


def test_a_copy_shares_its_weights_and_nothing_else(tissue: Subject) -> None:
    model = tissue.model
    own = sharing_weights(model)
    assert [p.data_ptr() for p in own.parameters()] == [p.data_ptr() for p in model.parameters()]
    before = [module.firing for module in model.modules() if hasattr(module, "firing")]
    assert before
    with firing_from(own, CounterNoise(0)):
        now = [module.firing for module in model.modules() if hasattr(module, "firing")]
        assert all(a is b for a, b in zip(now, before, strict=True))


def test_a_player_lives_only_while_its_pictures_are_drawn(player: Player) -> None:
    for expected in (2, 4, 6):
        player._brush._hear(None, {"event": "drawn"}, [])
        while player._living.age < expected:
            assert player._thread.is_alive()
            player._stop.wait(0.01)
    player._stop.wait(0.3)  # nobody says that the last picture was drawn
    assert player._living.age == 6


def test_a_player_whose_picture_does_not_change_lives_on_and_is_wounded() -> None:
    """A ladybird at rest: the page draws what it is sent, equal or not, and says so."""
    still = LivingAutomaton(nca_lib.load("growing-regenerate"), 12)  # type: ignore[arg-type]
    still.live = lambda steps=1: setattr(still, "age", still.age + steps)  # type: ignore[method-assign]
    player = Player(still)
    shown = []
    player._brush.observe(lambda change: shown.append(change["new"]), "number")
    for expected in (2, 4, 6):
        player._brush._hear(None, {"event": "drawn"}, [])
        while still.age < expected:
            player._stop.wait(0.01)
    player._stop.wait(0.2)
    assert shown == [1, 2, 3], "an equal picture was not told"
    before = player._brush.picture
    everything = mask_bytes(torch.ones(12, 12, dtype=torch.bool))
    player._brush._hear(None, {"event": "painted"}, [memoryview(everything)])
    player._brush._hear(None, {"event": "drawn"}, [])
    while still.age < 8:
        player._stop.wait(0.01)
    player._stop.wait(0.2)
    assert player._brush.picture != before, "the wound is not drawn"
    player.close()
    player._thread.join(10)


def test_a_paused_player_is_erased_and_begins_again(player: Player) -> None:
    player.pause()
    player._living.live(20)
    before = player._brush.picture
    everything = mask_bytes(torch.ones(20, 20, dtype=torch.bool))
    player._brush._hear(None, {"event": "painted"}, [memoryview(everything)])
    assert player._living.picture().min() == 1
    assert player._brush.picture != before
    player.restart()
    assert player._living.age == 0
    assert player._living.picture().min() < 1


def test_what_is_closed_leaves_no_widget(grower: GrowingNCA) -> None:
    living = ipw.widgets.widget._instances
    before = set(living)
    player = widgets.growing_player(grower, size=12)
    painter = widgets.inpainting_painter(
        Subject("digits", nca_lib.load("digits-mlp"), torch.zeros(1, 1, 8, 8))
    )
    assert len(set(living) - before) > 10
    for made in (player, painter):
        made.close()
        made._thread.join(10)
        assert not made._thread.is_alive()
    assert not set(living) - before


@pytest.mark.parametrize("shape", ["disc", "ring", "heart"])
def test_a_shape_is_symmetric_touches_the_borders_and_scales(shape: str) -> None:
    mask = shape_mask(shape, 48, 64)  # type: ignore[arg-type]
    assert torch.equal(mask, mask.flip(1))
    assert mask[:2].any() and mask[-2:].any() and mask[:, :2].any() and mask[:, -2:].any()
    share = [shape_mask(shape, *size).float().mean() for size in ((64, 64), (160, 240))]  # type: ignore[arg-type]
    assert share[0] == pytest.approx(float(share[1]), abs=0.01)


def test_a_disc_and_a_ring_have_their_areas() -> None:
    assert float(shape_mask("disc", 400, 300).float().mean()) == pytest.approx(torch.pi / 4, abs=2e-3)
    assert float(shape_mask("ring", 400, 300).float().mean()) == pytest.approx(torch.pi * 3 / 16, abs=2e-3)
    assert shape_mask("rectangle", 5, 7).all()


def test_outside_of_the_shape_the_canvas_is_white(tissue: Subject) -> None:
    explorer = widgets.size_explorer(tissue)
    assert isinstance(explorer, Explorer)
    explorer.close()
    *_, last = explorer._views(shape="heart", height=24, width=24, steps=2, seed=0)
    clean, inside = last.pictures["clean estimate"], shape_mask("heart", 24, 24)
    assert (clean[:, ~inside] == 1).all()
    assert (clean[:, inside] < 1).any()


@pytest.mark.parametrize("method", ["repaint", "published"])
def test_only_the_hole_is_painted(method: str) -> None:
    image = torch.linspace(-1, 1, 64).view(1, 8, 8)
    explorer = widgets.inpainting_painter(Subject("digits", nca_lib.load("digits-mlp"), image[None]))
    assert isinstance(explorer, Explorer)
    explorer.close()
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[2:5, 3:7] = True
    for view in explorer._views(
        subject=0, image=0, own=b"", hole=hole, method=method, steps=6, jump=5, repeats=2, seed=0
    ):
        assert torch.equal(view.pictures["filled"][:, ~hole], image[:, ~hole])
    assert not torch.equal(view.pictures["filled"][:, hole], image[:, hole])
