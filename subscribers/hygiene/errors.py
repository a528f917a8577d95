"""What can go wrong with hygiene, each as one sentence for the person who asked for it."""


class HygieneError(Exception):
    """The text is a sentence for a person; edges show it as it is."""
