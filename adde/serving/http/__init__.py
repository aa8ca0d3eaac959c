"""The HTTP service over a `Searcher`; of the extra `serve`, imported by no other package."""
