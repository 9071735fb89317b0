"""Measurements that anyone can run again; `./dev bench NAME`."""
