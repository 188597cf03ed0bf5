"""From positives and negatives to new weights."""
