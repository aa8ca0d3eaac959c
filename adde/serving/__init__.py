"""Answers "this item, but red" from a bundle, with onnxruntime and without torch."""
