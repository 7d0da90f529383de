"""Whose fault it is: the type of an exception says it, its text names the thing and what to do.

A failed *device* is a value (an outcome), never an exception; these are for everything else.
"""


class HarnessError(Exception):
    """Root of all errors that FreezeFrame raises on purpose; ``exit_code`` is the CLI's exit
    status."""

    exit_code = 3


class UsageError(HarnessError):
    """The caller's fault: a wrong argument, a wrong bench file. The text names file, line, key and
    what is allowed."""

    exit_code = 2


class RigError(HarnessError):
    """The bench's fault: a missing port, a dead process, a missing capability. The text says what
    to do about it."""

    exit_code = 3


class WrongDeviceError(RigError):
    """Somebody answers, and it is not who the bench file names: asking again changes nothing, and
    nothing is sent to it."""


class DriverError(RigError):
    """A driver does not do what its role promises: the text names the driver, the method and what is
    expected. The driver's own RigError, WireError and UsageError are not this."""

    def __init__(self, text: str, *, is_broken: bool = True) -> None:
        """``is_broken``: asking again changes nothing. Not so for an error that the device's bytes may
        have caused, such as a ValueError."""
        super().__init__(text)
        self.is_broken = is_broken


class NotWholeError(RigError):
    """Both controllers answer, and their pair is not in full duplex. Before a run that is the bench's
    trouble; after it, the pair's own failure."""


class LineGoneError(RigError):
    """A serial line or a stream has ended, or its adapter is gone: nothing can be asked."""


class WireError(HarnessError):
    """A peer's bytes break the format. ``offset_bytes`` is where in the stream or frame,
    ``excerpt`` the bytes there."""

    exit_code = 1

    def __init__(self, what: str, offset_bytes: int = 0, excerpt: bytes = b"") -> None:
        shown = excerpt[:32].hex(" ")
        super().__init__(f"{what} (at byte {offset_bytes}{': ' + shown if shown else ''})")
        self.what = what
        self.offset_bytes = offset_bytes
        self.excerpt = excerpt[:32]
