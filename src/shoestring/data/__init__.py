"""Small real data and seeded generators."""
