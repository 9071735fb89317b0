"""One file a part of the machine; each turns what the seam reads into facts."""
