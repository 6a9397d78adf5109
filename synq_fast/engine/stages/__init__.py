"""What a run does, one after the other: a file for each stage that a recipe can name."""

from synq_fast.engine.stages.blocks import blocks
from synq_fast.engine.stages.calibration import calibration
from synq_fast.engine.stages.finetune import finetune
from synq_fast.engine.stages.generator import generator
from synq_fast.engine.stages.norms import norms
from synq_fast.engine.stages.stage import Made, Stage
from synq_fast.engine.stages.synthesis import image_bank, in_turns, synthesis
from synq_fast.engine.stages.widths import sensitivity_of, widths

STAGES: dict[str, Stage] = {
    "synthesis": synthesis,
    "generator": generator,
    "calibration": calibration,
    "blocks": blocks,
    "norms": norms,
    "finetune": finetune,
}
"""By the name that recipes use, each of ``recipes.schema.STAGES``."""

__all__ = ["STAGES", "Made", "Stage", "image_bank", "in_turns", "sensitivity_of", "widths"]
