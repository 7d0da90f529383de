"""Tables of every format on the bench: structs, enums, limits, markers. No functions; imports
nothing of ours.

The harness and the simulated firmware each write their own codec from these tables.
"""
