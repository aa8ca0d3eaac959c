"""Catalogues that a build can open: tables, public data sets and embedded catalogues."""
