"""The library's cells, one family a file, each beside its equations."""
