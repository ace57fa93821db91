"""Images as a stream: a sparse tar, compressed, encrypted. How each is written and read."""
