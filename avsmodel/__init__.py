"""Audiovisual segmentation models assembled on the operators of avskernels."""
