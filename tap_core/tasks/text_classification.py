"""Text classification: one class of several, from a text."""

from tap_core.tasks.classification import Classification


class TextClassification(Classification):
    name = "text_classification"
    words = "text classification"
    needs = ("text",)
    margin = 0.005
