"""The error of options that cannot work."""


class OptionError(ValueError):
    """Options that cannot work, alone or together; one line says why."""
