"""From the text of `--device` to an open backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hrm.errors import DeviceError
from hrm.files import from_plain, read_yaml
from hrm.hardware import EmulatedSpec
from hrm.records import record

if TYPE_CHECKING:
    from hrm.device.backend import Backend

__all__ = ["DEFAULT_SPEC", "DeviceChoice", "bundled_specs", "load_spec", "open_backend", "parse_device"]

DEFAULT_SPEC = "mini-l4"

_FORMS = "auto, none, cuda, cuda:0, emulated, emulated:SPEC.yaml or emulated:NAME"


@record
class DeviceChoice:
    """What `--device` means; `device` and `emulated` are the profile's fields of the same names."""

    device: Literal["none", "cuda", "emulated"]
    index: int = 0
    emulated: EmulatedSpec | None = None


def _specs_folder() -> Path:
    return Path(__file__).resolve().parent / "specs"


def bundled_specs() -> list[str]:
    """Names of the emulated machines that ship with the project."""
    return sorted(path.stem for path in _specs_folder().glob("*.yaml"))


def load_spec(name_or_path: str | Path) -> EmulatedSpec:
    """Load an emulated machine by bundled name or by path.

    Raises
    ------
    DeviceError
        When nothing answers to the name.
    """
    path = Path(name_or_path)
    bundled = _specs_folder() / f"{name_or_path}.yaml"
    if not path.is_file() and bundled.is_file():
        path = bundled
    if not path.is_file():
        known = ", ".join(bundled_specs())
        raise DeviceError(f"--device emulated:{name_or_path}: no bundled machine and no such file (bundled: {known})")
    return from_plain(EmulatedSpec, read_yaml(path), where=str(path))


def parse_device(text: str) -> DeviceChoice:
    """Understand a value of `--device`; `auto` is `cuda` where torch finds one, else `none`.

    Raises
    ------
    DeviceError
        When the value has none of the known forms, or names an emulated machine that does not exist.
    """
    kind, _, rest = text.partition(":")
    if text == "auto":
        return DeviceChoice(device="cuda" if _has_cuda() else "none")
    if text == "none":
        return DeviceChoice(device="none")
    if kind == "emulated" and (rest or ":" not in text):
        return DeviceChoice(device="emulated", emulated=load_spec(rest or DEFAULT_SPEC))
    if kind == "cuda" and (rest.isdecimal() or ":" not in text):
        return DeviceChoice(device="cuda", index=int(rest or 0))
    raise DeviceError(f"--device {text}: unknown form (allowed: {_FORMS})")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def open_backend(device: str, emulated: EmulatedSpec | None = None, *, index: int = 0) -> Backend:
    """Open the backend that a profile (its fields `device` and `emulated`) or a `DeviceChoice` names.

    Raises
    ------
    DeviceError
        When the device is absent, or the profile is not of a device that can be opened.
    """
    if device == "none":
        from hrm.device.host import HostBackend

        return HostBackend()
    if device == "emulated":
        from hrm.device.emulated import EmulatedBackend

        if emulated is None:
            raise DeviceError("device emulated: the profile has no `emulated` block (profile the machine again)")
        return EmulatedBackend(emulated)
    if device == "cuda":
        from hrm.device.cuda import CudaBackend

        return CudaBackend(index)
    raise DeviceError(
        f"device {device}: the profile does not say what to run on (make one of this machine with hrm profile)"
    )
