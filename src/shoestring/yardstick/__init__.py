"""What is measured and how: memory, FLOPs, paired time, quality, and the one form of a result."""
