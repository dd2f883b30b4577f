"""What the techniques share."""
