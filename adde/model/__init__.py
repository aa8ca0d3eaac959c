"""The encoder, the prototype memory, and the module that joins them."""

from adde.model.adde import ADDE, Forward
from adde.model.memory import first_columns, multi_hot
from adde.model.settings import ModelSettings

__all__ = ["ADDE", "Forward", "ModelSettings", "first_columns", "multi_hot"]
