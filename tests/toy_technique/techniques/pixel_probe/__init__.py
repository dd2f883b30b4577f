"""Linear classification of the pixels that vary most."""
