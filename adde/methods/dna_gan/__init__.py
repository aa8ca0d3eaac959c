"""DNA-GAN: codes with a piece for each attribute, which pictures exchange."""
