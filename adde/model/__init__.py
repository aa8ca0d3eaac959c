"""The encoder, the prototype memory, and the module that joins them."""

from adde.model.adde import ADDE, Forward
from adde.model.memory import multi_hot
from adde.model.settings import ModelSettings

__all__ = ["ADDE", "Forward", "ModelSettings", "multi_hot"]
