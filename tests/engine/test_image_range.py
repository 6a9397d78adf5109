"""The image's range is that of valid pixels, where the normalisation is known."""

import pytest
import torch

from synq_fast.engine.run import Run
from synq_fast.engine.stages import STAGES, Made
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths
from synq_fast.recipes import load_recipe
from tests.tiny import CLASSES, SHAPE, TINY_OVERRIDES, TinyNet


def image_range(mean, std, placement="integer"):
    torch.manual_seed(0)
    teacher = Teacher(TinyNet().eval(), "tiny", SHAPE, mean, std, CLASSES)
    overrides = {**TINY_OVERRIDES, "quantization.placement": placement}
    work = Run(teacher, load_recipe("synq-digits", overrides), BitWidths(4, 4), torch.device("cpu"))
    made = Made(work.build_student())
    for stage in ("synthesis", "calibration"):
        made = STAGES[stage](work, made)
    quantizer = made.student.quantize_x
    return float(quantizer.range_min), float(quantizer.range_max)


@pytest.mark.filterwarnings("ignore:.* has no effect")
@pytest.mark.parametrize("placement", ["integer", "all_inputs"])
def test_known_pixels_have_their_own_range(placement):
    low, high = image_range((0.5, 0.25), (0.5, 0.25), placement)
    assert (low, high) == pytest.approx((-1.0, 3.0))


@pytest.mark.filterwarnings("ignore:.* has no effect")
def test_other_images_have_the_one_that_is_found():
    """A module of one's own whose normalisation nobody told reads what synthesis makes."""
    low, high = image_range((0.0, 0.0), (1.0, 1.0))
    assert low < -0.5 and high > 1.0
