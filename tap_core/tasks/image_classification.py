"""Image classification: one class of several, from an image."""

from tap_core.tasks.classification import Classification


class ImageClassification(Classification):
    name = "image_classification"
    words = "image classification"
    needs = ("image",)
    folder = True
    margin = 0.01
