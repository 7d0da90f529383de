"""Imported as ``freezeframe.harness``; the top-level folder by itself is not a package."""

if __name__ != "freezeframe.harness":
    raise ImportError(
        "the package is called freezeframe.harness: under another name it would be a second copy"
    )
