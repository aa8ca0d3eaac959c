"""Catalogues a build can open: tables, folders of pictures, public data sets, drawn ones."""
