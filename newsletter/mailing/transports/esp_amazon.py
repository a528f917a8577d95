"""Anymail's backend of Amazon SES, apart, since boto3 costs a process 11 MB."""

from typing import Any

from anymail.backends import amazon_ses


class _AmazonPayload(amazon_ses.AmazonSESV2SendEmailPayload):
    """The very bytes that SMTP would carry; Anymail's would be put together by Django."""

    def generate_raw_message(self) -> bytes:
        metadata = f"X-Metadata: {self.mime_message['X-Metadata']}\r\n".encode("ascii")
        content: bytes = self.message.raw
        return metadata + content


class AmazonBackend(amazon_ses.EmailBackend):
    def build_message_payload(self, message: Any, defaults: Any) -> _AmazonPayload:
        return _AmazonPayload(message, defaults, self)
