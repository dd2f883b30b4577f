"""`effvl pixel-probe`."""
