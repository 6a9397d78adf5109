"""What can go wrong, in types that a caller can tell apart; all are ``SynqFastError``."""


class SynqFastError(Exception):
    """Any failure that synq-fast explains itself."""


class RecipeError(SynqFastError, ValueError):
    """A recipe, an override or a bit width that cannot be meant."""


class ArgumentError(SynqFastError, ValueError):
    """An argument of a function, or an environment variable, that cannot be meant."""


class ModelError(SynqFastError, ValueError):
    """A model that synq-fast cannot find, build or use as a teacher."""


class CheckpointError(SynqFastError, ValueError):
    """A weights file that is damaged or belongs to another model."""


class DataError(SynqFastError, ValueError):
    """A data set or an image bank that is missing, damaged or not finite."""


class TraceError(SynqFastError, RuntimeError):
    """A model whose forward pass cannot be traced into a graph."""


class RunFolderError(SynqFastError, FileExistsError):
    """A run folder that exists, is missing, or belongs to another run."""


class NonFiniteLossError(SynqFastError, ArithmeticError):
    """A loss term that became infinite or NaN; names the step and the term."""


class StorageError(SynqFastError, OSError):
    """A file that cannot be written: the disk is full, the folder read-only or gone."""


class OutOfMemoryError(SynqFastError, MemoryError):
    """Work that does not fit into memory, even in its smallest pieces."""


class MissingExtraError(SynqFastError, ImportError):
    """Packages that this work needs are not installed; names the extra that brings them."""


class ExportError(SynqFastError, RuntimeError):
    """A written file that does not compute what it should; names the first layer that differs."""


class SynqFastWarning(UserWarning):
    """Something went wrong and was put right, or was asked for in vain; the message says what."""


class DistributedError(SynqFastError, RuntimeError):
    """Processes of one run that cannot meet or do not fit together."""


class LostRankError(DistributedError):
    """Another process of the run has stopped; its own message says why."""
