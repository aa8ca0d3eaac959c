"""Answer "this item, but red" from a bundle, with onnxruntime and without torch."""

from adde.serving.answers import Answer, Result
from adde.serving.attribute_edits import More, Not
from adde.serving.drawing import Drawing
from adde.serving.outfits import Fitting
from adde.serving.search import Request, Searcher

__all__ = ["Answer", "Drawing", "Fitting", "More", "Not", "Request", "Result", "Searcher"]
