"""Extension of Griffe: the constructors of named tuples and of Flax modules."""

import griffe  # pyright: ignore[reportMissingImports]


class Signatures(griffe.Extension):
    """Treats them as dataclasses, whose signatures Griffe derives from the fields."""

    def on_class_instance(self, *, cls, **_):
        """Adds the decorator of a dataclass."""
        if {str(base) for base in cls.bases} & {"NamedTuple", "nn.Module"}:
            name = griffe.ExprName("dataclasses.dataclass")
            cls.decorators.append(
                griffe.Decorator(name, lineno=cls.lineno, endlineno=cls.lineno)
            )
