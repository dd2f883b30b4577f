"""Mining of positives by a cascade over several views, and contrastive training with them (arXiv 2201.07989)."""
