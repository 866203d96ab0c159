"""Arrays in, a matplotlib ``Figure`` out."""
