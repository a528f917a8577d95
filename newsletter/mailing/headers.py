"""The headers of MAIL.md."""
