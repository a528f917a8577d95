"""The first start on a server: owner, sender, first list, DNS records and a test mail."""
