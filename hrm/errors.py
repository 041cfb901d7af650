"""The errors a user can cause, each one line: what, where, what is allowed, what to do.

HrmError                    anything this project says to its user; the command line prints it and exits with 2
├── FileError               a file is missing, unreadable, truncated or not what it claims to be
│   └── SchemaError         a field of a YAML or JSON file is unknown, missing or of the wrong kind
├── ModelError              a model's configuration is not understood, or contradicts itself
├── PolicyError             a policy cannot be run as written (it would have to be rounded, or it contradicts itself)
├── DeviceError             a device is unknown, absent or cannot do what was asked
│   └── OutOfMemoryError    an allocation would exceed the capacity of a device or a given limit
└── InfeasibleError         no policy fits; the command line exits with 1
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "FileError",
    "HrmError",
    "InfeasibleError",
    "ModelError",
    "OutOfMemoryError",
    "PolicyError",
    "SchemaError",
]


class HrmError(Exception):
    """Base of every error that this project raises for its user; its text is one line that ends with the remedy."""

    exit_code = 2


class FileError(HrmError):
    """A file is missing, unreadable, truncated or not what it claims to be."""


class SchemaError(FileError):
    """A field of a YAML or JSON file is unknown, missing or of the wrong kind."""


class ModelError(HrmError):
    """A model's configuration is not understood, or contradicts itself."""


class PolicyError(HrmError):
    """A policy cannot be run as written."""


class DeviceError(HrmError):
    """A device is unknown, absent or cannot do what was asked."""


class OutOfMemoryError(DeviceError):
    """An allocation would exceed the capacity of a device or a given limit."""


class InfeasibleError(HrmError):
    """No policy fits; the text names the short resource and the bytes missing."""

    exit_code = 1
