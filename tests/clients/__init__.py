"""Real client libraries against the real engine with the demo model."""
