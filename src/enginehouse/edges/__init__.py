"""Touch the world: processes, files, sockets, records, the clock. Thin, with few branches."""
