"""From a source to bytes on a wire: compile, personalise, headers, tokens, throttle, transports. No models here."""
