"""What goes between courier and gateway, in the one encoding of `blindmerge.canonical`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from blindmerge import canonical
from blindmerge.errors import ProtocolBroken
from blindmerge.wire import from_wire, to_wire

__all__ = ["Arrays", "Call", "decode_arrays", "encode_arrays"]

Arrays = Mapping[str, npt.NDArray[Any]]
_LABEL = "blindmerge/1 gateway"


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the server.

    plan: bytes of the signed plan.   block: of the plan, or None.   messages: of the secure sum.
    merged: tensors that the owner does not have yet.
    """

    plan: bytes
    block: int | None = None
    messages: tuple[bytes, ...] = ()
    merged: Arrays = field(default_factory=dict)

    def encode(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode(
            [_LABEL, self.plan, self.block, self.messages, _described(self.merged)]
        )

    @classmethod
    def decode(cls, data: bytes) -> "Call":
        """The call with these bytes.   Raises NotCanonical, ProtocolBroken or SchemaMismatch."""
        match canonical.decode(data):
            case [label, bytes() as plan, block, list() as messages, dict() as merged] if (
                label == _LABEL and (block is None or type(block) is int)
            ):
                said = tuple(each for each in messages if type(each) is bytes)
                if len(said) == len(messages):
                    return cls(plan, block, said, _arrays(merged))
        raise ProtocolBroken("these bytes are no call of the gateway")


def encode_arrays(arrays: Arrays) -> bytes:
    """The canonical bytes of named arrays of floats or bytes."""
    return canonical.encode(_described(arrays))


def decode_arrays(data: bytes) -> Arrays:
    """The arrays, read-only.   Raises NotCanonical, ProtocolBroken or SchemaMismatch."""
    value = canonical.decode(data)
    if not isinstance(value, dict):
        raise ProtocolBroken("these bytes are no arrays")
    return _arrays(value)


def _described(arrays: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: to_wire(array) for name, array in arrays.items()}


def _arrays(described: Mapping[str, canonical.Value]) -> Arrays:
    arrays = {}
    for name, value in described.items():
        match value:
            case [str() as dtype, list() as shape, str() as serialisation, bytes() as data]:
                sizes = tuple(size for size in shape if type(size) is int)
                if len(sizes) == len(shape):
                    arrays[name] = from_wire(dtype, sizes, serialisation, data)
                    continue
        raise ProtocolBroken("these bytes are no arrays")
    return arrays
