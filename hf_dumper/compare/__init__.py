"""Two readers in, one comparison out: alignment, metrics, verdicts and the first divergence."""
