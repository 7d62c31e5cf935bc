"""Region-of-interest masks for training: from annotations, class-activation maps and segmentation models."""
