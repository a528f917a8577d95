"""Source to segments and slots, once a campaign."""
