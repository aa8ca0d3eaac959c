"""Attribute-Driven Disentangled Encoder (Hou et al., ICCV 2021)."""
