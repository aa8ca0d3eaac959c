"""Glow: an invertible map between pictures and Gaussian latents."""
