"""Catalogues that are drawn as they are packed."""
