"""The encoder, the prototype memory, and the module that joins them."""

from adde.model.adde import ADDE, Encoding, Forward
from adde.model.memory import first_columns, multi_hot
from adde.model.settings import ModelSettings

__all__ = ["ADDE", "Encoding", "Forward", "ModelSettings", "first_columns", "multi_hot"]
