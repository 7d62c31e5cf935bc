"""A pretrained latent diffusion model of diffusers behind the codec."""
