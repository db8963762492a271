"""Ways to run a cell over a sequence."""
