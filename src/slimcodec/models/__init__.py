"""The networks: autoencoder, latent compressor, exact prior, captioner, enhancer, and the bundle that holds them."""
