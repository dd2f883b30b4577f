"""`effvl detect`."""
