"""Backbones, and the settings of an encoder."""

from adde.model.settings import ModelSettings

__all__ = ["ModelSettings"]
