"""onnxruntime sessions of a bundle: providers, bound buffers, and usable cores."""
