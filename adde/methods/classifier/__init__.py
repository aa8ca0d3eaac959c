"""A plain classifier of all attributes, to compare disentangled encoders with."""
