"""The evidence of finished runs: pairs that are verified, comparisons, the verdict."""
