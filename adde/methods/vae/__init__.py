"""The VAE family: encoders that learn factors from pictures alone."""
