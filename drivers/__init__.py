"""Imported as ``freezeframe.drivers``; the top-level folder by itself is not a package."""

if __name__ != "freezeframe.drivers":
    raise ImportError(
        "the package is called freezeframe.drivers: under another name it would be a second copy"
    )
