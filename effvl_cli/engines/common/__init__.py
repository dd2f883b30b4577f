"""What the engines share: the training kit."""
