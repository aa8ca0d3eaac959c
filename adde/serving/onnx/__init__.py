"""onnxruntime sessions of a bundle: providers, bound buffers, and the cores they may use."""
