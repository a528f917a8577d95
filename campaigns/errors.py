"""What can go wrong with a campaign, each as one sentence for the editor."""


class CampaignError(Exception):
    """The text is a sentence for a person; edges show it as it is."""


class Busy(CampaignError):
    """Nobody's fault, and over in a minute: the machine could not look at it in time."""


class WrongState(CampaignError):
    """The campaign is not in a state that allows this move."""


class NotReady(CampaignError):
    """Preflight found something that must be mended first."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(" ".join(messages))
        self.messages = messages
