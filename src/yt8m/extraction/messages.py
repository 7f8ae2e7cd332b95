"""Protobuf classes of the weight files, built at run time, with only the fields that are read.

Fields that are not declared stay unparsed, so a hostile file cannot turn them into objects. A map is declared as what it
is on the wire: a repeated message of key and value.
"""

from functools import cache

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "yt8m.weights"

_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    # tensorflow/core/framework: node_def.proto, attr_value.proto, tensor.proto, tensor_shape.proto
    "NodeDef": {"name": (1, "bytes"), "op": (2, "bytes"), "attr": (5, "*Attr")},
    "Attr": {"key": (1, "bytes"), "value": (2, "AttrValue")},
    "AttrValue": {"f": (4, "float"), "b": (5, "bool"), "tensor": (8, "Tensor")},
    "Tensor": {
        "dtype": (1, "int32"),
        "shape": (2, "Shape"),
        "content": (4, "bytes"),
        "floats": (5, "*float"),
        "integers": (7, "*int32"),
    },
    "Shape": {"dim": (2, "*Dim")},
    "Dim": {"size": (1, "int64")},
    # mediapipe/framework/formats/matrix_data.proto
    "MatrixData": {"rows": (1, "int32"), "cols": (2, "int32"), "values": (3, "*float"), "layout": (4, "int32")},
}
"""Fields of each message: number and type; `*` marks repeated ones."""

_TYPES = {name: getattr(_Field, f"TYPE_{name.upper()}") for name in ("bytes", "float", "bool", "int32", "int64")}


@cache
def message_class(name: str) -> type[Message]:
    """The class of a message of `_FIELDS`, in a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="yt8m/weights.proto", package=_PACKAGE, syntax="proto3")
    for message_name, fields in _FIELDS.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, described) in fields.items():
            label = _Field.LABEL_REPEATED if described.startswith("*") else _Field.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            kind = described.removeprefix("*")
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
