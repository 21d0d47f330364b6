"""Products with sparse weights: compressed in memory, dense in the arithmetic."""
