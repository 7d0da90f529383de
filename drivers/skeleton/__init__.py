"""A pair of controllers as `freezeframe driver new` writes it: change it into yours, file by file."""
