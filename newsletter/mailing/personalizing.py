"""Values into slots: what one recipient costs."""
