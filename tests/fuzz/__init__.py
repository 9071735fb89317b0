"""What no reader of a model may do, whatever the bytes."""
