"""The checks of faults.py."""
