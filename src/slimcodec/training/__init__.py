"""Training stages, losses, data and the loop that runs them."""

#: the stages that train, in the order in which they build on each other
STAGES = ("autoencoder", "diffusion", "latents", "compressor", "captioner", "enhance")
