"""`effvl cpr-mine`."""
