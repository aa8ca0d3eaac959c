"""Draws pictures of embeddings: a decoder on a trained ADDE, so that an edit can be seen."""
