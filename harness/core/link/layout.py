"""What a ``struct`` format holds, item by item: for what is generated from the tables of the
wire."""

import struct


def layout_items(layout: struct.Struct) -> list[tuple[str, int]]:
    """(kind, bytes) of each item of a format such as ``>Q8sII``."""
    items: list[tuple[str, int]] = []
    count = ""
    for char in layout.format.lstrip("<>"):
        if char.isdigit():
            count += char
        elif char == "s":
            items.append(("s", int(count or "1")))
            count = ""
        else:
            items += [(char, struct.calcsize(f">{char}"))] * int(count or "1")
            count = ""
    return items
