"""The VR of every standard attribute (PS3.6), as pydicom keeps them, without the rest of pydicom.

A receiver needs nothing else of it, and with numpy it would be 20 MB larger; this is 2 MB, had
only where somebody asks.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

UNKNOWN = "UN"
_GROUP_LENGTH = "UL"
_PRIVATE_CREATOR = "LO"  # PS3.5 7.8.1


@cache
def _standard() -> Mapping[int, str]:
    package = find_spec("pydicom")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "_dicom_dict.py"
    spec = spec_from_file_location("edgepacs_attribute_registry", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    # Where there is a choice, e.g. "US or SS", the first.
    return {tag: entry[0][:2] for tag, entry in module.DicomDictionary.items()}


def vr_of(tag: int) -> str:
    """The VR of an attribute; UN of a private one, and of what PS3.6 does not know."""
    group, element = tag >> 16, tag & 0xFFFF
    if not element:
        return _GROUP_LENGTH
    if group % 2:
        return _PRIVATE_CREATOR if 0x10 <= element <= 0xFF else UNKNOWN
    return _standard().get(tag, UNKNOWN)
