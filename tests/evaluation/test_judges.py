"""The judges: they read digits, and tell faces from halves of two."""

from __future__ import annotations

import numpy as np
import torch

from nca_lib.data.digits import Digits
from nca_lib.data.faces import Faces
from nca_lib.evaluation.distortions import glued
from nca_lib.evaluation.judges import DigitJudge, FaceJudge, judge_of


def test_the_digit_judge_reads_digits() -> None:
    judge = DigitJudge(32)
    held_out = Digits(32, "test")
    real = judge.summary(judge(held_out.images).mean(0))
    assert real["confidence"] > 0.9 and real["classes"] == 10
    assert float((judge(held_out.images)[:, 1:].argmax(1) == held_out.labels).double().mean()) > 0.92
    ones = judge.summary(judge(held_out.images[held_out.labels == 1]).mean(0))
    assert ones["classes"] <= 2 and max(ones["class_fractions"]) == ones["class_fractions"][1]
    blends = (held_out.images + held_out.images.roll(5, 0)) / 2
    assert judge.summary(judge(blends).mean(0))["confidence"] < real["confidence"] - 0.03


def test_the_face_judge_tells_faces_from_glued_halves() -> None:

    faces = Faces(64, "test")
    images = torch.stack([faces.image(i, np.random.default_rng(0)) for i in range(40)])
    judge = FaceJudge(64)
    assert judge.summary(judge(images).mean(0))["all"] > 0.9
    assert judge.summary(judge(glued(images)).mean(0))["all"] < 0.3


def test_faces_too_small_to_be_read_have_no_judge() -> None:
    assert isinstance(judge_of("faces", Faces(32)), FaceJudge)
    assert judge_of("faces", Faces(31)) is None
