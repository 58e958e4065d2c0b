"""What a person can look at: patch attention, tiles and gene sets behind a prediction. For research use only."""
