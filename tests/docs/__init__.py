"""What the documents say is checked against what there is."""
