"""Answers "this item, but red" from a bundle, with onnxruntime and without torch."""

from adde.serving.search import Answer, Request, Result, Searcher

__all__ = ["Answer", "Request", "Result", "Searcher"]
