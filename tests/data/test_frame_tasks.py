"""Moving digits: what is drawn, and the models that learn it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from statescan import Spec
from statescan.data.tasks import MovingDigits
from statescan.data.tasks.frames import GLYPHS, FrameModel
from statescan.data.tasks.signals import continued
from statescan.layers import GatedMLP
from statescan.procedures.floors import floors


def test_digits_are_ten_different_pictures_that_fill_their_box():
    assert GLYPHS.shape == (10, 7, 5)
    assert len({glyph.tobytes() for glyph in GLYPHS}) == 10
    assert set(np.unique(GLYPHS)) == {0.0, 1.0}
    assert (GLYPHS.any(2).all(1)).all()  # no empty row


def cut(picture):
    """What is not empty of a picture, as nested lists."""
    return picture[picture.any(1)][:, picture.any(0)].tolist()


def corners(film):
    """The first row and column that are not empty, of each frame."""
    return np.stack([film.any(2).argmax(1), film.any(1).argmax(1)], 1)


def test_one_digit_keeps_its_shape_and_its_speed_and_bounces():
    task = MovingDigits(size=20, length=60, speed=1.7)
    bounced = 0
    for film in task.sample(20, 0).ids.numpy():
        assert (film.sum((1, 2)) == film[0].sum()).all()  # never cut off
        places = corners(film)
        assert cut(film[0]) in map(cut, GLYPHS)
        steps = np.diff(places, axis=0)
        assert np.abs(steps).max() <= 2  # 1.7 rounded
        speed = np.hypot(*np.abs(steps).mean(0))
        assert 1.2 < speed < 1.8
        bounced += (np.sign(steps).min(0) * np.sign(steps).max(0) < 0).any()
    assert bounced > 15


def test_what_is_asked_for_is_the_next_frame():
    task = MovingDigits(digits=2, length=9, horizon=4)
    found = task.sample(3, 0)
    assert found.ids.shape == found.targets.shape == (3, 9, 16, 16)
    assert torch.equal(found.targets[:, 2:-1], found.ids[:, 3:])
    assert found.targets[:, :2].isnan().all()
    ahead = task.tests()["4 frames ahead"].sample(3, 0)
    assert ahead.ids.shape == (3, 13, 16, 16)
    assert ahead.horizon == 4
    assert ahead.targets[:, :8].isnan().all()
    assert torch.equal(ahead.targets[:, 8:-1], ahead.ids[:, 9:])
    assert not torch.equal(task.sample(3, 1).ids, found.ids)
    assert torch.equal(task.sample(3, 0).ids, found.ids)


@pytest.mark.parametrize("mixer", [Spec("ConvS5", d_state=4, groups=2), Spec("S5", d_state=4)])
def test_a_model_says_the_same_at_once_and_frame_by_frame(mixer):
    torch.manual_seed(0)
    model = FrameModel(10, 4, "MF", {"M": mixer, "F": functools.partial(GatedMLP, d_ff=5)}).double()
    x = torch.rand(2, 6, 10, 10, dtype=torch.float64)
    whole = model(x)
    assert whole.shape == x.shape
    y, state = model.scan(x[:, :3])
    torch.testing.assert_close(y, whole[:, :3])
    for t in range(3, 6):
        y, state = model.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(continued(model, x, 2)[:, :6], whole)


def test_floors_see_pixels():
    task = MovingDigits(size=9, length=6, horizon=2)
    found = floors(task.sample(16, 0), {name: [test.sample(4, 1)] for name, test in task.tests().items()}, 0)
    assert found.keys() == {"last value", "ridge"}
    assert all(0 <= value < 0.9 for by_test in found.values() for value in by_test.values())
    assert found["ridge"]["next frame"] > 0.1


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="size must be 8 or more; got 7"):
        MovingDigits(size=7)
    with pytest.raises(ValueError, match="length must be 3 or more"):
        MovingDigits(length=2)
    with pytest.raises(ValueError, match="all read maps or all read sequences"):
        FrameModel(10, 4, "MS", {"M": Spec("ConvS5", d_state=4, groups=2), "S": Spec("S5", d_state=4)})
