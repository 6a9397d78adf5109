"""Training a quantized network block by block against the values of the float one."""

from synq_fast.finetune.reconstruction.activations import BlockValues, Cache, NetworkValues
from synq_fast.finetune.reconstruction.block import TrainedBlock
from synq_fast.finetune.reconstruction.curvature import curvature_weights
from synq_fast.finetune.reconstruction.iteration import Reconstruction, reconstruction_loop
from synq_fast.finetune.reconstruction.settings import Blocks

__all__ = [
    "BlockValues",
    "Blocks",
    "Cache",
    "NetworkValues",
    "Reconstruction",
    "TrainedBlock",
    "curvature_weights",
    "reconstruction_loop",
]
