"""How model, gradients and optimiser state are distributed over ranks: DDP, FSDP2 or ZeRO.

The file given to `accelerate launch` chooses the strategy; it does not change what is trained
(docs/scaling.md).
"""

from adde.training.strategies.choice import open_accelerator
from adde.training.strategies.strategy import DataParallel, Strategy
from adde.training.strategies.weights import Weights

__all__ = ["DataParallel", "Strategy", "Weights", "open_accelerator"]
