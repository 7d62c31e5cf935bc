"""Photos with what is known of them: readers, annotations and masks, classifiers, segmentation models."""
