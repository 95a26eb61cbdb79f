"""A proposal near p(z|x) for each datum, in the place of the encoder's q(z|x)."""
