"""How a stage's model, gradients and optimiser lie on the ranks: whole, FSDP2, or DeepSpeed ZeRO.

A strategy is chosen by the file given to `accelerate launch` and changes nothing of what is
trained (docs/scaling.md).
"""

from adde.training.strategies.choice import home_of_whole, open_accelerator, open_strategy
from adde.training.strategies.replicated import Replicated

__all__ = ["Replicated", "home_of_whole", "open_accelerator", "open_strategy"]
