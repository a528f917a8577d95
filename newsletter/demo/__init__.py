"""The demo: a gardening newsletter with a year of readers, and an inbox that shows what the mail server received.

Only the demo imports this package; settings.DEMO decides.
"""
