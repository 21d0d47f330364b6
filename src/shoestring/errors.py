"""The errors that Shoestring raises where no built-in one says enough.

Bad arguments raise ValueError, TypeError or FileNotFoundError. What is here names a situation in which
a caller may want to act: another budget, another file, another extra.
"""


class ShoestringError(Exception):
    """Base of every error of this library that is not a plain bad argument."""


class BadModelFile(ShoestringError, ValueError):
    """A checkpoint cannot be read: truncated, inconsistent, or of an unknown kind."""


class MissingExtra(ShoestringError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class MissingData(ShoestringError, FileNotFoundError):
    """A data set is not on this machine; the message says how to provide it."""


class NoCompiler(ShoestringError, RuntimeError):
    """No working C compiler was found; the plain torch path answers instead."""


class LayoutError(ShoestringError, ValueError):
    """Two layouts do not fit together; the message prints both."""


class ProgramError(ShoestringError, ValueError):
    """A tile program is not legal; the message names the instruction and what would be right."""


class TrainingDiverged(ShoestringError, ArithmeticError):
    """A loss or a gradient is no longer a finite number; the message names the step."""
