"""Region-of-interest masks for training: from annotations and from class-activation maps."""
