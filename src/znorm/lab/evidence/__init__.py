"""What finished runs show: pairs that are verified, comparisons, the verdict."""
