"""Pictures: the right bytes, and animations small enough for a page."""

import io

import numpy as np
import torch
from PIL import Image

from nca_lib.book.figures import animate, encode_gif, show_images, show_neighbours, to_uint8
from nca_lib.evaluation.copying import nearest_images


def test_to_uint8_maps_minus_one_to_black_and_one_to_white_and_clips() -> None:
    image = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0]).view(1, 1, 5)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(image).shape == (1, 5, 3)


def test_a_gif_holds_every_frame_enlarged_with_crisp_pixels() -> None:
    frames = [torch.full((3, 4, 6), value) for value in (-1.0, 0.0, 1.0)]
    animation = Image.open(io.BytesIO(encode_gif(frames, scale=5, fps=10)))
    assert animation.n_frames == 3
    assert animation.size == (30, 20)
    assert animation.info["duration"] == 100
    for index, level in enumerate((0, 128, 255)):
        animation.seek(index)
        assert (np.asarray(animation.convert("RGB")) == level).all()


def test_an_animation_begins_with_its_end_which_is_what_paper_shows() -> None:
    shown = animate(iter([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 1.0)]), "grey grows")
    with Image.open(io.BytesIO(shown.data)) as gif:
        seen = [np.asarray(gif.convert("L"))[0, 0] for number in range(gif.n_frames) if not gif.seek(number)]
    assert [round(v / 127.5) for v in seen] == [2, 0, 1]


def test_show_images_draws_one_panel_an_image_with_its_title() -> None:
    figure = show_images(torch.zeros(5, 3, 4, 8), ["a", "b", "c", "d", "e"], columns=3)
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == ["a", "b", "c", "d", "e"]
    assert len(figure.axes) == 6


def test_show_neighbours_puts_each_nearest_image_below_with_its_numbers() -> None:
    training = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    images = training[[3, 1]] + 0.125
    figure = show_neighbours(images, nearest_images(images, [training]))
    shown = [int(np.asarray(axis.images[0].get_array())[0, 0, 0]) for axis in figure.axes]
    assert shown == [207, 80, 191, 64]
    assert [axis.get_title() for axis in figure.axes[2:]] == ["0.12 / 0.33"] * 2
