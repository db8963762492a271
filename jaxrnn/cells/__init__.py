"""The cells of the library, one family per file, with their equations in the docstrings."""
