"""How a stage's model, gradients and optimiser lie on the ranks: whole, FSDP2, or DeepSpeed ZeRO.

A strategy is chosen by the file given to `accelerate launch` and changes nothing of what is
trained (docs/scaling.md).
"""

from adde.training.strategies.choice import open_accelerator
from adde.training.strategies.strategy import DataParallel, Strategy
from adde.training.strategies.weights import Weights

__all__ = ["DataParallel", "Strategy", "Weights", "open_accelerator"]
