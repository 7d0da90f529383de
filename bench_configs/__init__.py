"""Imported as ``freezeframe.bench_configs``; the top-level folder by itself is not a package."""

if __name__ != "freezeframe.bench_configs":
    raise ImportError(
        "the package is called freezeframe.bench_configs: under another name it would be a second copy"
    )
