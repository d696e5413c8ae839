"""EdgePACS: the storage and worklist node that stands beside the scanner."""

__version__ = "0.1.0"
