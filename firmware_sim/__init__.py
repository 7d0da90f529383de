"""Imported as ``freezeframe.firmware_sim``; the top-level folder by itself is not a package."""

if __name__ != "freezeframe.firmware_sim":
    raise ImportError(
        "the package is called freezeframe.firmware_sim: under another name it would be a second copy"
    )
