"""The HTTP service over a `Searcher`; needs the extra `serve`; no other package imports it."""
