"""Speed of this project against the published procedure; ``python -m benchmarks`` runs all of it."""
