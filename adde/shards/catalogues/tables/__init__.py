"""Tables of text cells, and the catalogue that a table and a folder of pictures make."""
