"""Datasets as people have them on disk, each as a stream of images."""
